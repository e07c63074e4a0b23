"""The folder of one run: its log, its metrics and, last of all, its summary."""

import contextlib
import json
import logging
import math
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llm.disk import cannot_use, could_not_write, replaced, sync_folder
from llm.errors import Diverged, Interrupted, OutOfMemory, Refused, Stop, as_stop, printable
from llm.sealed import Plain, read_json
from llm.signals import Signalled, remember, unswallowed

SUMMARY, METRICS, SAMPLES = "summary.json", "metrics.jsonl", "samples.jsonl"
CONFIG, LOG, DIVERGED = "config.yaml", "run_train.log", "diverged.json"
LONGEST_ROW = 1 << 20  # bytes
SUMMARY_KEYS = (
    "status", "reason", "step", "tokens", "parameters", "best_val_loss", "val_loss",
    "bits_per_byte", "tokens_per_second", "peak_memory_bytes", "reserved_memory_bytes",
    "predicted_memory_bytes", "memory_changes", "wall_seconds", "train_seconds", "config_digest",
    "data_digest", "git_commit", "versions",
)  # fmt: skip
log = logging.getLogger("llm")


def new_folder(root: Path) -> Path:
    """``root/<date>/<time>``, made now and by no other process."""
    now = datetime.now()
    return claim(root / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}")


def claim(stem: Path) -> Path:
    """``stem``, or ``stem-2`` and so on: the first folder that this process could make."""
    for attempt in range(1, 1000):
        path = stem if attempt == 1 else stem.with_name(f"{stem.name}-{attempt}")
        with contextlib.suppress(FileExistsError):
            return make_folder(path, exist_ok=False)
    raise Refused(f"{stem} and a thousand like it exist already")


def make_folder(path: Path, exist_ok: bool = True) -> Path:
    """Create a run folder and see that it can be written; :class:`llm.errors.Refused` if not."""
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
        probe = path / f".probe.{os.getpid()}"
        probe.write_bytes(b"written before the first step, so that the disk does not refuse later")
        probe.unlink()
        sync_folder(path.parent)
    except FileExistsError:
        if exist_ok:
            raise Refused(f"run folder {path} is a file: take another run.name") from None
        raise
    except OSError as error:
        raise cannot_use(path, error) from None
    return path


def read_summary(folder: Path) -> Plain | None:
    """The run's ``summary.json``, or None if it has not ended or was killed."""
    try:
        return read_json(folder / SUMMARY)
    except (FileNotFoundError, NotADirectoryError, Refused):
        return None


def replace_text(path: Path, text: str) -> None:
    """Write a whole file or, where that fails, nothing: it is either the old or the new text."""
    with replaced(path) as file:
        file.write(text.encode())


def write_summary(folder: Path, **values: Any) -> None:
    """Write ``summary.json`` in one piece; keys that are not given are null."""
    summary = {key: values.get(key) for key in SUMMARY_KEYS}
    if summary["reason"] is not None:
        summary["reason"] = " ".join(summary["reason"].split())  # one line, as on the screen
    replace_text(folder / SUMMARY, json.dumps(summary, indent=1) + "\n")


def cut_metrics(folder: Path, step: int) -> None:
    """Drop the rows after ``step``, which a run that goes on from there will write again."""
    for name in (METRICS, SAMPLES):
        path = folder / name
        if path.exists():
            with path.open("rb") as old, replaced(path) as new:
                for line in iter(lambda: old.readline(LONGEST_ROW), b""):
                    if line.endswith(b"\n") and _step(line) <= step:
                        new.write(line)


