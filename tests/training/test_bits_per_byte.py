"""Bits per byte are those of the targets that were evaluated, and survive a resume."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llm.data.batches import evaluation_batches
from llm.data.config import DataConfig
from llm.data.dataset import Dataset
from llm.data.prepare import prepare
from tests.training.conftest import HandBuilt, MakeTrainer

# Of one, two and three bytes a character, in parts of the text that no few windows represent.
TEXT = (
    "plain words, plain words.\n" * 100 + "häßlich wär's möglich\n" * 40 + "你好世界。再见\n" * 60
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """In place of the usual one: half of this text is for validation."""
    folder = tmp_path_factory.mktemp("uneven")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    config = DataConfig(
        name="uneven", corpus="text", dir=str(folder), path=str(folder / "text.txt"),
        tokenizer="char", val_fraction=0.5,
    )  # fmt: skip
    return Dataset.open(prepare(config))


@torch.no_grad()
def counted_by_hand(trainer: HandBuilt, sequences: int | None) -> float:
    """Window by window, with the characters of the targets spelled out."""
    val, decode = trainer.dataset.val, trainer.dataset.tokenizer.decode
    nats, n_bytes = 0.0, 0
    for (start,) in evaluation_batches(val, trainer.block_size, 1, sequences):
        window = torch.from_numpy(val[start : start + trainer.block_size + 1].astype(np.int64))
        logits = trainer.model(window[None, :-1])[0]
        nats += float(F.cross_entropy(logits, window[1:], reduction="sum"))
        n_bytes += len(decode(window[1:].tolist()).encode())
    return nats / math.log(2) / n_bytes


@pytest.mark.parametrize("eval_batches", [1, None])
def test_the_summary_says_how_the_loss_was_measured_also_after_a_resume_without_an_evaluation(
    make_trainer: MakeTrainer, eval_batches: int | None
) -> None:
    trainer = make_trainer("resumed", eval_batches=eval_batches, eval_interval=2)
    assert trainer.outcome()["evaluation"] is None
    trainer.stop_after(3)
    found, val = trainer.outcome()["evaluation"], trainer.dataset.val
    starts = evaluation_batches(val, 16, 1000, eval_batches and 8 * eval_batches)[0]
    assert (found["split"], found["text"]) == ("val", trainer.dataset.text)
    assert (found["block_size"], found["windows"]) == (16, len(starts))
    if eval_batches is None:
        text = trainer.dataset.tokenizer.decode(val[1:].tolist())
        assert found["stride"] == 16
        assert (found["tokens"], found["bytes"]) == (len(val) - 1, len(text.encode()))
    else:
        assert found["stride"] == pytest.approx(np.diff(starts).mean(), rel=0.1)
        assert found["tokens"] == 8 * 16
    assert json.loads(json.dumps(found)) == found
    second = make_trainer("resumed", eval_batches=3, eval_interval=2)
    second.resume(trainer.newest)
    assert second.outcome()["evaluation"] == found


@pytest.mark.parametrize("eval_batches", [1, 3, None])
def test_the_bytes_are_those_of_the_targets_that_were_evaluated(
    make_trainer: MakeTrainer, eval_batches: int | None
) -> None:
    trainer = make_trainer(eval_batches=eval_batches, micro_batch_size=2)
    found = trainer.evaluate()["val/bits_per_byte"]
    sequences = None if eval_batches is None else 8 * eval_batches
    trainer.model.eval()
    assert found == pytest.approx(counted_by_hand(trainer, sequences), rel=1e-5)
