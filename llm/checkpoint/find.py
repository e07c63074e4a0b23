"""Find a checkpoint and read its manifest; torch is not imported."""

import os
from dataclasses import dataclass
from pathlib import Path

from llm.commands import command_line
from llm.errors import Refused, require
from llm.model.config import GPTConfig
from llm.options import from_plain, option
from llm.sealed import Plain, opened, read_json

FOLDER = "checkpoints"  # in the folder of a run
MANIFEST = "checkpoint.json"  # in a checkpoint
FORMAT_VERSION = 1  # since 0.2.0


@dataclass(frozen=True)
class Manifest:
    """The contents of ``checkpoint.json``, besides its digest."""

    format_version: int
    step: int = option(at_least=0)
    model: Plain = option()  # the fields of GPTConfig
    tokenizer: Plain = option()
    state: Plain = option()  # the trainer's counters
    identity: Plain = option()  # config_digest, data_digest
    files: dict[str, str] = option()  # file name -> sha256


class TooNew(Refused):
    """A checkpoint of a later version of this program, which this version cannot read."""


def read_manifest(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises :class:`TooNew`, and :class:`llm.errors.Refused` if it is missing, damaged or not of this
    program.
    """
    path = checkpoint / MANIFEST
    try:
        values = read_json(path)
    except FileNotFoundError:
        raise Refused(f"{checkpoint} is not a checkpoint: it has no {MANIFEST}") from None
    values = opened(values, path)  # first of all: a flipped bit may have changed the version
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
    return from_plain(Manifest, values, f"{path}: ")


def read_model_config(manifest: Manifest, checkpoint: Path) -> GPTConfig:
    """The resolved options of a checkpoint's network; :class:`llm.errors.Refused` for options that
    no network can have.
    """
    where = f"{checkpoint / MANIFEST}: model."
    config = from_plain(GPTConfig, manifest.model, where).resolve()
    require(config.vocab_size, f"{where}vocab_size is missing")
    return config


def find_checkpoint(key: str, typed: str) -> Path:
    """The checkpoint that ``key=typed`` names: itself, or the best one of ``checkpoints/`` or a
    run.

    Raises :class:`llm.errors.Refused` saying what is missing, and naming the newest runs.
    """
    path = Path(typed)
    places = [path / kind for kind in ("", "checkpoints/best", "checkpoints/last", "best", "last")]
    for place in places:
        if os.path.isfile(place / MANIFEST):  # Path.is_file raises where a name is too long
            return place
    what = "holds no checkpoint" if os.path.exists(path) else "does not exist"
    raise Refused(f"{key}={typed} {what}{newest_runs()}")


def newest_runs(count: int = 3) -> str:
    """The end of a sentence that names the newest runs."""
    found = [p for depth in ("*", "*/*") for p in Path("outputs").glob(f"{depth}/{FOLDER}")]
    newest = sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)[:count]
    listed = ", ".join(str(path.parent) for path in newest)
    train = command_line("run_train.py")
    return f": the newest runs are {listed}" if newest else f": train one with {train}"