def _step(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return math.inf  # not a row, or one that a kill cut short


def git_commit() -> str | None:
    """The commit of this code, with ``+`` for uncommitted changes; None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=5
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    """The versions of Python and of the packages on which the numbers depend."""
    packages = ("torch", "numpy", "tiktoken", "hydra-core")
    return {"python": platform.python_version()} | {
        package: version(package) for package in packages
    }


@contextlib.contextmanager
def recording(
    folder: Path, facts: Plain, again: str, remove_if_refused: bool, advice: str = ""
) -> Iterator[Plain]:
    """Log into ``folder`` while inside, and write its summary at the end, whatever the end is.

    ``facts`` are the values known from the start; the caller adds to the yielded copy. ``again`` is
    the command that continues the run. One that is refused after all leaves no folder if
    ``remove_if_refused``. ``advice`` says what to do where memory is not enough.
    """
    handler = _LogFile(folder / LOG, encoding="utf-8")
    handler.setFormatter(_Printable("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    before = (read_summary(folder) or {}).get("wall_seconds")
    before = before if isinstance(before, float) else 0.0
    for of_before in (SUMMARY, DIVERGED):  # this time the end is not reached yet
        (folder / of_before).unlink(missing_ok=True)
    start = time.perf_counter()
    summary = dict(facts)
    status, reason = "failed", None
    try:
        summary |= {"git_commit": git_commit(), "versions": versions()}
        with unswallowed():
            yield summary
        status, reason = "finished", summary.get("reason")
        if reason:
            log.info("ended early at step %s: %s", summary.get("step"), reason)
    except (Stop, Signalled) as error:
        stop = error if isinstance(error, Stop) else Interrupted(f"{error} before the first step")
        remember()  # what is still to be written must be whole
        status, reason = stop.status, str(stop)
        log.error("%s: %s", status, reason)
        if isinstance(stop, Diverged):
            _write_diverged(folder, stop)
        if isinstance(stop, Interrupted):
            raise Interrupted(f"{stop}; to continue: {again}") from None
        raise
    except BaseException as error:
        known = as_stop(error, advice)
        status, reason = (
            (known.status, str(known)) if known else ("failed", f"{type(error).__name__}: {error}")
        )
        log.exception("the run failed")
        if isinstance(known, OutOfMemory):
            known.folder = folder
        if known:
            raise known from error
        raise
    finally:
        remember()
        log.removeHandler(handler)
        handler.close()
        summary |= {
            "status": status,
            "reason": reason,
            "wall_seconds": before + time.perf_counter() - start,
        }
        with _reported(folder, finished=status == "finished"):
            write_summary(folder, **summary)
        # A trainer that has begun tells its step; one that has not has nothing worth keeping.
        if remove_if_refused and status in ("refused", "disk_error") and "step" not in summary:
            _remove(folder)


class _LogFile(logging.FileHandler):
    """A full disk ends the log and not the run: what matters more is written elsewhere."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Called by logging where it would print a traceback."""


class _Printable(logging.Formatter):
    """A log is looked at on a terminal, and a model's text or a path may hold escape codes."""

    def format(self, record: logging.LogRecord) -> str:
        """Called by logging for each record."""
        return printable(super().format(record), keep="\n\t", longest=None)


@contextlib.contextmanager
def _reported(folder: Path, finished: bool) -> Iterator[None]:
    """A summary that cannot be written ends a finished run, but hides no earlier failure."""
    try:
        yield
    except OSError as error:
        if finished:
            raise could_not_write(folder / SUMMARY, error) from error


def _write_diverged(folder: Path, stop: Diverged) -> None:
    """``diverged.json``: where, and with which numbers; NaN and infinity are written as text."""
    numbers = {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in stop.facts.items()
    }
    with _reported(folder, finished=False):
        text = json.dumps({"reason": str(stop), **numbers}, indent=1)
        replace_text(folder / DIVERGED, text + "\n")


def _remove(folder: Path) -> None:
    """Remove a run folder, and ``outputs/<date>`` above it if nothing else is there."""
    shutil.rmtree(folder)
    for parent in list(folder.parents)[:2]:
        if not folder.is_absolute():
            with contextlib.suppress(OSError):
                parent.rmdir()
