"""Runs are evaluated on the test split as training evaluates them, once, and only where it fits."""

import json
import shutil
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llm.checkpoint.checkpoint import Checkpoint
from llm.data.dataset import Dataset
from llm.errors import DiskError
from llm.experiment.rundir import discard_run
from llm.report import testing
from llm.report.record import RunRecord
from llm.report.runs import find_runs
from tests.command_line import here, summary
from tests.conftest import TINY_RUN

DATA = ["data=text", "data.path=play.txt", "data.tokenizer=char", "data.test_fraction=0.2"]
WHOLE = ["trainer.eval_batches=null", "trainer.micro_batch_size=2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A folder with three runs; ``fp32`` evaluates on the whole split, in micro-batches."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copy(text_file, folder / "play.txt")
    for name in ("fp32", "bf16", "bf16_weights"):
        options = [f"precision={name}", f"run.name={name}", *WHOLE * (name == "fp32")]
        done = here("train", *DATA, *TINY_RUN, "trainer.max_steps=3", *options, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it, as the current folder."""
    copy = Path(shutil.copytree(trained, tmp_path / "copy", symlinks=True))
    with chdir(copy):
        yield copy


def record(name: str, **changes: Any) -> RunRecord:
    (found,) = find_runs([Path("outputs", name)])
    return replace(found, **changes)


@pytest.mark.parametrize("name", ["fp32", "bf16", "bf16_weights"])
def test_the_validation_loss_of_a_run_is_found_again_to_the_last_bit(
    folder: Path, name: str
) -> None:
    run = record(name)
    found = testing.evaluate_run(testing.job_of(run), "val")
    said = summary(Path("outputs", name))
    assert found.loss == said["best_val_loss"]
    assert found.bits_per_byte == said["bits_per_byte"]
    protocol = {key: getattr(found, key) for key in said["evaluation"]}
    assert protocol == said["evaluation"]


@torch.no_grad()
def test_the_test_loss_is_that_of_the_test_text_counted_by_hand(folder: Path) -> None:
    (run,), refused = testing.test_runs([record("fp32")])
    assert refused == {}
    dataset = Dataset.open(next(Path("data").glob("text-*/test.bin")).parent)
    assert dataset.test is not None
    checkpoint = Checkpoint.open(folder / "outputs/fp32/checkpoints/best")
    model, ids, nats = (
        checkpoint.load_model(torch.device("cpu")),
        dataset.test.astype(np.int64),
        0.0,
    )
    for start in range(0, len(ids) - 1, 16):
        first = min(start, len(ids) - 17)
        window = torch.from_numpy(ids[first : first + 17])
        logits = model(window[None, :-1])[0][start - first :]
        nats += float(F.cross_entropy(logits, window[1 + start - first :], reduction="sum"))
    n_bytes = len(dataset.tokenizer.decode(ids[1:].tolist()).encode())
    assert run.test["loss"] == pytest.approx(nats / (len(ids) - 1), rel=1e-5)
    assert run.test["bits_per_byte"] == pytest.approx(nats / np.log(2) / n_bytes, rel=1e-5)
    assert run.test == json.loads(Path("outputs/fp32/test.json").read_text())
    assert run.test == run.test | {
        "split": "test", "checkpoint": run.best_checkpoint, "text": dataset.text,
        "block_size": 16, "windows": -(-(len(ids) - 1) // 16), "stride": 16.0,
        "tokens": len(ids) - 1, "bytes": n_bytes, "data_digest": dataset.digest,
    }  # fmt: skip


def test_a_test_loss_is_measured_once_for_each_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    first, _ = testing.test_runs(
        [record("bf16_weights"), record("bf16")], lambda done, total: seen.append((done, total))
    )
    assert seen == [(n, 8) for n in range(1, 9)]  # 16 windows of each run, four at a time
    monkeypatch.setattr(testing, "evaluate_run", None)  # calling it would fail
    again, _ = testing.test_runs([record("bf16_weights"), record("bf16")])
    assert [run.test for run in again] == [run.test for run in first]


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint": "checkpoints/best-00000001"}, {"data_digest": "0" * 64}, {"loss": "1.0"},
        {"loss": None}, {"split": "val"}, {"more": 1}, {"tokens": 0},
    ],
    ids=str,
)  # fmt: skip
def test_a_stale_or_damaged_test_json_is_measured_again(
    folder: Path, change: dict[str, Any]
) -> None:
    (first,), _ = testing.test_runs([record("fp32")])
    (again,), refused = testing.test_runs([replace(first, test=first.test | change)])
    assert (again.test, refused) == (first.test, {})


def test_a_run_that_trains_on_loses_its_test_loss(folder: Path) -> None:
    testing.test_runs([record("fp32")])
    path = Path("outputs/fp32/test.json")
    here("train", "resume=outputs/fp32", cwd=folder)  # it is finished already
    assert path.exists()
    done = here("train", "resume=outputs/fp32", "trainer.max_steps=4", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert not path.exists()


def test_a_run_with_a_test_loss_can_be_replaced(folder: Path) -> None:
    testing.test_runs([record("fp32")])
    discard_run(Path("outputs/fp32"))  # refuses files that no run writes
    assert not Path("outputs/fp32/test.json").exists()


def test_runs_that_cannot_be_tested_are_refused_with_the_reason_and_the_others_tested(
    folder: Path,
) -> None:
    damaged = Path("outputs/bf16/checkpoints/best/model.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    without = Path(shutil.copytree("outputs/bf16", "outputs/without", symlinks=True), "config.yaml")
    without.write_text(without.read_text().replace("test_fraction: 0.2", "test_fraction: null"))
    runs = [
        record("fp32"), record("without"), record("bf16"),
        record("bf16_weights", data_digest="0" * 64), RunRecord("nowhere", "nowhere"),
    ]  # fmt: skip
    found, refused = testing.test_runs(runs)
    assert [bool(run.test) for run in found] == [True, False, False, False, False]
    assert [replace(run, test={}) for run in found] == runs
    expected = {
        "outputs/without": "was trained without a test split (data.test_fraction=null)",
        "outputs/bf16": "model.safetensors is damaged",
        "outputs/bf16_weights": "is not the data that outputs/bf16_weights was trained on",
        "nowhere": "has no checkpoint with the best validation loss",
    }
    assert refused.keys() == expected.keys()
    for place, reason in expected.items():
        assert reason in refused[place]
        assert "\n" not in refused[place]


def test_data_that_is_gone_or_damaged_is_named(folder: Path) -> None:
    (data,) = [path.parent for path in Path("data").glob("text-*/test.bin")]
    raw = (data / "test.bin").read_bytes()
    (data / "test.bin").write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    _, refused = testing.test_runs([record("fp32")])
    assert "test.bin is damaged" in refused["outputs/fp32"]
    shutil.rmtree(data)
    _, refused = testing.test_runs([record("fp32")])
    assert "is not there: prepare it again with run_prepare.py" in refused["outputs/fp32"]
    Path("play.txt").unlink()
    _, refused = testing.test_runs([record("fp32")])
    assert refused["outputs/fp32"] == "data.path=play.txt does not exist"


def test_a_run_folder_that_cannot_be_written_ends_with_the_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(testing, "replace_text", full)
    with pytest.raises(DiskError, match=r"outputs/fp32/test\.json"):
        testing.test_runs([record("fp32")])
