"""Files that survive a crash of the process or of the machine, what they may be called, and words
for a disk that fails.
"""

import contextlib
import errno
import os
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from llm.errors import CANNOT_WRITE, DiskError, Refused, Stop, require
from llm.units import format_bytes

LONGEST_NAME = 200  # bytes; file systems take 255, and something is added to some names


def check_name(key: str, name: str) -> str:
    """``name`` as a folder can be called on every system, in Unicode's composed form (NFC), so that
    an accented letter is the same whatever keyboard it comes from.

    Raises :class:`llm.errors.Refused` naming ``key`` for other characters than letters and digits
    of any script, ``.``, ``_`` and ``-``, for dots only, and for too long a name.
    """
    name = unicodedata.normalize("NFC", name)
    plain = all(character.isalnum() or character in "._-" for character in name)
    require(
        plain and name.strip("."),
        f"{key}={name} must be letters, digits, . _ or - (letters of any script; no spaces)",
    )
    size = len(name.encode())
    require(
        size <= LONGEST_NAME,
        f"{key}={name[:40]}... has {size} bytes, and a name may have {LONGEST_NAME}: shorten it",
    )
    return name


def check_path(key: str, path: str) -> None:
    """Raise :class:`llm.errors.Refused` where a part of ``path`` is longer than any file system
    takes: before the folders above it are made.
    """
    part = max(Path(path).parts, key=lambda part: len(os.fsencode(part)), default="")
    size = len(os.fsencode(part))
    require(size <= 255, f"{key}: {part[:40]}... has {size} bytes, and a name may have 255")


def write_durably(path: Path, raw: bytes) -> None:
    """Write a new file and wait until it is on the disk; its name is so only after sync_folder."""
    with path.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())


# Errors of file systems that have no fsync for folders: no more can be done there.
UNKNOWN_FOR_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A new file, which takes the place of ``path`` once all of it is written.

    Written beside it, since a rename is atomic within one file system only.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk: a rename alone may be undone by a crash."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNKNOWN_FOR_FOLDERS:
            raise
    finally:
        os.close(handle)


def free_bytes(path: Path) -> int:
    """Bytes that may still be written where ``path`` is, or will be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def could_not_write(path: Path, error: OSError) -> DiskError:
    """What to tell of a write that failed: the path, the reason, and how much room there is."""
    reason = error.strerror or str(error)
    return DiskError(f"{path} could not be written: {reason} ({_room(path)})")


def _room(path: Path) -> str:
    while not path.exists():
        path = path.parent
    found = os.statvfs(path)
    if found.f_files and not found.f_favail:  # some file systems do not count their files
        return "there is no room for one file more, of whatever size: delete some files"
    return f"{format_bytes(free_bytes(path))} free"


def cannot_use(folder: Path, error: OSError) -> Stop:
    """The error for a run folder that cannot be used; mostly another name will do."""
    if error.errno in CANNOT_WRITE:
        return could_not_write(folder, error)
    return Refused(f"run folder {folder} cannot be written: {error.strerror}")
