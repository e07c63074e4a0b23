"""``run_export.py``: publish a network in the format of another program."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from llm.checkpoint.checkpoint import Checkpoint
from llm.commands import command_line, for_shell
from llm.disk import TEMPORARY, cannot_use, free_bytes, published, replaced_by, writing
from llm.errors import DiskError, Refused, require
from llm.interchange.adapters import base_of
from llm.interchange.families import choose_family
from llm.interchange.gguf import is_gguf
from llm.interchange.gguf_vocabulary import vocabulary
from llm.interchange.gguf_writing import gguf_family, import_gguf, write_gguf
from llm.interchange.hf_writing import write_hf, write_tokenizer
from llm.interchange.peft import CONFIG, WEIGHTS, PeftSource
from llm.interchange.peft_writing import write_peft
from llm.interchange.source import CheckpointSource, Source, open_source, whole_model
from llm.lock import locked_beside
from llm.units import format_bytes

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "q8_0": 2}  # of a weight; some stay in 16 bits
NOT_WEIGHTS = 16 << 20  # bytes of room for the tokenizer and other files
WRITTEN = {
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json", CONFIG, WEIGHTS,
}  # fmt: skip


def export_hf(source: Source, out: Path, dtype: str, overwrite: bool) -> list[Path]:
    """Write ``source`` as a folder of Hugging Face; returns the files.

    Raises :class:`llm.errors.Refused` if no architecture computes the same or the folder exists,
    and :class:`llm.errors.DiskError` if the disk has no room; nothing is written then.
    """
    choose_family(source.model)
    tokenizer = source.tokenizer
    with claimed(source, out, overwrite, check_place):
        weights = source.weights()
        check_room(out, weights, dtype)
        with writing(out), published(out) as folder:
            write_hf(folder, whole_model(source), weights, tokenizer, dtype, source.chat)
    return sorted(out.iterdir())


def export_gguf(source: Source, out: Path, dtype: str, overwrite: bool) -> list[Path]:
    """Write ``source`` as the GGUF file ``out``; returns the file. Raises as :func:`export_hf`."""
    import_gguf()
    gguf_family(source.model)
    tokenizer, size = source.tokenizer, source.model.vocab_size
    assert size
    vocabulary(tokenizer, size)
    with claimed(source, out, overwrite, check_file):
        weights = source.weights()
        check_room(out, weights, dtype)
        with writing(out), replaced_by(out) as temporary:
            model, chat = whole_model(source), source.chat
            write_gguf(temporary, model, weights, tokenizer, dtype, out.stem, chat)
    return [out]


def export_merged(source: Source, out: Path, dtype: str, overwrite: bool) -> list[Path]:
    """:func:`export_hf` of a run that trained only a part of its base, such as adapters."""
    require(
        _is_partial(source),
        f"format=merged merges adapters into their base, and {source.place} has none: "
        "take format=hf",
        key="format", suggestions=["format=hf"],
    )  # fmt: skip
    return export_hf(source, out, dtype, overwrite)


def export_peft(source: Source, out: Path, dtype: str, overwrite: bool) -> list[Path]:
    """Write the adapters of ``source``, without their base, as a folder of PEFT, with the tokenizer
    and the chat template; returns the files.

    Raises as :func:`export_hf`, and :class:`llm.errors.Refused` for a run without adapters.
    """
    trained = source.manifest.finetune if isinstance(source, CheckpointSource) else None
    has_adapters = trained is not None and trained.has_adapters
    require(source.kind != "peft", f"{source.place} is a folder of PEFT already")
    how = f"was trained with finetune={trained.name}" if trained else "holds a whole network"
    require(
        has_adapters, f"format=peft needs adapters, and {source.place} {how}: take format=hf",
        key="format", suggestions=["format=hf"],
    )  # fmt: skip
    assert isinstance(source, CheckpointSource)
    choose_family(source.model)
    tokenizer = source.tokenizer
    with claimed(source, out, overwrite, check_place):
        checkpoint = Checkpoint.open(source.path)
        assert checkpoint.finetune is not None and checkpoint.base is not None
        base, adapters = base_of(checkpoint).weights(), checkpoint.weights()
        check_room(out, adapters, dtype)
        with writing(out), published(out) as folder:
            write_peft(
                folder, checkpoint.model, checkpoint.finetune, adapters, base, checkpoint.base,
                dtype,
            )  # fmt: skip
            write_tokenizer(folder, tokenizer, source.context, source.chat)
    return sorted(out.iterdir())


def _is_partial(source: Source) -> bool:
    if isinstance(source, CheckpointSource):
        return source.manifest.base is not None
    return source.kind == "peft"


@contextlib.contextmanager
def claimed(
    source: Source, out: Path, overwrite: bool, check: Callable[[Path, bool], None]
) -> Iterator[None]:
    """Keep other exports from writing ``out`` inside the ``with`` block.

    Raises as ``check`` does, :class:`llm.errors.InUse`, and :class:`llm.errors.Refused` if
    ``source`` is read from ``out``.
    """
    has_name = out.name not in ("", "..")  # as in out=. and out=/
    require(has_name, f"out={out} has no name: give the path of a new folder or file", key="out")
    check(out, overwrite)
    is_read = os.path.lexists(out) and any(out.samefile(place) for place in _places(source))
    require(not is_read, f"out={out} holds the weights that are exported: take another", key="out")
    with locked_beside(out, "export"):
        check(out, overwrite)  # another process may have written it since
        unfinished = re.compile(rf"\.{re.escape(out.name)}\.\d+{re.escape(TEMPORARY)}")
        for path in out.parent.iterdir():  # left by a killed process
            if path.is_file() and unfinished.fullmatch(path.name):
                path.unlink()
        yield


def _places(source: Source) -> Iterator[str]:
    """Where ``source`` and its base are, as far as these places exist."""
    if os.path.exists(source.place):
        yield source.place
    if isinstance(source, PeftSource):
        yield from _places(source.base)
    elif isinstance(source, CheckpointSource) and source.manifest.base:
        with contextlib.suppress(Refused):  # refused when it is read
            yield from _places(open_source("init_from", source.manifest.base.init_from))


def check_place(out: Path, overwrite: bool) -> None:
    """Refuse ``out`` if it exists, or with ``overwrite`` if it is not the folder of an export."""
    if os.path.lexists(out):
        what = "a link" if out.is_symlink() else None if out.is_dir() else "a file"
        require(what is None, f"out={out} is {what}, not a folder: take another", key="out")
        _require_overwrite(out, overwrite)
        is_export = _names(out) <= WRITTEN
        require(is_export, f"out={out} has other files than an export: take another", key="out")
    _check_parent(out)


def check_file(out: Path, overwrite: bool) -> None:
    """Refuse the file ``out`` if it exists, or with ``overwrite`` if it is not GGUF."""
    if os.path.lexists(out):
        is_link = out.is_symlink()
        require(not is_link, f"out={out} is a link, not a file: take another", key="out")
        _require_overwrite(out, overwrite)
        is_export = out.is_file() and is_gguf(str(out))
        require(is_export, f"out={out} is not a GGUF file: take another", key="out")
    _check_parent(out)


def _require_overwrite(out: Path, overwrite: bool) -> None:
    require(overwrite, f"out={out} exists: take another, or add overwrite=true", key="out",
            suggestions=["overwrite=true"])  # fmt: skip


def _check_parent(out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_use(out, error, "out=") from None
    if not os.access(out.parent, os.W_OK):
        raise Refused(f"out={out} cannot be written: {out.parent} is not writable", key="out")


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def check_room(out: Path, weights: Mapping[str, Tensor], dtype: str) -> None:
    """Raise :class:`llm.errors.DiskError` unless the disk has room for ``weights``."""
    needed = BYTES[dtype] * sum(tensor.numel() for tensor in weights.values()) + NOT_WEIGHTS
    free = free_bytes(out)
    if free < needed:
        raise DiskError(
            f"{out} needs {format_bytes(needed)} and the disk has {format_bytes(free)} free: "
            "make room, or take a smaller dtype"
        )


def uses_of_hf(source: Source, out: Path) -> dict[str, str]:
    """A line for each program that can use the folder."""
    typed = str(out.resolve())
    uses = {"transformers": f"AutoModelForCausalLM.from_pretrained({typed!r})"}
    uses |= _use_of_chat(source, typed)
    if source.tokenizer.kind == "gpt2":  # llama.cpp's converter knows tokenizers by name only
        return uses | {
            "llama.cpp": for_shell(["python", "convert_hf_to_gguf.py", typed]),
            "ollama": _ollama(out, typed),
        }
    words = [f"ckpt={source.place}", "format=gguf", f"out={out}.gguf"]
    return uses | {"llama.cpp and ollama": command_line("run_export.py", *words)}


def uses_of_gguf(source: Source, out: Path) -> dict[str, str]:
    """A line for each program that can use the file."""
    typed = str(out.resolve())
    # With a chat template llama-cli starts a chat.
    prompt = ["-no-cnv", "-p", "Once upon a time"] if source.chat is None else []
    return {
        "llama.cpp": for_shell(["llama-cli", "-m", typed, *prompt]),
        "python": f"llama_cpp.Llama({typed!r})('Once upon a time')",
        "ollama": _ollama(out, typed),
    }


def uses_of_peft(source: Source, out: Path) -> dict[str, str]:
    """The lines that load the adapters, and the command that writes their base for transformers."""
    assert isinstance(source, CheckpointSource) and source.manifest.base is not None
    typed, base, uses = str(out.resolve()), source.manifest.base.init_from, {}
    if open_source("init_from", base).kind != "hf":
        words = [f"ckpt={base}", "format=hf", "out=BASE"]
        uses["base for transformers"], base = command_line("run_export.py", *words), "BASE"
    loaded = f"AutoModelForCausalLM.from_pretrained({str(Path(base).resolve())!r})"
    uses["peft"] = f"PeftModel.from_pretrained({loaded}, {typed!r})"
    uses |= _use_of_chat(source, typed)
    finetune = source.manifest.finetune
    if finetune is not None and finetune.stored_bits:
        uses["note"] = (
            f"the adapters were trained beside matrices of {finetune.stored_bits} bits, and peft "
            "adds them to the exact ones unless the base is loaded in "
            f"{finetune.stored_bits} bits (load_in_{finetune.stored_bits}bit=True)"
        )
    return uses


def _use_of_chat(source: Source, typed: str) -> dict[str, str]:
    """The line that formats messages with the folder ``typed``, if it has a chat template."""
    if source.chat is None:
        return {}
    messages = "[{'role': 'user', 'content': 'Hi'}], add_generation_prompt=True"
    return {"chat": f"AutoTokenizer.from_pretrained({typed!r}).apply_chat_template({messages})"}


def _ollama(out: Path, typed: str) -> str:
    """The command that adds a folder or file to ollama."""
    plain = out.name.removesuffix(".gguf").lower()
    name = "".join(c if c.isalnum() else "-" for c in plain).strip("-") or "model"
    modelfile = f"printf 'FROM %s\\n' {for_shell([typed])} > Modelfile"
    return f"{modelfile} && ollama create {name} -f Modelfile"


# The functions that write each format, and that say how other programs use the result.
FORMATS = {
    "hf": (export_hf, uses_of_hf),
    "gguf": (export_gguf, uses_of_gguf),
    "peft": (export_peft, uses_of_peft),
    "merged": (export_merged, uses_of_hf),
}
