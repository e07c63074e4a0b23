"""One process at a time in a folder, or at a place that it replaces.

The system releases its lock when the process dies, so a crash leaves no folder locked.
"""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from llm.disk import cannot_use
from llm.errors import InUse, Refused

LOCK = ".lock"  # contains the process id of its owner
# The key that names a folder, for messages
KEYS = {"run": "run.name", "sweep": "run.sweep", "report": "out", "export": "out"}


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False, kind: str = "run") -> Iterator[str | None]:
    """Lock ``folder`` while inside. Yields a warning if the file system has no locks, else None.

    If another process has the lock, ``wait`` for it or raise :class:`llm.errors.InUse`. ``kind``: a
    key of :data:`KEYS`. Raises
    :class:`llm.errors.Refused` if no lock file can be made in ``folder``.
    """
    with _locked(folder / LOCK, folder, wait, kind) as warning:
        yield warning


@contextlib.contextmanager
def locked_beside(place: Path, kind: str) -> Iterator[None]:
    """Lock a file or folder that the process will replace, by a hidden file beside it. Raises as
    :func:`locked`.
    """
    with _locked(place.with_name(f".{place.name}{LOCK}"), place, False, kind):
        yield


@contextlib.contextmanager
def _locked(path: Path, place: Path, wait: bool, kind: str) -> Iterator[str | None]:
    """``path``: the file with the lock of ``place``."""
    handle, warning = _acquire(path, place, wait, kind)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield warning
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def owner_of(folder: Path) -> str | None:
    """The id of the process that has locked ``folder``; None if no process has.

    Only to be called by a process that starts all runs in ``folder``: for a moment it locks the
    folder itself.
    """
    try:
        handle = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(handle, 20).decode(errors="replace").strip() or "unknown"
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(handle)
    return None


def _acquire(path: Path, place: Path, wait: bool, kind: str) -> tuple[int, str | None]:
    """A descriptor of the locked file ``path``, and a warning if it could not be locked."""
    while True:
        handle = _open(path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 20).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise InUse(
                f"{place} is in use by another {kind} (process {owner}): wait for it, "
                f"or take another {KEYS[kind]}"
            ) from None
        except OSError as error:  # some network file systems have no locks
            reason = f"{place} cannot be locked ({error.strerror})"
            return handle, f"{reason}: let no other run write to it"
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(handle)):
                return handle, None
        os.close(handle)  # its owner has deleted the file since we opened it


def _open(path: Path) -> int:
    try:
        # Follow no link: the file behind it would be overwritten.
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise cannot_use(path.parent, error) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Refused(f"{path} is not a regular file: delete it")
    return handle
