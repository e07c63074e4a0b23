"""A run folder belongs to one process at a time, until that process ends."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm.errors import InUse, Refused
from llm.lock import LOCK, locked
from tests.command_line import listing
from tests.conftest import ROOT

LOCKING = """
import sys, time
from pathlib import Path
from llm.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(3600)
"""


@contextlib.contextmanager
def locked_by_another(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", LOCKING, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process


def test_a_folder_is_refused_while_another_process_has_locked_it(tmp_path: Path) -> None:
    with locked_by_another(tmp_path) as process:
        wanted = f"{tmp_path} is in use by another run \\(process {process.pid}\\)"
        with pytest.raises(InUse, match=wanted), locked(tmp_path):
            raise AssertionError("two at once")
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / LOCK).exists(), "a killed process leaves its file"
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text(encoding="ascii") == f"{os.getpid()}\n"


def test_an_error_inside_releases_the_lock_and_deletes_its_file(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="inside"), locked(tmp_path):
            assert listing(tmp_path) == {LOCK}
            with pytest.raises(InUse), locked(tmp_path):
                raise AssertionError("two at once")
            assert (tmp_path / LOCK).exists()
            raise ValueError("inside")
        assert not listing(tmp_path)


def test_a_lock_file_that_its_owner_deletes_before_we_lock_it_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, removed = fcntl.flock, []

    def after_its_owner_has_left(handle: int, operation: int) -> None:
        if not removed:
            removed.append(handle)
            (tmp_path / LOCK).unlink()
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", after_its_owner_has_left)
    with locked(tmp_path):
        assert (tmp_path / LOCK).exists()
        with pytest.raises(InUse), locked(tmp_path):
            raise AssertionError("two at once")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    wanted = "none cannot be written: No such file"
    with pytest.raises(Refused, match=wanted), locked(tmp_path / "none"):
        raise AssertionError("it was locked")


def test_a_folder_may_be_deleted_while_it_is_locked(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with locked(tmp_path / "a"):
        (tmp_path / "a" / LOCK).unlink()
        (tmp_path / "a").rmdir()
    assert not (tmp_path / "a").exists()


def test_a_link_in_the_place_of_the_lock_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine", encoding="utf-8")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(Refused, match="cannot be written"), locked(tmp_path / "run"):
        raise AssertionError("it was locked")
    assert (tmp_path / "precious").read_text(encoding="utf-8") == "mine"


def test_a_pipe_in_the_place_of_the_lock_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / LOCK)
    with pytest.raises(Refused, match="not a regular file"), locked(tmp_path):
        raise AssertionError("it was locked")


def test_a_file_system_without_locks_gives_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unknown)
    with locked(tmp_path) as warning:
        assert warning is not None and "cannot be locked (No locks available)" in warning


def test_a_lock_can_be_waited_for(tmp_path: Path) -> None:
    with locked_by_another(tmp_path) as process:
        threading.Timer(0.1, process.kill).start()
        with locked(tmp_path, wait=True):
            assert process.wait() == -signal.SIGKILL
