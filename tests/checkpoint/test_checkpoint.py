"""A checkpoint loads bit by bit as it was saved; a failed save leaves the older checkpoints."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llm.checkpoint.checkpoint import MANIFEST, TRAINING, WEIGHTS, Checkpoint
from llm.checkpoint.find import TooNew
from llm.checkpoint.folder import CheckpointFolder, newest_valid, repair
from llm.data.dataset import Dataset
from llm.errors import DiskError, Refused
from llm.model.gpt import GPT
from tests.checkpoint.conftest import IDENTITY, STATE, assert_equal, edit, names

Save = Callable[[int], Path]


def test_a_checkpoint_is_read_bit_by_bit_as_it_was_saved(
    saved: Path, tiny_model: GPT, training: dict[str, Tensor], dataset: Dataset
) -> None:
    checkpoint = Checkpoint.open(saved)
    assert (checkpoint.step, checkpoint.state, checkpoint.identity) == (4, STATE, IDENTITY)
    assert checkpoint.model == tiny_model.config
    assert checkpoint.tokenizer.digest() == dataset.tokenizer.digest()
    assert_equal(checkpoint.weights(), tiny_model.state_dict())
    assert_equal(checkpoint.training(), training)


def test_a_loaded_network_computes_the_same_and_is_in_evaluation_mode(
    saved: Path, tiny_model: GPT
) -> None:
    loaded = Checkpoint.open(saved).load_model(torch.device("cpu"))
    tokens = torch.arange(12).view(1, 12)
    assert not loaded.training
    assert torch.equal(loaded(tokens), tiny_model.eval()(tokens))


def test_last_and_best_are_links_to_the_newest_that_survive_a_move_of_the_run(
    folder: CheckpointFolder, save: Save, tiny_model: GPT, tmp_path: Path
) -> None:
    for step in (2, 4):
        folder.save_best(step - 1, tiny_model.state_dict(), STATE)
        save(step)
    assert names(folder) == ["best", "best-00000003", "last", "step-00000002", "step-00000004"]
    moved = shutil.move(tmp_path / "run", tmp_path / "elsewhere") / "checkpoints"
    assert Checkpoint.open(moved / "last").step == 4
    assert Checkpoint.open(moved / "best").step == 3


def test_only_the_newest_keep_last_checkpoints_stay(folder: CheckpointFolder, save: Save) -> None:
    for step in (8, 9, 10, 11):
        save(step)
    assert names(folder) == ["last", "step-00000010", "step-00000011"]


def test_saving_a_step_again_replaces_it(
    folder: CheckpointFolder, saved: Path, save: Save, tiny_model: GPT
) -> None:
    with torch.no_grad():
        tiny_model.embed.weight.add_(1)
    assert save(4) == saved
    assert_equal(Checkpoint.open(saved).weights(), tiny_model.state_dict())
    assert names(folder) == ["last", "step-00000004"]


def test_a_failed_replacement_of_a_step_leaves_the_old_one(
    folder: CheckpointFolder, saved: Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if target == saved:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(DiskError):
            save(4)
    newest, skipped = newest_valid(folder.folder.parent)
    assert newest is not None and (newest.step, newest.state) == (4, STATE)
    assert not skipped and not saved.exists()
    for _ in range(2):
        save(4)
        assert names(folder) == ["last", "step-00000004"]


def test_weights_alone_cannot_be_continued_from(folder: CheckpointFolder, tiny_model: GPT) -> None:
    best = Checkpoint.open(folder.save_best(3, tiny_model.state_dict(), STATE))
    assert_equal(best.weights(), tiny_model.state_dict())
    with pytest.raises(Refused, match="holds weights only"):
        best.training()


@pytest.mark.parametrize("failing", [1, 2, 3, 4, 5, 6])
def test_a_full_disk_is_reported_and_leaves_the_old_checkpoint_and_nothing_half_written(
    folder: CheckpointFolder, saved: Path, save: Save, tiny_model: GPT,
    monkeypatch: pytest.MonkeyPatch, failing: int,
) -> None:  # fmt: skip
    calls, fsync = [], os.fsync

    def failing_fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", failing_fsync)
    with pytest.raises(DiskError, match="step-00000006 could not be written: No space left"):
        save(6)
    assert len(calls) == failing
    published = ["step-00000006"] if failing == 6 else []  # the sixth comes after the rename
    assert names(folder) == ["last", "step-00000004", *published]
    last = Checkpoint.open(folder.folder / "last")
    assert last.step == 4
    assert_equal(last.weights(), tiny_model.state_dict())


def test_a_later_format_is_refused_and_no_older_checkpoint_taken(
    folder: CheckpointFolder, saved: Path, save: Save
) -> None:
    edit(save(6), lambda manifest: manifest.update(format_version=2, new=[]))
    with pytest.raises(TooNew, match="format_version=2, and this version reads up to 1"):
        newest_valid(folder.folder.parent)


def test_the_newest_intact_checkpoint_is_taken_and_the_faults_of_newer_ones_are_named(
    folder: CheckpointFolder, save: Save
) -> None:
    folder.keep_last = 3
    paths = [save(2), save(4), save(6)]
    (paths[2] / MANIFEST).unlink()
    (paths[1] / TRAINING).write_bytes(b"")
    newest, skipped = newest_valid(folder.folder.parent)
    assert newest is not None and newest.path == paths[0]
    assert list(skipped) == [paths[2], paths[1]]
    assert "has no checkpoint.json" in skipped[paths[2]]
    assert f"{TRAINING} is damaged" in skipped[paths[1]]
    (paths[0] / WEIGHTS).unlink()
    with pytest.raises(Refused, match=r"model\.safetensors is missing.*: take another run"):
        newest_valid(folder.folder.parent)


def test_a_damaged_checkpoint_of_a_later_step_does_not_displace_a_new_one(
    folder: CheckpointFolder, save: Save
) -> None:
    folder.keep_last = 1
    later = save(8)
    (later / WEIGHTS).write_bytes(b"")
    for step in (4, 6):  # as after a rollback
        save(step)
    assert names(folder) == ["last", "step-00000006", "step-00000008"]
    newest, skipped = newest_valid(folder.folder.parent)
    assert newest is not None and newest.step == 6 and set(skipped) == {later}


def test_repair_renames_a_damaged_checkpoint_and_deletes_temporary_folders(
    folder: CheckpointFolder, saved: Path, save: Save
) -> None:
    run = folder.folder.parent
    (folder.folder / ".step-00000002.tmp").mkdir()
    assert repair(run, None, {saved: "why"}) == [
        "why: renamed to damaged-step-00000004, continuing from step 0"
    ]
    assert newest_valid(run) == (None, {})
    for step in (4, 6, 8):
        save(step)
    assert names(folder) == ["damaged-step-00000004", "last", "step-00000006", "step-00000008"]
