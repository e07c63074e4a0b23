"""``run_export.py``: publish a network in the format of another program."""

import os
from pathlib import Path

from llm.commands import for_shell
from llm.data.tokenizer import Tokenizer
from llm.disk import cannot_use, free_bytes, published, replaced_by, writing
from llm.errors import DiskError, Refused, require
from llm.interchange.families import choose_family
from llm.interchange.gguf import is_gguf
from llm.interchange.gguf_vocabulary import vocabulary
from llm.interchange.gguf_writing import gguf_family, import_gguf, write_gguf
from llm.interchange.hf_writing import write_hf
from llm.interchange.source import Source
from llm.units import format_bytes

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "q8_0": 2}  # of a weight; some stay in 16 bits
NOT_WEIGHTS = 16 << 20  # bytes of room for the tokenizer and other files
WRITTEN = {
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json",
}  # fmt: skip


def export_hf(source: Source, out: Path, dtype: str, overwrite: bool) -> list[Path]:
    """Write ``source`` as a folder of Hugging Face; returns the files.

    Raises :class:`llm.errors.Refused` for a network of no other architecture and for a folder that
    exists, and :class:`llm.errors.DiskError` without room, before anything is written.
    """
    choose_family(source.model)
    tokenizer = source.tokenizer
    check_place(out, overwrite)
    weights = source.weights()
    numbers = sum(tensor.numel() for tensor in weights.values())
    check_room(out, BYTES[dtype] * numbers + NOT_WEIGHTS)
    with writing(out), published(out) as folder:
        write_hf(folder, source.model, weights, tokenizer, dtype)
    return sorted(out.iterdir())


def export_gguf(source: Source, out: Path, dtype: str, overwrite: bool) -> list[Path]:
    """Write ``source`` as the GGUF file ``out``; returns the file. Raises as :func:`export_hf`."""
    import_gguf()
    gguf_family(source.model)
    tokenizer, size = source.tokenizer, source.model.vocab_size
    assert size
    vocabulary(tokenizer, size)
    check_file(out, overwrite)
    weights = source.weights()
    numbers = sum(tensor.numel() for tensor in weights.values())
    check_room(out, BYTES[dtype] * numbers + NOT_WEIGHTS)
    with writing(out), replaced_by(out) as temporary:
        write_gguf(temporary, source.model, weights, tokenizer, dtype, out.stem)
    return [out]


def check_place(out: Path, overwrite: bool) -> None:
    """Refuse ``out`` if it exists, or with ``overwrite`` if it has files of another origin."""
    if os.path.lexists(out):
        _require_overwrite(out, overwrite)
        is_export = out.is_dir() and not out.is_symlink() and _names(out) <= WRITTEN
        require(is_export, f"out={out} has other files than an export: take another", key="out")
    _check_parent(out)


def check_file(out: Path, overwrite: bool) -> None:
    """Refuse the file ``out`` if it exists, or with ``overwrite`` if it is not GGUF."""
    if os.path.lexists(out):
        _require_overwrite(out, overwrite)
        is_export = out.is_file() and not out.is_symlink() and is_gguf(str(out))
        require(is_export, f"out={out} is not a GGUF file: take another", key="out")
    _check_parent(out)


def _require_overwrite(out: Path, overwrite: bool) -> None:
    require(overwrite, f"out={out} exists: take another, or add overwrite=true", key="out",
            suggestions=["overwrite=true"])  # fmt: skip


def _check_parent(out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_use(out, error) from None
    if not os.access(out.parent, os.W_OK):
        raise Refused(f"out={out} cannot be written: {out.parent} is not writable", key="out")


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def check_room(out: Path, needed: int) -> None:
    """Raise :class:`llm.errors.DiskError` unless the disk has room for ``needed`` bytes."""
    free = free_bytes(out)
    if free < needed:
        raise DiskError(
            f"{out} needs {format_bytes(needed)} and the disk has {format_bytes(free)} free: "
            "make room, or take a smaller dtype"
        )


def uses_of_hf(out: Path, tokenizer: Tokenizer) -> dict[str, str]:
    """A line for each program that can use the folder."""
    typed = str(out.resolve())
    uses = {"transformers": f"AutoModelForCausalLM.from_pretrained({typed!r})"}
    if tokenizer.kind != "gpt2":  # llama.cpp's converter knows tokenizers by name only
        return uses
    return uses | {
        "llama.cpp": for_shell(["python", "convert_hf_to_gguf.py", typed]),
        "ollama": _ollama(out, typed),
    }


def uses_of_gguf(out: Path, tokenizer: Tokenizer) -> dict[str, str]:
    """A line for each program that can use the file."""
    typed = str(out.resolve())
    return {
        "llama.cpp": for_shell(["llama-cli", "-m", typed, "-no-cnv", "-p", "Once upon a time"]),
        "python": f"llama_cpp.Llama({typed!r})('Once upon a time')",
        "ollama": _ollama(out, typed),
    }


def _ollama(out: Path, typed: str) -> str:
    """The command that adds a folder or file to ollama."""
    plain = out.name.removesuffix(".gguf").lower()
    name = "".join(c if c.isalnum() else "-" for c in plain).strip("-") or "model"
    modelfile = f"printf 'FROM %s\\n' {for_shell([typed])} > Modelfile"
    return f"{modelfile} && ollama create {name} -f Modelfile"


# What writes each format, and the lines that use the result elsewhere.
FORMATS = {"hf": (export_hf, uses_of_hf), "gguf": (export_gguf, uses_of_gguf)}
