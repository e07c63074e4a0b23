"""The folder of one run: its log, its metrics and its summary, which is written last."""

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

from llm.disk import TEMPORARY, cannot_use, delete, replaced, sync_folder, writing
from llm.errors import (
    DiskError,
    Diverged,
    Interrupted,
    OutOfMemory,
    Refused,
    Stop,
    as_stop,
    printable,
    require,
)
from llm.experiment.ledger import append
from llm.lock import KEYS
from llm.sealed import Plain, read_json
from llm.signals import Signalled, remember, said_at_once, unswallowed

SUMMARY, METRICS, SAMPLES = "summary.json", "metrics.jsonl", "samples.jsonl"
CONFIG, LOG, DIVERGED = "config.yaml", "run_train.log", "diverged.json"
TEST = "test.json"  # the loss on the test split, which a report measures
EVAL = "eval.json"  # the results of run_eval.py
# All files and folders of a run, in the order in which they are deleted.
RUN_FILES = (
    SUMMARY, DIVERGED, TEST, EVAL, "checkpoints", METRICS, SAMPLES, LOG, "profile.txt",
    "profile.json", "wandb", CONFIG,
)  # fmt: skip
LONGEST_ROW = 1 << 20  # bytes
SUMMARY_KEYS = (
    "status", "reason", "step", "tokens", "parameters", "best_val_loss", "val_loss",
    "bits_per_byte", "evaluation", "tokens_per_second", "peak_memory_bytes",
    "reserved_memory_bytes", "predicted_memory_bytes", "memory_changes", "wall_seconds",
    "train_seconds", "config_digest", "data_digest", "git_commit", "versions",
)  # fmt: skip
log = logging.getLogger("llm")


def new_folder(root: Path) -> Path:
    """Make ``root/<date>/<time>``, with a suffix if another process has just made it."""
    now = datetime.now()
    return claim(root / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}")


def claim(stem: Path) -> Path:
    """Make ``stem``, or ``stem-2`` and so on: the first that does not exist yet."""
    for attempt in range(1, 1000):
        path = stem if attempt == 1 else stem.with_name(f"{stem.name}-{attempt}")
        with contextlib.suppress(FileExistsError):
            return make_folder(path, exist_ok=False)
    raise Refused(f"{stem} and a thousand folders like it exist already: delete some")


def make_folder(path: Path, exist_ok: bool = True, kind: str = "run") -> Path:
    """Make the folder of a run or a sweep and test that files can be written in it.

    Raises :class:`llm.errors.Refused` if not. ``kind``: a key of :data:`llm.lock.KEYS`.
    """
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
        probe = path / f".probe{TEMPORARY}"
        probe.write_bytes(b"better to fail now than at the first checkpoint")
        probe.unlink()
        sync_folder(path.parent)
    except OSError as error:
        if isinstance(error, FileExistsError) and os.path.lexists(path):
            if exist_ok:
                raise Refused(
                    f"{kind} folder {path} is a file: take another {KEYS[kind]}"
                ) from None
            raise
        raise cannot_use(path, error, f"{kind} folder ") from None
    return path


def read_summary(folder: Path) -> Plain | None:
    """The run's ``summary.json``; None if the run has not ended or the file is damaged."""
    try:
        return read_json(folder / SUMMARY)
    except (FileNotFoundError, NotADirectoryError, Refused):
        return None


def replace_text(path: Path, text: str) -> None:
    """Replace the contents of a file; if that fails, the old text stays."""
    with replaced(path) as file:
        file.write(text.encode())


def write_summary(folder: Path, **values: Any) -> None:
    """Replace ``summary.json``; missing keys are null."""
    summary = {key: values.get(key) for key in SUMMARY_KEYS}
    if summary["reason"] is not None:
        summary["reason"] = " ".join(summary["reason"].split())  # one line, as on the screen
    replace_text(folder / SUMMARY, json.dumps(summary, indent=1) + "\n")


def require_run_files(folder: Path) -> None:
    """Raise :class:`llm.errors.Refused` if ``folder`` has files that no run writes."""
    others = sorted({path.name for path in folder.glob("[!.]*")} - set(RUN_FILES))
    listed = ", ".join(others[:3]) + ", ..." * (len(others) > 3)
    require(not others, f"{folder} also holds {listed}, so it is not replaced: move that away")


def discard_run(folder: Path) -> None:
    """Delete all files of the run in ``folder``, which is locked, so that another can start there.

    If interrupted, the remainder is the old run, perhaps without checkpoints, or an empty folder:
    summary.json goes first, and config.yaml last. Raises :class:`llm.errors.Refused`, and deletes
    nothing, if there are files that no run writes.
    """
    require_run_files(folder)
    discarded = folder / f".earlier{TEMPORARY}"
    try:
        delete(discarded)
        discarded.mkdir()
        for name in RUN_FILES:
            if (folder / name).exists():
                (folder / name).rename(discarded / name)
                sync_folder(folder)
        delete(discarded)
    except OSError as error:
        raise cannot_use(folder, error, "run folder ") from None


