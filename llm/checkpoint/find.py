"""Find a checkpoint and read its manifest; torch is not imported."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from llm.commands import command_line
from llm.data.config import DOWNLOADED_NAMES
from llm.errors import Refused, require
from llm.model.config import GPTConfig
from llm.model.finetune import FinetuneOptions
from llm.options import from_plain, option
from llm.sealed import Plain, opened, read_json

FOLDER = "checkpoints"  # in the folder of a run
MANIFEST = "checkpoint.json"  # in a checkpoint
WEIGHTS = "model.safetensors"
FORMAT_VERSION = 1  # since 0.2.0
NAME = re.compile(r"(?:best|step)-(\d{8,})")  # of a checkpoint, with its step


@dataclass(frozen=True)
class Base:
    """The weights that a checkpoint of adapters, or of some of the weights, belongs to."""

    init_from: str  # as typed
    digest: str  # sha256 that identifies them


@dataclass(frozen=True)
class Manifest:
    """The contents of ``checkpoint.json`` without its digest."""

    format_version: int
    step: int = option(at_least=0)
    model: Plain = option()  # the fields of GPTConfig
    tokenizer: Plain = option()
    state: Plain = option()  # the trainer's counters
    identity: Plain = option()  # config_digest, data_digest
    files: dict[str, str] = option()  # file name -> sha256
    template: Plain = field(default_factory=dict)  # of a chat; empty: none
    finetune: FinetuneOptions | None = None  # of a run that trains a part; None: all weights
    base: Base | None = None  # of such a run
    # Tokens that the weights of init_from were made for, if more than model.block_size
    context: int | None = option(None, at_least=1, at_most=2**31)


class TooNew(Refused):
    """A checkpoint of a later version of this program, which this version cannot read."""


def read_manifest(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises :class:`TooNew`, and :class:`llm.errors.Refused` if it is missing, damaged or from
    another program.
    """
    path = checkpoint / MANIFEST
    try:
        values = opened(read_json(path), path)
    except FileNotFoundError:
        raise Refused(f"{checkpoint} is not a checkpoint: it has no {MANIFEST}") from None
    version = values.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise TooNew(
            f"{path} has format_version={version}, and this version reads up to {FORMAT_VERSION}: "
            "update the program"
        )
    require(
        type(version) is int and version == FORMAT_VERSION,  # True equals 1
        f"{path} has format_version={version!r:.40}: not a checkpoint of this program",
    )
    manifest = from_plain(Manifest, values, f"{path}: ")
    is_partial = manifest.finetune is not None and manifest.finetune.is_partial
    fits = is_partial == (manifest.base is not None) == (manifest.finetune is not None)
    require(fits, f"{path} has finetune and base that do not fit each other")
    return manifest


def read_model_config(manifest: Manifest, checkpoint: Path) -> GPTConfig:
    """The resolved options of a checkpoint's network; :class:`llm.errors.Refused` if impossible."""
    where = f"{checkpoint / MANIFEST}: model."
    config = from_plain(GPTConfig, manifest.model, where).resolve()
    require(config.vocab_size, f"{where}vocab_size is missing")
    return config


def find_checkpoint(key: str, typed: str, others: Iterable[str] = ()) -> Path:
    """The checkpoint that ``key=typed`` names: itself, or the best one of a run. If the run was
    evaluated only before its first step, the best one is untrained, and the last one is taken.

    ``others``: files of other programs that ``key`` may name too. Raises
    :class:`llm.errors.Refused` naming these and the newest runs.
    """
    path = Path(typed)
    for below in ("", "checkpoints/best", "checkpoints/last", "best", "last"):
        if os.path.isfile(path / below / MANIFEST):  # Path.is_file raises if the name is too long
            found = path / below
            return _last_of_unevaluated(found) or found if below.endswith("best") else found
    what = "does not exist"
    if os.path.exists(path):
        what = "holds no checkpoint" + "".join(f", no {name}" for name in others)
    runs = [str(run) for run in newest_folders()]
    similar = [] if os.path.exists(path) else _similar(typed, DOWNLOADED_NAMES if others else ())
    raise Refused(
        f"{key}={typed} {what}" + (f"; did you mean '{similar[0]}'?" if similar else newest_runs()),
        key=key,
        suggestions=[f"{key}={one}" for one in dict.fromkeys([*similar, *runs])],
    )


def _similar(typed: str, known: Iterable[str]) -> list[str]:
    """The one of ``known`` or of all runs that is spelled most like ``typed``, if one is."""
    places = {name: name for name in known}
    places |= {run.relative_to("outputs").as_posix(): str(run) for run in _folders()}
    word = typed.rstrip("/").removeprefix("outputs/")[:100]
    return [places[name] for name in get_close_matches(word, places, n=1)]


def named(path: Path) -> str:
    """The name of a checkpoint, with its step also if it is named by a link:
    ``best-00000400 of outputs/a``.
    """
    path, name = without_link(path), _real_name(path)
    if path.parent.name != FOLDER:
        return str(path) if path.name == name else f"{name} of {path.parent}"
    return f"{name} of {path.parent.parent}"


def without_link(path: Path) -> Path:
    """``checkpoints/best-00000400`` for ``checkpoints/best``, and for a user's link to either."""
    while path.is_symlink():
        path = path.parent / os.readlink(path)
    return path


def warning_of(path: Path) -> str | None:
    """A line for a checkpoint that may not be the one that the user expects: the best one of a run
    if it is from before training, and the last one if that was taken for this reason.
    """
    path = without_link(path)
    best, last = path.parent / "best", path.parent / "last"
    if path.parent.name != FOLDER or _step(best) != 0 or not _step(last):
        return None
    if path.samefile(last) and _last_of_unevaluated(best):
        return f"{named(best)} is from before training, and no later step was evaluated"
    if path.samefile(best):
        return (
            "these weights are from before training, because no later evaluation had a lower "
            f"loss: {last} has those of step {_step(last):,}"
        )
    return None


def _last_of_unevaluated(best: Path) -> Path | None:
    """The last checkpoint beside ``best``, if no step after the untrained ``best`` was evaluated;
    None for any other ``best``.
    """
    last = best.with_name("last")
    if _step(best) != 0 or not _step(last):
        return None
    try:
        progress = read_manifest(last).state.get("progress")
    except Refused:
        return None
    evaluated = isinstance(progress, dict) and progress.get("evaluations_since_best")
    return None if evaluated else last


def _step(checkpoint: Path) -> int | None:
    """The step of a checkpoint; None if it cannot be read."""
    match = NAME.fullmatch(_real_name(checkpoint))
    try:  # a copy of a run may have folders in place of links
        return int(match[1]) if match else read_manifest(checkpoint).step
    except Refused:
        return None


def _real_name(checkpoint: Path) -> str:
    return os.path.basename(os.path.realpath(checkpoint))


def newest_runs() -> str:
    """The end of a sentence that names the three newest runs."""
    folders = newest_folders()
    if not folders:
        return f": train one with {command_line('run_train.py')}"
    return f": the newest runs are {', '.join(map(str, folders))}"


def newest_folders() -> list[Path]:
    """The three newest run folders that hold checkpoints."""
    modified = {run: (run / FOLDER).stat().st_mtime for run in _folders()}
    return sorted(modified, key=modified.__getitem__, reverse=True)[:3]


def _folders() -> list[Path]:
    outputs = Path("outputs")
    found = [*outputs.glob(f"*/{FOLDER}"), *outputs.glob(f"*/*/{FOLDER}")]
    return [folder.parent for folder in found]
