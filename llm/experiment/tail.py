"""The newest numbers of a ``metrics.jsonl`` that another process writes."""

import contextlib
import json
import math
import os
import stat
from pathlib import Path
from typing import Any

from llm.experiment.rundir import LONGEST_ROW

HIGHEST = ("peak_memory_bytes",)


def number(values: dict[str, Any], key: str) -> float | None:
    """A finite number in ``values``; None for anything else."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    with contextlib.suppress(OverflowError):
        return value if math.isfinite(value) else None
    return None


class Metrics:
    """The last value of each key, the highest ``peak_memory_bytes``, and ``best_val_loss``.

    :meth:`refresh` reads only the rows that were added. If the file was cut or rewritten, as by a
    run that resumes, it is read again from the start.
    """

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._forget()

    def _forget(self) -> None:
        self.numbers: dict[str, float] = {}
        self.time = 0.0  # when the file was last written
        self._offset, self._last = 0, b""  # the end of the last whole row, and that row

    def refresh(self) -> None:
        """Read the new rows; a file that cannot be read has none."""
        try:
            # Opening a pipe would wait for its writer.
            handle = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            self._forget()
            return
        with open(handle, "rb") as file, contextlib.suppress(OSError):
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                return
            file.seek(self._offset - len(self._last))
            if file.read(len(self._last)) != self._last:
                self._forget()
                file.seek(0)
            self.time = status.st_mtime
            while line := file.readline(LONGEST_ROW):
                if not line.endswith(b"\n") and len(line) < LONGEST_ROW:
                    return  # the row is still being written
                self._offset, self._last = self._offset + len(line), line
                self._add(line)

    def _add(self, line: bytes) -> None:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(row, dict):
            return
        new = {key: value for key in row if (value := number(row, key)) is not None}
        for key in HIGHEST:
            if key in new:
                new[key] = max(new[key], self.numbers.get(key, 0.0))
        if "val/loss" in new:
            new["best_val_loss"] = min(new["val/loss"], self.numbers.get("best_val_loss", math.inf))
        self.numbers |= new