def cut_metrics(folder: Path, step: int) -> None:
    """Delete the rows after ``step``: a run that resumes there writes them again."""
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
        return math.inf  # not a whole row


def git_commit() -> str | None:
    """The commit of this code, with ``+`` for uncommitted changes; None outside a checkout."""
    command = ["git", "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
            timeout=5,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that affect the numbers."""
    packages = ("torch", "numpy", "tiktoken", "hydra-core")
    return {"python": platform.python_version()} | {
        package: version(package) for package in packages
    }


@contextlib.contextmanager
def recording(
    folder: Path, facts: Plain, again: str, remove_if_refused: bool, advice: str = ""
) -> Iterator[Plain]:
    """Log into ``folder`` while inside. At the end, however it ends, write ``summary.json`` and
    append a line to the ledger.

    ``facts``: values for both; yields a copy for the caller to add to. ``again``: the
    command that resumes the run. ``remove_if_refused``: delete the folder if the run is refused
    before its first step. ``advice``: what to do if memory runs out.
    """
    start, summary = time.perf_counter(), dict(facts)
    before = (read_summary(folder) or {}).get("wall_seconds")
    stop: Stop | None = None
    cause: BaseException | None = None
    with _logging_to(folder / LOG), said_at_once(f"stopped at once; to continue: {again}"):
        for stale in (SUMMARY, DIVERGED, TEST, EVAL):  # another checkpoint may become the best one
            (folder / stale).unlink(missing_ok=True)
        try:
            summary |= {"git_commit": git_commit(), "versions": versions()}
            with unswallowed():
                yield summary
        except BaseException as error:
            cause, stop = error, _reason(error, advice)
        remember()  # a signal must not interrupt the writing below
        if stop is not None:
            summary |= {"status": stop.status, "reason": str(stop)}
            traceback = None if isinstance(cause, Stop | Signalled) else cause
            log.error("%s: %s", stop.status, stop, exc_info=traceback)
        elif reason := summary.get("reason"):
            log.info("ended early at step %s: %s", summary.get("step"), reason)
    earlier = before if isinstance(before, float) else 0.0
    summary["wall_seconds"] = earlier + time.perf_counter() - start
    if stop is None or cause is None:
        _finish(folder, summary | {"status": "finished"})
        return
    with contextlib.suppress(OSError):  # a full disk must not hide why the run ended
        if isinstance(stop, Diverged):
            _write_diverged(folder, stop)
        write_summary(folder, **summary)
    has_started = "step" in summary
    if remove_if_refused and isinstance(stop, Refused | DiskError) and not has_started:
        _remove(folder)
    else:
        append(folder, summary)
    if isinstance(stop, Interrupted):
        raise Interrupted(f"{stop}; to continue: {again}") from None
    if isinstance(stop, OutOfMemory):
        stop.folder = folder
    if stop is cause or type(stop) is Stop:
        raise cause
    raise stop from cause


def _finish(folder: Path, summary: Plain) -> None:
    """Write the summary of a finished run, and its line in the ledger."""
    try:
        with writing(folder / SUMMARY):
            write_summary(folder, **summary)
    except DiskError as error:
        summary |= {"status": error.status, "reason": str(error)}
        raise
    finally:
        append(folder, summary)


def _reason(error: BaseException, advice: str) -> Stop:
    """The known reason behind an error, or else a plain ``Stop``."""
    if isinstance(error, Stop):
        return error
    if isinstance(error, Signalled):
        return Interrupted(f"{error} before the first step")
    if isinstance(error, KeyboardInterrupt):  # the second one, in a program that lives on
        return Interrupted("stopped at once by Ctrl-C")
    return as_stop(error, advice) or Stop(f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


class _LogFile(logging.FileHandler):
    """On a full disk the log ends and the run continues; control characters are escaped."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Called by logging after a failed write; by default it prints a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Called by logging for each record."""
        return printable(super().format(record))


def _write_diverged(folder: Path, stop: Diverged) -> None:
    """Write ``diverged.json``: the reason and the numbers, non-finite ones as strings."""
    numbers = {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in stop.facts.items()
    }
    replace_text(folder / DIVERGED, json.dumps({"reason": str(stop), **numbers}, indent=1) + "\n")


def _remove(folder: Path) -> None:
    """Delete a run folder and, if they are empty then, ``outputs/<date>`` and ``outputs``."""
    shutil.rmtree(folder)
    if not folder.is_absolute():
        for parent in list(folder.parents)[:2]:
            with contextlib.suppress(OSError):
                parent.rmdir()
