"""``outputs/ledger.jsonl``: one line for each end of a run, wherever the folder of the run is.

Lines are only appended, so the file keeps the results of runs whose folders were deleted.
"""

import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path

from llm.answer import answer
from llm.commands import overrides_of
from llm.experiment.console import say, warn
from llm.sealed import Plain

LEDGER = Path("outputs/ledger.jsonl")
KEYS = (
    "time", "folder", "sweep", "status", "reason", "seed", "point", "config_digest", "data_digest",
    "git_commit", "overrides", "best_val_loss", "val_loss", "bits_per_byte", "step", "tokens",
    "parameters", "peak_memory_bytes", "train_seconds", "wall_seconds", "note",
)  # fmt: skip
LONGEST = 1 << 20  # bytes of a line
LARGEST = 64 << 20  # bytes that are read, at the end of the file: some 80,000 lines
WAIT_SECONDS = 5.0  # for another process to append its line


def append(folder: Path, facts: Plain) -> None:
    """Append the line of the run in ``folder``; keys that are not in ``facts`` are null.

    A ledger that cannot be written is a warning, because it must not end a run.
    """
    line = {key: facts.get(key) for key in KEYS}
    line |= {"time": datetime.now(UTC).isoformat(timespec="seconds"), "folder": str(folder)}
    if line["reason"] is not None:
        line["reason"] = " ".join(str(line["reason"]).split())
    try:
        LEDGER.parent.mkdir(exist_ok=True)
        _append(json.dumps(line).encode())
    except OSError as error:
        warn(f"{LEDGER} lacks the line of this run: {error.strerror or error}")


def append_job(folder: Path, command: list[str], facts: Plain) -> None:
    """:func:`append` for a job of a sweep that could not do it itself.

    ``command``: the command line of its process.
    """
    overrides = overrides_of(command)
    values = dict(word.partition("=")[::2] for word in overrides)
    seed, note = values.get("seed", ""), values.get("run.note")
    known = {"sweep": str(folder.parent), "overrides": without_place(overrides), "note": note}
    append(folder, known | {"seed": int(seed) if seed.isdecimal() else None} | facts)


def without_place(overrides: list[str]) -> list[str]:
    """The overrides of a job without those that its sweep adds."""
    added = ("run.sweep=", "run.dir=", "run.retry=")
    return [word for word in overrides if not word.startswith(added)]


def _append(line: bytes) -> None:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    handle = os.open(LEDGER, flags, 0o644)
    try:
        _require_file(handle)
        _lock(handle)
        size = os.fstat(handle).st_size
        # A process that was killed, or a full disk, may have left half a line.
        is_torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        raw = b"\n" * is_torn + line + b"\n"
        if os.write(handle, raw) < len(raw):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(handle)  # releases the lock


def _require_file(handle: int) -> None:
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")


def _lock(handle: int) -> None:
    """Wait for the lock, but not for ever: the line is one write at the end of the file, which is
    whole on a local disk without a lock as well.
    """
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:  # a file system without locks
            return


def read(digests: Collection[str] = ()) -> Iterator[Plain]:
    """The lines of the ledger, the newest first; damaged ones are skipped.

    ``digests``: only lines that contain one of them, which is fast in a long ledger.
    """
    wanted = [digest.encode(errors="replace") for digest in digests]  # it may be a stranger's
    for line in reversed(_tail().split(b"\n")):
        if len(line) > LONGEST or (wanted and not any(one in line for one in wanted)):
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict):
            yield values


def _tail() -> bytes:
    """The last bytes of the ledger; empty if the file does not exist or cannot be read."""
    try:
        handle = os.open(LEDGER, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            _require_file(handle)
            file.seek(max(0, os.fstat(handle).st_size - LARGEST))
            return file.read(LARGEST)
    except OSError:
        return b""


def finished_elsewhere(digests: Collection[str], folder: Path | None) -> Plain | None:
    """The newest line of a finished run with one of these config digests in another folder."""
    mine = None if folder is None else os.path.abspath(folder)
    for line in read(digests):
        place, loss, seconds = line.get("folder"), line.get("val_loss"), line.get("train_seconds")
        if (
            line.get("config_digest") in digests
            and line.get("status") == "finished"
            and isinstance(place, str)
            and os.path.abspath(place) != mine
            and type(loss) is float
            and type(seconds) is float
            and seconds > 0  # else it only evaluated the weights of init_from
        ):
            return line
    return None


def show_already_run(digests: Collection[str], folder: Path | None) -> None:
    """Say it if a run with one of these config digests has finished in another folder."""
    earlier = finished_elsewhere(digests, folder) if digests else None
    if earlier is None:
        return
    place, loss = earlier["folder"], earlier["val_loss"]
    is_deleted = not os.path.exists(place)
    say(f"already run: {place}, val loss {loss:.4f}" + " (deleted since)" * is_deleted)
    keys = ("folder", "time", "val_loss", "best_val_loss", "bits_per_byte")
    answer(already_run={key: earlier.get(key) for key in keys})
