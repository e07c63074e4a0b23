"""What is saved comes back bit by bit, and a failed save leaves what was there before."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llm.checkpoint.checkpoint import MANIFEST, TRAINING, WEIGHTS, Checkpoint
from llm.checkpoint.folder import CheckpointFolder, newest_valid, set_aside
from llm.checkpoint.formats import TooNew
from llm.data.dataset import Dataset
from llm.errors import DiskError, Refused
from llm.model.gpt import GPT
from tests.checkpoint.conftest import IDENTITY, STATE, assert_equal, edit, names, to_version_1


def test_what_is_saved_comes_back_bit_by_bit(
    saved: Path, tiny_model: GPT, training: dict[str, Tensor], dataset: Dataset
) -> None:
    found = Checkpoint.open(saved)
    assert (found.step, found.state, found.identity) == (4, STATE, IDENTITY)
    assert found.model == tiny_model.config
    assert found.tokenizer.digest() == dataset.tokenizer.digest()
    assert_equal(found.weights(), tiny_model.state_dict())
    assert_equal(found.training(), training)


def test_a_loaded_network_computes_the_same_and_is_ready_to_evaluate(
    saved: Path, tiny_model: GPT
) -> None:
    found = Checkpoint.open(saved).load_model(torch.device("cpu"))
    tokens = torch.arange(12).view(1, 12)
    assert not found.training
    assert torch.equal(found(tokens), tiny_model.eval()(tokens))


def test_later_changes_to_the_weights_do_not_reach_the_checkpoint(
    saved: Path, tiny_model: GPT
) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    with torch.no_grad():
        tiny_model.embed.weight.zero_()
    assert_equal(Checkpoint.open(saved).weights(), before)


def test_last_and_best_point_at_the_newest_of_their_kind_and_move_with_the_run(
    folder: CheckpointFolder, tiny_model: GPT, training: dict[str, Tensor], tmp_path: Path
) -> None:
    weights = tiny_model.state_dict()
    for step in (2, 4):
        folder.save_best(step - 1, weights, STATE)
        folder.save(step, weights, training, STATE)
    assert names(folder) == ["best", "best-00000003", "last", "step-00000002", "step-00000004"]
    moved = shutil.move(tmp_path / "run", tmp_path / "elsewhere") / "checkpoints"
    assert Checkpoint.open(moved / "last").step == 4
    assert Checkpoint.open(moved / "best").step == 3


def test_only_the_newest_keep_last_stay(
    folder: CheckpointFolder, tiny_model: GPT, training: dict[str, Tensor]
) -> None:
    for step in (8, 9, 10, 11):
        folder.save(step, tiny_model.state_dict(), training, STATE)
    assert names(folder) == ["last", "step-00000010", "step-00000011"]
    newest, skipped = newest_valid(folder.folder.parent)
    assert newest is not None and newest.step == 11
    assert not skipped


def test_a_run_without_checkpoints_has_no_newest_one(tmp_path: Path) -> None:
    assert newest_valid(tmp_path) == (None, {})


def test_saving_a_step_again_replaces_it(
    folder: CheckpointFolder, saved: Path, tiny_model: GPT, training: dict[str, Tensor]
) -> None:
    with torch.no_grad():
        tiny_model.embed.weight.add_(1)
    assert folder.save(4, tiny_model.state_dict(), training, STATE) == saved
    assert_equal(Checkpoint.open(saved).weights(), tiny_model.state_dict())
    assert names(folder) == ["last", "step-00000004"]


def test_while_a_step_is_replaced_the_one_before_still_counts(
    folder: CheckpointFolder, saved: Path, tiny_model: GPT, training: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    rename = Path.rename

    def cut_short(path: Path, target: Path) -> Path:
        if target == saved:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", cut_short)
        with pytest.raises(DiskError):
            folder.save(4, tiny_model.state_dict(), training, STATE)
    found, skipped = newest_valid(folder.folder.parent)
    assert found is not None and (found.step, found.state) == (4, STATE)
    assert not skipped and not saved.exists()
    for _ in range(2):
        folder.save(4, tiny_model.state_dict(), training, STATE)
        assert names(folder) == ["last", "step-00000004"]


def test_what_a_killed_process_left_half_written_is_in_nobodys_way(
    folder: CheckpointFolder, tiny_model: GPT, training: dict[str, Tensor]
) -> None:
    for process in (os.getpid(), 1):  # in a container, process numbers come again
        half = folder.folder / f".step-00000004.{process}"
        half.mkdir(parents=True)
        (half / WEIGHTS).write_bytes(b"half")
    folder.save(4, tiny_model.state_dict(), training, STATE)
    assert names(folder) == ["last", "step-00000004"]


def test_files_hold_tensors_and_plain_values_and_nothing_is_unpickled(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sorted(p.name for p in saved.iterdir()) == [MANIFEST, WEIGHTS, TRAINING]
    for name in (WEIGHTS, TRAINING):
        raw = (saved / name).read_bytes()
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])
        header.pop("__metadata__", None)
        assert len(raw) == 8 + size + max(t["data_offsets"][1] for t in header.values())

    def unpickle(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    for name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load"):
        monkeypatch.setattr(name, unpickle)
    checkpoint = Checkpoint.open(saved)
    checkpoint.load_model(torch.device("cpu"))
    assert checkpoint.training()


def test_weights_alone_are_nothing_to_continue_from(
    folder: CheckpointFolder, tiny_model: GPT
) -> None:
    best = Checkpoint.open(folder.save_best(3, tiny_model.state_dict(), STATE))
    assert_equal(best.weights(), tiny_model.state_dict())
    with pytest.raises(Refused, match="holds weights only"):
        best.training()


@pytest.mark.parametrize("failing", [1, 2, 3, 4, 5])
def test_a_full_disk_is_reported_and_leaves_the_old_checkpoint_and_no_rubbish(
    folder: CheckpointFolder, saved: Path, tiny_model: GPT, training: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch, failing: int,
) -> None:  # fmt: skip
    calls, fsync = [], os.fsync

    def fail_at_last(handle: int) -> None:
        calls.append(handle)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fail_at_last)
    with pytest.raises(DiskError, match="step-00000006 could not be written: No space left"):
        folder.save(6, tiny_model.state_dict(), training, STATE)
    assert len(calls) == failing
    published = ["step-00000006"] if failing == 5 else []  # the fifth came after the renaming
    assert names(folder) == ["last", "step-00000004", *published]
    assert Checkpoint.open(folder.folder / "last").step == 4
    assert_equal(Checkpoint.open(folder.folder / "last").weights(), tiny_model.state_dict())


def test_a_full_disk_keeps_the_checkpoint_that_would_have_been_replaced(
    folder: CheckpointFolder, saved: Path, tiny_model: GPT, training: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    with torch.no_grad():
        tiny_model.embed.weight.add_(1)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError):
        folder.save(4, tiny_model.state_dict(), training, STATE)
    assert_equal(Checkpoint.open(saved).weights(), before)


def test_a_pointer_that_cannot_be_written_is_a_disk_error(
    folder: CheckpointFolder, tiny_model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(Path, "symlink_to", full)
    with pytest.raises(DiskError, match="best-00000003 could not be written"):
        folder.save_best(3, tiny_model.state_dict(), STATE)


def test_a_checkpoint_from_before_an_option_existed_has_the_default_of_it(saved: Path) -> None:
    def forget(manifest: dict[str, Any]) -> None:
        for key in ("smear", "residual_scalars", "intermediate_size", "loss"):
            del manifest["model"][key]

    wanted = Checkpoint.open(saved).model
    edit(saved, forget)
    assert Checkpoint.open(saved).model == wanted


def test_one_of_the_first_format_is_read_and_gets_what_came_later(saved: Path) -> None:
    wanted = Checkpoint.open(saved)
    to_version_1(saved)
    before = (saved / MANIFEST).read_bytes()
    found = Checkpoint.open(saved)
    assert (found.step, found.model, found.files) == (4, wanted.model, wanted.files)
    assert found.state == STATE | {
        "progress": {
            "step": 4,
            "val_loss": 1.5,
            "skipped": 0,
            "rollbacks": 0,
            "best_bits_per_byte": None,
        },
        "row": None,
        "environment": {},
        "guard": {"in_a_row": 0, "losses": [], "norms": []},
    }
    found.verify()
    assert (saved / MANIFEST).read_bytes() == before


@pytest.mark.parametrize("key", ["digest", "stranger"])
def test_one_of_the_first_format_with_a_key_that_it_did_not_have_is_refused(
    saved: Path, key: str
) -> None:
    to_version_1(saved)
    manifest = json.loads((saved / MANIFEST).read_text(encoding="utf-8"))
    (saved / MANIFEST).write_text(json.dumps(manifest | {key: ""}), encoding="utf-8")
    with pytest.raises(Refused, match=f"has an unknown key {key}"):
        Checkpoint.open(saved)


def test_one_of_a_later_format_is_refused_and_none_before_it_is_taken_instead(
    folder: CheckpointFolder, saved: Path, tiny_model: GPT, training: dict[str, Tensor]
) -> None:
    newer = folder.save(6, tiny_model.state_dict(), training, STATE)
    edit(newer, lambda manifest: manifest.update(format_version=3, new=[]))
    with pytest.raises(TooNew, match="format_version=3, and this version reads up to 2"):
        newest_valid(folder.folder.parent)


@pytest.mark.parametrize("version", [0, -1, True, "2", 2.0, None])
def test_a_format_that_never_was_is_refused(saved: Path, version: Any) -> None:
    edit(saved, lambda manifest: manifest.update(format_version=version))
    with pytest.raises(Refused, match="it is none of this program's"):
        Checkpoint.open(saved)


def test_the_newest_that_is_whole_counts_and_what_is_wrong_with_newer_ones_is_told(
    folder: CheckpointFolder, tiny_model: GPT, training: dict[str, Tensor]
) -> None:
    folder.keep_last = 3
    paths = [folder.save(s, tiny_model.state_dict(), training, STATE) for s in (2, 4, 6)]
    (paths[2] / MANIFEST).unlink()
    (paths[1] / TRAINING).write_bytes(b"")
    found, skipped = newest_valid(folder.folder.parent)
    assert found is not None and found.path == paths[0]
    assert list(skipped) == [paths[2], paths[1]]
    assert "has no checkpoint.json" in skipped[paths[2]]
    assert f"{TRAINING} is damaged" in skipped[paths[1]]
    (paths[0] / WEIGHTS).unlink()
    with pytest.raises(Refused, match=r"model\.safetensors is missing.*: take another run"):
        newest_valid(folder.folder.parent)


def test_a_damaged_one_of_later_steps_does_not_take_the_place_of_the_one_just_saved(
    folder: CheckpointFolder, tiny_model: GPT, training: dict[str, Tensor]
) -> None:
    folder.keep_last = 1
    later = folder.save(8, tiny_model.state_dict(), training, STATE)
    (later / WEIGHTS).write_bytes(b"")
    for step in (4, 6):  # as after going back to an earlier one
        folder.save(step, tiny_model.state_dict(), training, STATE)
    assert names(folder) == ["last", "step-00000006", "step-00000008"]
    found, skipped = newest_valid(folder.folder.parent)
    assert found is not None and found.step == 6 and set(skipped) == {later}


def test_what_is_set_aside_counts_no_more_and_is_kept(
    folder: CheckpointFolder, saved: Path, tiny_model: GPT, training: dict[str, Tensor]
) -> None:
    before = (saved / WEIGHTS).read_bytes()
    aside = set_aside(saved)
    assert newest_valid(folder.folder.parent) == (None, {})
    for step in (4, 6, 8):
        folder.save(step, tiny_model.state_dict(), training, STATE)
    assert (aside / WEIGHTS).read_bytes() == before
    assert names(folder) == ["damaged-step-00000004", "last", "step-00000006", "step-00000008"]
