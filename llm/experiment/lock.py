"""One process at a time in a run folder.

The system lets go of a lock when its process dies, however that happens, so that no crash leaves
one behind.
"""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from llm.disk import cannot_use
from llm.errors import InUse, Refused
from llm.experiment.console import warn

LOCK = ".lock"  # holds the number of the process; the lock itself is the system's


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` while inside; :class:`llm.errors.InUse` if another process does."""
    handle = _acquired(folder / LOCK)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        os.close(handle)


def _acquired(path: Path) -> int:
    """A descriptor of the file, which is locked, and still has its name."""
    while True:
        try:
            # No link: it might lead to a file of the user's, which would be overwritten.
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise cannot_use(path.parent, error) from None
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise Refused(f"{path} is not a regular file: take another run.name")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 20).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise InUse(
                f"{path.parent} is in use by another run (process {owner}): wait for it, "
                "or take another run.name"
            ) from None
        except OSError as error:  # some network file systems know no locks
            warn(f"{path.parent} cannot be locked ({error.strerror}): let no other run write to it")
            return handle
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(handle)):
                return handle
        os.close(handle)  # its owner has removed it since it was opened
