"""A disk that fails ends a run with status 5 and one line, and costs no checkpoint."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

import llm.checkpoint.folder
from llm.checkpoint.folder import newest_valid
from llm.disk import could_not_write, free_bytes
from llm.experiment.loggers import RunLogger
from tests.command_line import Done, here, listing, rows, summary
from tests.conftest import TINY_RUN, needs_linux

ROWS = "metrics.jsonl"
SIZE = 8 << 20  # bytes of a whole disk


@pytest.fixture
def data(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A dataset that is prepared already, on another disk."""
    folder = tmp_path_factory.getbasetemp() / "prepared"
    data = ["data=text", f"data.path={text_file}", "data.tokenizer=byte", f"data.dir={folder}"]
    assert here("prepare", *data, cwd=text_file.parent).returncode == 0
    return data


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk, mounted in a folder."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "llm", str(path)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("nothing can be mounted here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def assert_disk_error(done: Done, *words: str) -> None:
    assert done.returncode == 5, done
    assert done.stderr.startswith("run_train.py: ") and done.stderr.count("\n") == 1, done.stderr
    for word in (*words, "iB"):
        assert word in done.stderr


def assert_nothing_half_done(run: Path) -> None:
    """Every checkpoint that has a name is whole, and nothing else is there."""
    newest, skipped = newest_valid(run)
    assert newest is not None and not skipped
    newest.weights()
    newest.training()
    assert not [name for name in listing(run) if "/." in f"/{name}"]
    assert (run / "checkpoints/last").readlink().name == newest.path.name


def test_a_disk_that_somebody_else_fills_ends_the_run_with_the_last_checkpoint_intact(
    disk: Path, data: list[str]
) -> None:
    run, tick = disk / "run", RunLogger.tick
    command = [*data, *TINY_RUN, f"run.dir={run}"]

    def filling(self: RunLogger, step: int) -> None:
        tick(self, step)
        if step == 3:  # there is a checkpoint of step 2, and no room for that of step 4
            (disk / "filler").write_bytes(bytes(free_bytes(disk) - (64 << 10)))

    with patch.object(RunLogger, "tick", filling):
        done = here("train", *command, cwd=disk)
    assert_disk_error(done, str(run), "could not be written: No space left on device (")
    assert_nothing_half_done(run)
    assert (summary(run)["status"], summary(run)["reason"] in done.stderr) == ("disk_error", True)

    (disk / "filler").unlink()
    done = here("train", *command, cwd=disk)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(run)] == list(range(7))
    assert summary(run)["status"] == "finished"


@needs_linux
@pytest.mark.parametrize("name", ["training.safetensors", ROWS])
def test_a_checkpoint_that_the_disk_fails_to_sync_is_not_published(
    name: str, tmp_path: Path, data: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, fsync = tmp_path / "outputs/a", os.fsync

    def failing(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        if path.name == name and newest_valid(run)[0]:  # the second checkpoint
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", failing)
    done = here("train", *data, *TINY_RUN, "run.name=a", cwd=tmp_path)
    place = ROWS if name == ROWS else "checkpoints/step-00000004"
    said = f"outputs/a/{place} could not be written: Input/output error ("
    assert_disk_error(done, said, "free)")
    assert_nothing_half_done(run)
    newest, _ = newest_valid(run)
    assert newest is not None and newest.step == 2
    assert (summary(run)["status"], summary(run)["step"]) == ("disk_error", 4)


def test_a_run_without_room_for_its_checkpoints_does_not_start(
    tmp_path: Path, data: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as little:
        little.setattr(llm.checkpoint.folder, "free_bytes", lambda path: 700_000)
        done = here("train", *data, *TINY_RUN, "run.name=a", cwd=tmp_path)
    said = "outputs/a/checkpoints has 684 KiB free, and the checkpoints of this run take up to "
    assert_disk_error(done, said, "make room, or lower trainer.keep_last=2")
    assert not (tmp_path / "outputs").exists()
    done = here("train", *data, *TINY_RUN, "run.name=a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_checkpoints_of_a_resumed_run_count_as_free_space(
    tmp_path: Path, data: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*data, *TINY_RUN, "run.name=a"]
    assert here("train", *command, cwd=tmp_path).returncode == 0
    monkeypatch.setattr(llm.checkpoint.folder, "free_bytes", lambda path: 500_000)
    done = here("train", "resume=outputs/a", "trainer.max_steps=8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_run_folder_without_permission_is_refused_before_the_first_step(
    tmp_path: Path, data: list[str]
) -> None:
    for name in ("closed", "made"):
        (tmp_path / name).mkdir(mode=0o555)
    if os.access(tmp_path / "closed", os.W_OK):
        pytest.skip("root may write everywhere")
    for where in ("closed/run", "made"):
        done = here("train", *data, *TINY_RUN, f"run.dir={where}", cwd=tmp_path)
        assert done.returncode == 2
        assert f"run folder {where} cannot be written: Permission denied" in done.stderr
    assert listing(tmp_path) == {"closed", "made"}


def test_a_read_only_disk_is_reported_before_the_first_step(disk: Path, data: list[str]) -> None:
    (disk / "made").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for where in ("disk/run", "disk/made"):
        done = here("train", *data, *TINY_RUN, f"run.dir={where}", cwd=disk.parent)
        assert_disk_error(done, f"{where} could not be written: Read-only file system (8 MiB")
    assert listing(disk) == {"made"}


@needs_linux
def test_missing_parents_of_a_run_folder_are_made_if_possible(
    tmp_path: Path, data: list[str]
) -> None:
    done = here("train", *data, *TINY_RUN, "run.dir=a/b/c", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "a/b/c")["status"] == "finished"
    done = here("train", *data, *TINY_RUN, "run.dir=/proc/none/run", cwd=tmp_path)
    assert done.returncode == 2
    assert "run folder /proc/none/run cannot be written: No such file" in done.stderr


def test_free_space_is_that_of_the_disk_of_a_future_folder(disk: Path) -> None:
    assert free_bytes(disk / "not/yet/there") == free_bytes(disk) == SIZE
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    said = f"{disk}/a could not be written: No space left on device (8 MiB free)"
    assert str(could_not_write(disk / "a", error)) == said
