"""The ways a command can end early, each with an exit status and a status for ``summary.json``.

A user sees these exceptions as one line without a traceback. Any other exception is a bug of this
program, shown with its traceback and exit status 1.
"""

import errno
import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from unicodedata import category

# Parts of messages of torch (on CUDA and MPS, in cuBLAS, on a CPU) and of the system
OUT_OF_MEMORY = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "bad_alloc",
    "Cannot allocate memory",  # ENOMEM
    "can't start new thread",  # no memory for its stack
)
LONGEST = 4000  # characters of a message
JOINERS = "\u200c\u200d"  # used by Persian, Indic scripts and families of emoji
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


class Stop(Exception):
    """A run ends early for a known reason; the message is one line that says what to do.

    ``key``: the setting that causes it. ``suggestions``: words to type instead, the best first.
    """

    exit_status = 1
    status = "failed"

    def __init__(
        self, message: str = "", *, key: str | None = None, suggestions: Iterable[str] = ()
    ) -> None:
        super().__init__(message)
        self.key, self.suggestions = key, list(suggestions)


class Refused(Stop):
    """Bad configuration or input; raised before anything is written."""

    exit_status = 2
    status = "refused"


class Diverged(Stop):
    """The loss is no longer finite. ``facts`` are plain values, for ``diverged.json``."""

    exit_status = 3
    status = "diverged"

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.facts = facts


class OutOfMemory(Stop):
    """The device has no room for the next allocation."""

    exit_status = 4
    status = "out_of_memory"
    folder: Path | None = None  # of the run


class InUse(Refused):
    """Another process is writing to the run folder, so nothing may be written to it."""


class DiskError(Stop):
    """A checkpoint or log could not be written."""

    exit_status = 5
    status = "disk_error"


class Interrupted(Stop):
    """A signal asked the run to end; its checkpoint is saved and it can be continued."""

    exit_status = 75  # EX_TEMPFAIL of sysexits.h: try again later
    status = "interrupted"


class NotShown(Stop):
    """A gate is not passed. ``status``: ``not_shown``, or ``worse``."""

    exit_status = 10
    status = "not_shown"

    def __init__(self, message: str, status: str = "not_shown") -> None:
        super().__init__(message)
        self.status = status


def require(
    condition: object, message: str, *, key: str | None = None, suggestions: Iterable[str] = ()
) -> None:
    """Raise :class:`Refused` with ``message`` unless ``condition`` holds; see :class:`Stop`."""
    if not condition:
        raise Refused(message, key=key, suggestions=suggestions)


def printable(text: str, keep: str = "\n\t") -> str:
    """``text`` with escapes for control characters, invisible ones and marks that reorder a line.

    Wide spaces, the joiners of emoji and of several scripts, and the characters in ``keep`` stay.
    """
    allowed = JOINERS + keep
    return "".join(
        c if c.isprintable() or c in allowed or category(c) == "Zs" else ascii(c)[1:-1]
        for c in text
    )


def as_line(text: str) -> str:
    """One printable line of bounded length: names in a message may come from a stranger's file."""
    return printable(text[:LONGEST], keep="") + " ..." * (len(text) > LONGEST)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'n_layer'?"`` for the closest of ``known``, or an empty string."""
    close = get_close_matches(word, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def reason_for(path: Path, error: Exception) -> str:
    """Why ``path`` cannot be used, without repeating it. Names a file that stands in place of a
    folder.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOTDIR, errno.EEXIST):
        for place in (path, *path.parents):
            if os.path.lexists(place) and not os.path.isdir(place):
                return f"{'it' if place == path else place} is not a folder"
    return getattr(error, "strerror", None) or str(error)


def as_stop(error: BaseException, advice: str = "") -> Stop | None:
    """The known reason for an error of the system or of torch; None for a bug of this program.

    ``advice`` says what to do if memory runs out.
    """
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, ImportError) and "failed to map segment" in text:
        return OutOfMemory(f"out of memory ({text}): is there a limit, as by `ulimit -v`?")
    if isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY):
        return OutOfMemory(f"out of memory ({text})" + f": {advice}" * bool(advice))
    if "does not have a deterministic implementation" in text:
        return Refused(f"{text.split(', but')[0]}: set trainer.deterministic=false")
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        name = str(error.filename)
        what = name if len(name) <= 60 else f"{name[:60]}..."
        return Refused(f"{what} is too long: most systems take 255 bytes for a name")
    if isinstance(error, PermissionError) and error.filename:  # such as a run of another user
        return Refused(f"{error.filename} cannot be used: {error.strerror}")
    if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
        return DiskError(f"could not write {error.filename or 'a file'}: {error.strerror}")
    return None
