"""A report as lines of text: its sentences, the points by their mean, and the failed runs."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.text import Text

from llm.experiment import console as output
from llm.experiment.cells import encodable
from llm.experiment.columns import Filled, table_lines
from llm.experiment.console import duration, say, say_sentence
from llm.experiment.watch import words
from llm.report.numbers import BETTER, NOT_SHOWN, WORSE
from llm.sealed import Plain
from llm.units import format_bytes, format_count, plural

MAX_ROWS, MAX_REASONS = 30, 20
LOSSES = {"best_val_loss": "best val loss", "val_loss": "last val loss"}
SHORT = "bits/byte"  # the title of any other measure
STYLES = {"best": "bold green", BETTER: "green", WORSE: "red", NOT_SHOWN: "yellow"}
# The columns that a narrow terminal lacks, the least important first
DROPPED = ("time", "peak", "parameters", "test loss", "n", "verdict")


def show(document: Plain, paths: Iterable[Path]) -> None:
    """Print a report. ``document``: as in report.json; ``paths``: the files that were written."""
    for sentence in document["answer"]["sentences"]:
        say_sentence(sentence)
    if document["verdict"] is not None:
        say_sentence(verdict_line(document))
    screen = output.console
    # A pipe has no width, so nothing needs to be cut there.
    for line in point_lines(
        document, screen.width if screen.is_terminal else None, screen.encoding
    ):
        screen.print(line)
    _show_failed(document["runs"])
    if command := document["answer"]["command"]:
        say(f"to train the best one twice as long: {command}")
    for path in paths:
        say(str(path))


def verdict_line(document: Plain) -> str:
    """``b compared with a: -0.0500, 95 % interval -0.0700 to -0.0300, p = 0.0003: better``"""
    one, points = document["verdict"], document["points"]
    names = points[one["point"]]["label"], points[one["with"]]["label"]
    parts = [f"{one['difference']:+.4f}"]
    if one["low"] is not None and one["high"] is not None:
        parts.append(f"95 % interval {one['low']:+.4f} to {one['high']:+.4f}")
    if one["p"] is not None:
        parts.append(f"p = {one['p']:.2g}")
    more, hint = one["more_seeds"], ""
    if one["p"] is None:
        hint = f" ({one['test']})"
    elif more is not None:
        hint = f" (about {plural(more, 'more seed')} each would show it)"
    return f"{names[0]} compared with {names[1]}: {', '.join(parts)}: {one['verdict']}{hint}"


def point_lines(document: Plain, width: int | None, encoding: str = "utf-8") -> list[Text]:
    """The table of the points by their mean, the best first; no lines without points."""
    points = sorted(document["points"], key=lambda point: point["mean"])
    if not points:
        return []
    shown = points[:MAX_ROWS]
    verdicts = {one["point"]: one["verdict"] for one in document["comparisons"]}
    verdicts[document["answer"]["best"]] = "best"
    loss = LOSSES.get(document["measure"]["key"], SHORT)
    columns = [
        Filled("n", [Text(str(point["n"])) for point in shown]),
        Filled(loss, [Text(_mean(point)) for point in shown], justify="left"),
        Filled("verdict", [_verdict(verdicts.get(one["index"])) for one in shown], justify="left"),
        Filled("parameters", [_cell(point["parameters"], format_count) for point in shown]),
        Filled("peak", [_cell(point["peak_memory_bytes"], format_bytes) for point in shown]),
        Filled("time", [_cell(point["train_seconds"], duration) for point in shown]),
    ]
    if any(point["test_mean"] is not None for point in shown):
        tested = [_cell(point["test_mean"], "{:.4f}".format) for point in shown]
        columns.insert(2, Filled("test loss", tested))
    names = [encodable(point["label"], encoding) for point in shown]
    lines = table_lines("settings", names, columns, (*DROPPED, loss), width)
    if more := len(points) - len(shown):
        lines.append(Text(f"... {more:,} more", "dim"))
    return lines


def _mean(point: Plain) -> str:
    """``1.6100 ± 0.0200``: the mean and half the width of its interval."""
    if point["low"] is None or point["high"] is None:
        return f"{point['mean']:.4f}"
    return f"{point['mean']:.4f} ± {(point['high'] - point['low']) / 2:.4f}"


def _verdict(verdict: str | None) -> Text:
    return Text(verdict or "", STYLES.get(verdict or "", ""))


def _cell(value: float | None, form: Any) -> Text:
    return Text("" if value is None else form(value))


def _show_failed(runs: Iterable[Plain]) -> None:
    failed = [run for run in runs if run["status"] != "finished"]
    for run in failed[:MAX_REASONS]:
        reason = f": {run['reason']}" if run["reason"] else ""
        say(f"{run['folder']}: {words(run['status'])}{reason}")
    if more := len(failed[MAX_REASONS:]):
        say(f"{more:,} more did not finish")
