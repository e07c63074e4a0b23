"""The rows of a run's ``metrics.jsonl``, thinned to the few that a page draws.

A run folder may come from a stranger: only regular files of bounded size are read, and no links.
"""

import json
import math
import os
import stat
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from llm.errors import Refused, require
from llm.experiment.rundir import LONGEST_ROW, METRICS

LARGEST = 1 << 29  # bytes of a metrics.jsonl; a usual row has 250
BLOCK = 1 << 22  # bytes read at once
MOST_VAL, MOST_TRAIN = 100, 120  # points of a curve
UNKNOWN = math.nan


@dataclass
class Curve:
    """Losses in nats per token; NaN stands for an unknown number."""

    step: "array[float]" = field(default_factory=lambda: array("d"))
    tokens: "array[float]" = field(default_factory=lambda: array("d"))
    seconds: "array[float]" = field(default_factory=lambda: array("d"))  # of training
    loss: "array[float]" = field(default_factory=lambda: array("d"))

    def add(self, step: float, tokens: float, seconds: float, loss: float) -> None:
        """Append one point."""
        self.step.append(step)
        self.tokens.append(tokens)
        self.seconds.append(seconds)
        self.loss.append(loss)

    def lowest(self) -> int | None:
        """The index of the lowest loss; None without points."""
        return min(range(len(self.loss)), key=self.loss.__getitem__, default=None)

    def thinned(self, most: int) -> "Curve":
        """At most ``most`` of the points: the first, the last, the lowest, and some between."""
        count = len(self.step)
        if count <= most:
            return self
        chosen = {round(n * (count - 1) / (most - 2)) for n in range(most - 1)}
        chosen.add(self.lowest() or 0)
        thin = Curve()
        for n in sorted(chosen):
            thin.add(self.step[n], self.tokens[n], self.seconds[n], self.loss[n])
        return thin


@dataclass
class Rows:
    """The contents of one ``metrics.jsonl``."""

    train: Curve = field(default_factory=Curve)
    val: Curve = field(default_factory=Curve)
    last: dict[str, Any] = field(default_factory=dict)  # the last row
    last_train: dict[str, Any] = field(default_factory=dict)  # the last row with a training loss
    last_val: dict[str, Any] = field(default_factory=dict)  # the last row with a validation loss
    best_val: dict[str, Any] = field(default_factory=dict)  # the first row of the lowest one
    peak: float = UNKNOWN  # bytes
    is_torn: bool = False  # the last row is not complete
    fault: str = ""  # why the rest of the file could not be read


def read_rows(folder: Path) -> Rows:
    """The rows of a run, with thinned curves; none if it has no ``metrics.jsonl``."""
    rows = Rows()
    try:
        with open_regular(folder / METRICS, LARGEST) as file:
            _read(file, rows)
    except FileNotFoundError:
        pass
    except (OSError, Refused) as error:
        rows.fault = str(error)
    except _Fault as fault:
        rows.fault = f"{METRICS}: {fault}"
    rows.train = rows.train.thinned(MOST_TRAIN)
    rows.val = rows.val.thinned(MOST_VAL)
    return rows


def open_regular(path: Path, largest: int) -> BinaryIO:
    """Open a file to read it.

    Raises ``OSError``, and :class:`llm.errors.Refused` for a link, for anything that is not a
    regular file, and for one with more than ``largest`` bytes.
    """
    # Opening a pipe would wait for its writer.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        handle = os.open(path, flags)
    except OSError:
        require(not os.path.islink(path), f"{path} is a link")
        raise
    try:
        status = os.fstat(handle)
        require(stat.S_ISREG(status.st_mode), f"{path} is not a regular file")
        require(status.st_size <= largest, f"{path} is too large: {status.st_size:,} bytes")
    except Refused:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


class _Fault(Exception):
    """A row that no run writes."""


def _read(file: BinaryIO, rows: Rows) -> None:
    seconds, tokens_before, lowest = 0.0, 0.0, math.inf
    for row in _parsed(file, rows):
        step, tokens = _number(row.get("step")), _number(row.get("tokens"))
        if step != step:
            continue
        speed, known = _number(row.get("tokens_per_second")), _number(row.get("train_seconds"))
        if known == known:
            seconds = known
        elif tokens > tokens_before:  # rows of version 0.2.0 have no train_seconds
            seconds = seconds + (tokens - tokens_before) / speed if speed > 0 else UNKNOWN
        tokens_before, rows.last = tokens, row
        train, val = _number(row.get("train/loss")), _number(row.get("val/loss"))
        if train == train:
            rows.train.add(step, tokens, seconds, train)
            rows.last_train = row
        if val == val:
            rows.val.add(step, tokens, seconds, val)
            rows.last_val = row
            if val < lowest:
                lowest, rows.best_val = val, row
        peak = _number(row.get("peak_memory_bytes"))
        if peak == peak and not peak <= rows.peak:
            rows.peak = peak


def _number(value: object) -> float:
    """A finite number; NaN for anything else."""
    if type(value) is float:
        return value if value - value == 0 else UNKNOWN
    if type(value) is int and -(2**63) < value < 2**63:
        return float(value)
    return UNKNOWN


def _parsed(file: BinaryIO, rows: Rows) -> Iterator[dict[str, Any]]:
    """The rows of a file, a block at a time. Raises :class:`_Fault` naming the line."""
    rest, number = b"", 0
    while block := file.read(BLOCK):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            number += 1
            yield _row(line, number)
        if len(rest) > LONGEST_ROW:
            raise _Fault(f"line {number + 1} is too long")
    rows.is_torn = bool(rest)


def _row(line: bytes, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        raise _Fault(f"line {number} is not UTF-8") from None
    except (ValueError, RecursionError):
        raise _Fault(f"line {number} is not JSON") from None
    if not isinstance(row, dict):
        raise _Fault(f"line {number} is not a JSON object")
    return row
