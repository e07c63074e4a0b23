"""``eval.json`` of a run: the results of ``run_eval.py``, by the name of their task.

    {"schema": 1, "checkpoint": "checkpoints/best-00000400", "weights": sha256,
     "tasks": {"loss": {"kind": "loss", "loss": 1.61, ...}, "grammar": {"kind": "pairs", ...}},
     "digest": sha256 of the rest}

All results are of one checkpoint. docs/evaluation.md has the keys of each kind.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from llm.disk import writing
from llm.errors import Refused, require
from llm.experiment.rundir import EVAL, replace_text
from llm.options import from_plain, option
from llm.sealed import Plain, opened, read_json, sealed

SCHEMA = 1


@dataclass(frozen=True)
class EvalFile:
    """The values of ``eval.json``."""

    schema: int
    checkpoint: str
    weights: str
    tasks: dict[str, Plain] = option()


def read_results(folder: Path) -> EvalFile | None:
    """The results in the folder of a run; None without the file.

    Raises :class:`llm.errors.Refused` for a file that is damaged or of another version.
    """
    path = folder / EVAL
    try:
        values = opened(read_json(path), path)
    except FileNotFoundError:
        return None
    require(values.get("schema") == SCHEMA, f"{path} is of another version of this program")
    return from_plain(EvalFile, values, f"{path}: ")


def write_results(folder: Path, checkpoint: str, weights: str, results: Plain) -> None:
    """Add ``results`` to ``eval.json``, and delete results of other weights or a damaged file."""
    earlier: EvalFile | None = None
    with contextlib.suppress(Refused):
        earlier = read_results(folder)
    tasks = earlier.tasks if earlier is not None and earlier.weights == weights else {}
    values = {
        "schema": SCHEMA, "checkpoint": checkpoint, "weights": weights, "tasks": tasks | results,
    }  # fmt: skip
    with writing(folder / EVAL):
        replace_text(folder / EVAL, sealed(values))


def scores(tasks: Plain) -> dict[str, float]:
    """The main numbers of results, as columns: ``{"loss": 1.61, "bits/byte": 2.3, "mine": 0.8}``.

    A loss gives two columns, itself and its bits per byte; questions give the share of correct
    answers.
    """
    found: dict[str, float] = {}
    for name, result in tasks.items():
        short = "bits/byte" if name == "loss" else f"{name} bits/byte"
        columns = {"loss": name, "bits_per_byte": short, "acc": name}
        for key, column in columns.items():
            if isinstance(value := result.get(key), int | float) and not isinstance(value, bool):
                found[column] = float(value)
    return found
