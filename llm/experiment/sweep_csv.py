"""``summary.csv``: one row per job of a sweep, or per run of a report, the lowest loss first."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llm.errors import printable
from llm.experiment.rundir import replace_text
from llm.experiment.sweep_table import by_loss
from llm.experiment.watch import FINISHED, Watched

SUMMARY_CSV = "summary.csv"
NUMBERS = (
    "step", "tokens", "parameters", "best_val_loss", "val_loss", "bits_per_byte",
    "tokens_per_second", "peak_memory_bytes", "predicted_memory_bytes", "wall_seconds",
    "train_seconds",
)  # fmt: skip
# Excel reads a file as UTF-8 only if it starts with this mark; pandas and polars skip it.
BOM = "\ufeff"


@dataclass(frozen=True)
class CsvRow:
    """A run. ``name``: of its folder; ``values``: of the keys that vary."""

    name: str
    values: Mapping[str, str]
    status: str
    reason: str
    numbers: Mapping[str, float | None]  # by NUMBERS
    is_best: bool = False
    scores: Mapping[str, float] = field(default_factory=dict)  # of run_eval.py


def write_csv(folder: Path, rows: Sequence[CsvRow], name: str = "job") -> None:
    """Replace ``summary.csv`` in ``folder``."""
    replace_text(folder / SUMMARY_CSV, BOM + csv_text(rows, name))


def rows_of(jobs: Sequence[Watched]) -> list[CsvRow]:
    """The jobs of a sweep, the lowest validation loss first. The first finished one is the best."""
    ordered = by_loss(jobs)
    finished = (job for job in ordered if job.is_finished and job.is_comparable)
    best = next((job for job in finished if job.best is not None), None)
    return [
        CsvRow(
            job.folder.name, job.values, FINISHED if job.is_finished else job.state, job.reason,
            {key: job.number(key) for key in NUMBERS}, job is best,
        )
        for job in ordered
    ]  # fmt: skip


def csv_text(rows: Sequence[CsvRow], name: str = "job") -> str:
    """A table with one column for each key that varies. ``name``: the title of the names.

    ``best`` is ``*`` for the best run.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row.values))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    scores = list(dict.fromkeys(score for row in rows for score in row.scores))
    titles = [*map(_as_text, keys), "status", "reason", *NUMBERS, *map(_as_text, scores)]
    writer.writerow(["best", name, *titles])
    for row in rows:
        texts = [row.name, *(row.values.get(key, "") for key in keys), row.status, row.reason]
        numbers = [_digits(row.numbers.get(key)) for key in NUMBERS]
        numbers += [_digits(row.scores.get(score)) for score in scores]
        writer.writerow(["*" if row.is_best else "", *map(_as_text, texts), *numbers])
    return file.getvalue()


def _digits(value: float | None) -> str:
    if value is None:
        return ""
    return str(int(value)) if value == int(value) else str(value)


def _as_text(text: str) -> str:
    """``text`` on one line, with ``'`` before it where a spreadsheet would compute a formula."""
    line = printable(text, keep="")
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) and not _is_number(line) else line


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))  # a spreadsheet takes -inf for a formula
    except ValueError:
        return False
