"""Writing that survives a crash of the process or of the machine, and messages for disk errors.

Files and folders are written under a temporary name beside their place and then renamed, because a
rename is atomic. For power loss too, the order counts (Pillai et al. 2014, on what file systems
promise): sync the contents, rename, sync the parent folder.
"""

import contextlib
import errno
import os
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from llm.errors import CANNOT_WRITE, DiskError, Refused, Stop, reason_for, require
from llm.units import format_bytes

LONGEST_NAME = 200  # bytes; file systems allow 255, and some names get a suffix
TEMPORARY, REPLACED = ".tmp", ".replaced"  # endings of hidden names
# Errors of file systems that have no fsync for folders; there is nothing more to do there.
NO_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


def check_name(key: str, name: str) -> str:
    """``name`` in Unicode's composed form (NFC): an accented letter is the same on every keyboard.

    Raises :class:`llm.errors.Refused` naming ``key`` for characters other than letters and digits
    of any script, ``.``, ``_`` and ``-``, for a name of dots only, and for too long a name.
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
    """Raise :class:`llm.errors.Refused` if a part of ``path`` is longer than file systems allow."""
    part = max(Path(path).parts, key=lambda part: len(os.fsencode(part)), default="")
    size = len(os.fsencode(part))
    require(size <= 255, f"{key}: {part[:40]}... has {size} bytes, and a name may have 255")


def write_durably(path: Path, raw: bytes) -> None:
    """Write a new file and sync it; the directory entry is durable only after sync_folder()."""
    with path.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A new file to write, which replaces ``path`` when the block ends without an error."""
    with replaced_by(path) as temporary, temporary.open("wb") as file:
        yield file


@contextlib.contextmanager
def replaced_by(path: Path) -> Iterator[Path]:
    """The place of a new file to write, which replaces ``path`` when the block ends without an
    error.
    """
    # Several processes may write the same file of a cache at once.
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        yield temporary
        sync_file(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def published(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which replaces ``folder`` when the block ends without an error.

    The caller has locked the parent folder. Between two renames the old folder has a hidden name
    that ends with ``REPLACED``, so a crash leaves at least one of the two.
    """
    temporary, old = _hidden(folder, TEMPORARY), _hidden(folder, REPLACED)
    delete(temporary)
    temporary.mkdir()
    try:
        yield temporary
        sync_folder(temporary)
        if folder.exists():
            delete(old)
            folder.rename(old)
        temporary.rename(folder)
        sync_folder(folder.parent)
        delete(old)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def withdraw(folder: Path) -> None:
    """Delete a published folder. A crash leaves a temporary folder, never half of ``folder``."""
    temporary = _hidden(folder, TEMPORARY)
    delete(temporary)
    folder.rename(temporary)
    delete(temporary)


def delete_temporary(folder: Path) -> None:
    """Delete the temporary files and folders of killed processes; ``folder`` must be locked."""
    for path in folder.glob(f".*{TEMPORARY}"):
        delete(path)


def delete(path: Path) -> None:
    """Delete a folder with its contents, a file or a link, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _hidden(folder: Path, ending: str) -> Path:
    return folder.with_name(f".{folder.name}{ending}")


def sync_file(path: Path) -> None:
    """Make the contents of a file durable that another library has written."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: without this a power loss may undo a rename."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise
    finally:
        os.close(handle)


def free_bytes(path: Path) -> int:
    """Free bytes on the disk of ``path``, which need not exist yet."""
    return shutil.disk_usage(_existing(path)).free


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` inside into :class:`llm.errors.DiskError` about ``path``."""
    try:
        yield
    except OSError as error:
        raise could_not_write(path, error) from error


def could_not_write(path: Path, error: OSError) -> DiskError:
    """The error for a write that failed: the path, the reason and the free room."""
    reason = error.strerror or str(error)
    return DiskError(f"{path} could not be written: {reason} ({_room(path)})")


def _room(path: Path) -> str:
    disk = os.statvfs(_existing(path))
    if disk.f_files and not disk.f_favail:  # some file systems do not count files
        return "the disk has no room for another file of any size: delete some files"
    return f"{format_bytes(free_bytes(path))} free"


def cannot_use(path: Path, error: OSError, kind: str = "") -> Stop:
    """The error for a user's path that cannot be written: refused, unless the disk failed.

    ``kind`` stands before the path in the message: ``"run folder "``.
    """
    if error.errno in CANNOT_WRITE:
        return could_not_write(path, error)
    return Refused(f"{kind}{path} cannot be written: {reason_for(path, error)}")
