"""``summary.csv`` in the folder of a sweep: one row per job, the lowest validation loss first."""

import csv
import io
import math
from collections.abc import Sequence
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


def write_csv(folder: Path, jobs: Sequence[Watched]) -> None:
    """Replace ``summary.csv`` in ``folder``."""
    replace_text(folder / SUMMARY_CSV, BOM + csv_text(jobs))


def csv_text(jobs: Sequence[Watched]) -> str:
    """A table with one column for each key that varies.

    ``best`` is ``*`` for the finished job with the lowest validation loss.
    """
    keys = list(dict.fromkeys(key for job in jobs for key in job.values))
    ordered = by_loss(jobs)
    finished = (job for job in ordered if job.is_finished and job.is_comparable)
    best = next((job for job in finished if job.best is not None), None)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["best", "job", *map(_as_text, keys), "status", "reason", *NUMBERS])
    for job in ordered:
        status = FINISHED if job.is_finished else job.state
        texts = [job.folder.name, *(job.values.get(key, "") for key in keys), status, job.reason]
        numbers = [_digits(job.number(key)) for key in NUMBERS]
        writer.writerow(["*" if job is best else "", *map(_as_text, texts), *numbers])
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
