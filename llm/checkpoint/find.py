"""Which checkpoint is meant by what was typed, and which runs there are; without torch."""

import os
from pathlib import Path

from llm.checkpoint.formats import MANIFEST
from llm.commands import command_line
from llm.errors import Refused

FOLDER = "checkpoints"  # in the folder of a run


def find_checkpoint(key: str, typed: str) -> Path:
    """The folder meant by ``key=typed``: a checkpoint, ``checkpoints/``, or a run (its best).

    Raises :class:`llm.errors.Refused` saying what is missing, and naming the newest runs there are.
    """
    path = Path(typed)
    places = [path / kind for kind in ("", "checkpoints/best", "checkpoints/last", "best", "last")]
    for place in places:
        if os.path.isfile(place / MANIFEST):  # Path.is_file raises where a name is too long
            return place
    what = "holds no checkpoint" if os.path.exists(path) else "does not exist"
    raise Refused(f"{key}={typed} {what}{newest_runs()}")


def newest_runs(count: int = 3) -> str:
    """The end of a sentence that tells which runs there are."""
    found = [p for depth in ("*", "*/*") for p in Path("outputs").glob(f"{depth}/{FOLDER}")]
    newest = sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)[:count]
    listed = ", ".join(str(path.parent) for path in newest)
    train = command_line("run_train.py")
    return f": the newest runs are {listed}" if newest else f": train one with {train}"
