"""Mistakes and failures end in one line and an exit status instead of a traceback."""

import errno
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llm.commands import command_line, for_shell
from llm.device import check_compiler
from llm.disk import could_not_write
from llm.errors import OutOfMemory, Refused, as_stop
from tests.command_line import here, listing
from tests.conftest import ROOT
from tests.test_bad_input import assert_refused


def test_settings_are_shown_as_they_were_typed(tmp_path: Path) -> None:
    for flag in ("--cfg", "-c"):
        done = here("sample", flag, "job", "prompt=a ${x} b", "stop=???", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "prompt: a ${x} b\n" in done.stdout
        assert "\ufdd0" not in done.stdout
    done = here("train", "-m", "seed=1,2", "--cfg", "job", cwd=tmp_path)
    assert_refused(done, "-m and --cfg cannot be combined")


def test_flags_of_hydra_without_what_they_need_are_refused(tmp_path: Path) -> None:
    assert_refused(here("plan", "--resolve", cwd=tmp_path), "--resolve needs --cfg")
    assert_refused(here("plan", "-sc", cwd=tmp_path), "-sc needs install=")
    assert_refused(here("plan", "-sc", "install=csh", cwd=tmp_path), "bash, fish, zsh")


def test_info_may_stand_after_the_settings(tmp_path: Path) -> None:
    done = here("plan", "model=nano", "--info", "searchpath", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = here("plan", "model=nano", "--info", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_missing_compiler_is_named_before_a_run_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    done = here("train", "trainer.compile=true", "trainer.device=cpu", cwd=tmp_path)
    assert_refused(done, "trainer.compile=true needs a compiler (g++)", "leave trainer.compile out")
    assert not listing(tmp_path)
    with pytest.raises(Refused, match="gcc"):
        check_compiler(torch.device("cuda"))
    (tmp_path / "mine").touch(0o755)
    monkeypatch.setenv("CXX", "mine -O2")
    check_compiler(torch.device("cpu"))
    check_compiler(torch.device("mps"))  # needs none


def test_libraries_that_do_not_fit_into_memory_are_reported_as_out_of_memory() -> None:
    error = ImportError("libtorch_cpu.so: failed to map segment from shared object")
    stop = as_stop(error)
    assert isinstance(stop, OutOfMemory)
    assert "ulimit -v" in str(stop)


def test_a_folder_of_another_user_is_refused() -> None:
    # Not with chmod: root may read every folder.
    error = PermissionError(13, "Permission denied", "multirun/s/seed-1/config.yaml")
    stop = as_stop(error)
    assert isinstance(stop, Refused)
    assert str(stop) == "multirun/s/seed-1/config.yaml cannot be used: Permission denied"


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_small_limit_of_memory_and_a_folder_that_is_gone_end_in_one_line(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (400_000 << 10, 400_000 << 10))

    def left() -> None:
        os.chdir(gone)
        gone.rmdir()

    for prepare, command, status, words in (
        (limited, "sample", 4, "out of memory"),
        (left, "train", 2, "the folder you are in does not exist any more"),
    ):
        done = subprocess.run(
            [sys.executable, str(ROOT / f"run_{command}.py"), *["ckpt=x"] * (command == "sample")],
            cwd=tmp_path, preexec_fn=prepare, capture_output=True, text=True, timeout=300,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        assert words in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr


def test_a_disk_without_room_for_another_file_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    error = OSError(errno.ENOSPC, "No space left on device")
    assert "free)" in str(could_not_write(tmp_path / "x", error))
    found = os.statvfs(tmp_path)
    fields = [getattr(found, name) for name in os.statvfs_result.__match_args__]
    full = os.statvfs_result((*fields[:7], 0, *fields[8:]))  # f_favail
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    message = str(could_not_write(tmp_path / "x", error))
    assert message.endswith("no room for another file of any size: delete some files)")


WORDS = ["a b", "it's", "caf\udce9/x", "a\nb'c\\", "我的模型", "\x1b]0;title\x07", "", "$HOME"]


def test_a_command_that_is_printed_can_be_shown_anywhere_and_pasted_into_a_shell() -> None:
    shown = for_shell(["printf", "%s\\n", *WORDS])
    assert shown.isprintable()
    shown.encode("utf-8")
    done = subprocess.run(["bash", "-c", shown], capture_output=True, check=True, timeout=60)
    wanted = "".join(f"{word}\n" for word in WORDS)
    assert done.stdout == wanted.encode("utf-8", "surrogateescape")
    assert shlex.split(command_line("run_train.py", "run.name=a b"))[-1] == "run.name=a b"
