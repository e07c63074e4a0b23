"""Data of single runs for the page: curves, samples, and the end of the log of a failed run.

All of it is bounded, so that the page stays small for any number of runs.
"""

import contextlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from llm.errors import Refused, printable
from llm.experiment.rundir import LOG, LONGEST_ROW, SAMPLES
from llm.experiment.tail import number
from llm.report.record import RunRecord
from llm.report.rows import Curve, open_regular
from llm.report.runs import Reader
from llm.sealed import Plain

MOST_RUNS = 300  # that have curves and samples
MOST_POINTS = 18_000  # of all curves: with 45 bytes each, half of the page
MOST_TEXT = 2000  # characters of a sample
ALL_TEXTS = 200_000  # bytes of all samples together
MOST_LINES, LONGEST_LINE, MOST_LOGS = 15, 300, 100
TAIL = 1 << 16  # bytes at the end of a log
LARGEST = 1 << 32  # bytes of a log or of the samples; only the end is read
DIGITS = 5


def extra(reader: Reader, records: Sequence[RunRecord], most_runs: int = MOST_RUNS) -> Plain:
    """The page's data beside the document: ``curves``, ``samples`` and ``notes``.

    ``records``: as ``reader`` has returned them. At most ``most_runs`` runs have curves: those with
    the lowest losses.
    """
    drawn = _by_loss(records)[:most_runs]
    most = MOST_POINTS // max(1, len(drawn))
    curves = [_curve(reader, records, index, most) for index in sorted(drawn)]
    notes = list(reader.notes)
    if len(drawn) < len(records):
        notes.append(f"Curves and samples are of the {most_runs} runs with the lowest loss.")
    return {"curves": curves, "samples": _samples(records, drawn), "notes": notes}


def logs(records: Sequence[RunRecord]) -> dict[int, str]:
    """The last lines of the log of runs that did not finish, by index."""
    failed = [n for n, record in enumerate(records) if not record.is_finished]
    texts = {n: end_of_log(Path(records[n].folder)) for n in failed[:MOST_LOGS]}
    return {n: text for n, text in texts.items() if text}


def end_of_log(folder: Path) -> str:
    """The last lines of ``run_train.log``, printable; empty if the run has none."""
    text = _end_of(folder / LOG, TAIL).decode(errors="replace")
    lines = text.rstrip().splitlines()[-MOST_LINES:]
    return "\n".join(printable(line[:LONGEST_LINE], keep="\t") for line in lines)


def last_sample(folder: Path) -> Plain | None:
    """The newest text that the run has written, with its scores; None without a sample."""
    for line in reversed(_end_of(folder / SAMPLES, LONGEST_ROW).split(b"\n")):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # torn, or cut at the start
            continue
        if isinstance(row, dict) and isinstance(row.get("text"), str):
            break
    else:
        return None
    scores = {str(key)[:40]: number(row, key) for key in row if key != "step"}
    return {
        "step": number(row, "step"),
        "prompt": str(row.get("prompt", ""))[:MOST_TEXT],
        "text": row["text"][:MOST_TEXT],
        "scores": {key: value for key, value in scores.items() if value is not None},
    }


def _by_loss(records: Sequence[RunRecord]) -> list[int]:
    """The indices of all runs, the lowest loss first."""

    def loss(index: int) -> float:
        lowest = records[index].best_val_loss
        return math.inf if lowest is None else lowest

    return sorted(range(len(records)), key=loss)


def _curve(reader: Reader, records: Sequence[RunRecord], index: int, most: int) -> Plain:
    """The curves of one run, of at most ``most`` points."""
    train, val = reader.curves(records[index].folder)
    flops = records[index].flops_per_token
    most_val = max(10, most - min(len(train.step), most // 2))
    val = val.thinned(most_val)
    train = train.thinned(max(10, most - len(val.step)))
    return {"run": index, "val": _columns(val, flops), "train": _columns(train, flops)}


def _columns(curve: Curve, flops_per_token: float | None) -> Plain:
    per_token = math.nan if flops_per_token is None else flops_per_token
    return {
        "step": [_rounded(step, exact=True) for step in curve.step],
        "tokens": [_rounded(tokens) for tokens in curve.tokens],
        "seconds": [_rounded(seconds) for seconds in curve.seconds],
        "flops": [_rounded(tokens * per_token) for tokens in curve.tokens],
        "loss": [_rounded(loss) for loss in curve.loss],
    }


def _rounded(value: float, exact: bool = False) -> float | int | None:
    """``value`` with 5 digits, or a whole number; None for NaN and infinity."""
    if not math.isfinite(value):
        return None
    short = value if exact else float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() else short


def _samples(records: Sequence[RunRecord], drawn: Sequence[int]) -> list[Plain]:
    samples: list[Plain] = []
    left = ALL_TEXTS
    for index in drawn:
        sample = last_sample(Path(records[index].folder)) if left > 0 else None
        if sample is not None:
            left -= len((sample["text"] + sample["prompt"]).encode(errors="replace"))
            samples.append({"run": index} | sample)
    return samples


def _end_of(path: Path, most: int) -> bytes:
    """The last ``most`` bytes of a regular file; none if it cannot be read."""
    with contextlib.suppress(OSError, Refused), open_regular(path, LARGEST) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - most))
        return file.read(most)
    return b""
