"""A run folder belongs to one process at a time, and to nobody once that is dead."""

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

HOLDING = """
import sys, time
from pathlib import Path
from llm.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(3600)
"""


@contextlib.contextmanager
def held_by_another(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", HOLDING, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def test_a_folder_that_another_process_holds_is_refused_until_that_is_dead(tmp_path: Path) -> None:
    with held_by_another(tmp_path) as process:
        wanted = f"{tmp_path} is in use by another run \\(process {process.pid}\\)"
        with pytest.raises(InUse, match=wanted), locked(tmp_path):
            raise AssertionError("two at once")
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / LOCK).exists(), "nobody was there to tidy up"
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text(encoding="ascii") == f"{os.getpid()}\n"


def test_the_lock_is_released_and_its_file_deleted_whatever_happens_inside(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="inside"), locked(tmp_path):
            assert listing(tmp_path) == {LOCK}
            with pytest.raises(InUse), locked(tmp_path):
                raise AssertionError("two at once")
            assert (tmp_path / LOCK).exists()
            raise ValueError("inside")
        assert not listing(tmp_path)


def test_a_file_that_its_owner_removes_before_it_is_locked_is_not_taken_for_the_lock(
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


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    wanted = "none cannot be written: No such file"
    with pytest.raises(Refused, match=wanted), locked(tmp_path / "none"):
        raise AssertionError("it went on")


def test_a_folder_that_is_removed_meanwhile_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with locked(tmp_path / "a"):
        (tmp_path / "a" / LOCK).unlink()
        (tmp_path / "a").rmdir()
    assert not (tmp_path / "a").exists()


def test_a_link_in_the_place_of_the_lock_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine", encoding="utf-8")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(Refused, match="cannot be written"), locked(tmp_path / "run"):
        raise AssertionError("it went on")
    assert (tmp_path / "precious").read_text(encoding="utf-8") == "mine"


def test_a_pipe_in_the_place_of_the_lock_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / LOCK)
    with pytest.raises(Refused, match="not a regular file"), locked(tmp_path):
        raise AssertionError("it went on")


def test_a_file_system_without_locks_gives_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unknown)
    with locked(tmp_path) as warning:
        assert warning is not None and "cannot be locked (No locks available)" in warning


def test_a_lock_can_be_waited_for(tmp_path: Path) -> None:
    with held_by_another(tmp_path) as process:
        threading.Timer(0.1, process.kill).start()
        with locked(tmp_path, wait=True):
            assert process.wait() == -signal.SIGKILL
