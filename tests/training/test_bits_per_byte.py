"""Bits per byte are those of the targets that were evaluated, and survive a resume."""

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
from tests.training.test_resume import resumed, stopped

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


@pytest.mark.parametrize("eval_batches", [1, 3, None])
def test_the_bytes_are_those_of_the_targets_that_were_evaluated(
    make_trainer: MakeTrainer, eval_batches: int | None
) -> None:
    trainer = make_trainer(eval_batches=eval_batches, micro_batch_size=2)
    found = trainer.evaluate()["val/bits_per_byte"]
    sequences = None if eval_batches is None else 8 * eval_batches
    trainer.model.eval()
    assert found == pytest.approx(counted_by_hand(trainer, sequences), rel=1e-5)


def test_the_whole_split_is_all_of_its_tokens_but_the_first(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(eval_batches=None)
    loss, bits = (trainer.evaluate()[f"val/{key}"] for key in ("loss", "bits_per_byte"))
    val = trainer.dataset.tokenizer.decode(trainer.dataset.val.tolist())
    assert (len(val) - 1) % trainer.block_size  # else there were no tail to forget
    assert loss is not None
    in_all = loss * (len(val) - 1) / math.log(2) / len(val[1:].encode())
    assert bits == pytest.approx(in_all, rel=1e-6)


def test_those_of_the_best_loss_are_in_the_summary_to_the_bit_after_a_resume(
    make_trainer: MakeTrainer,
) -> None:
    options = {"eval_interval": 2, "checkpoint_interval": 2}
    whole = make_trainer("whole", **options)
    whole.fit()
    rows = whole.logger.column("val/loss"), whole.logger.column("val/bits_per_byte")
    best = min(rows[0], key=lambda step: rows[0][step])
    assert whole.outcome()["bits_per_byte"] == rows[1][best]
    second = resumed(make_trainer, stopped(make_trainer, 8 - 1, **options), **options)
    assert second.outcome()["bits_per_byte"] is not None
    second.fit()
    assert second.outcome()["bits_per_byte"] == whole.outcome()["bits_per_byte"]


def test_the_tail_of_the_text_is_trained_on_in_every_epoch(
    dataset: Dataset, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer()
    windows, targets = trainer.sampler.windows, len(dataset.train) - 1
    steps = -(-windows // trainer.batch_size)
    seen = [trainer.sampler.batch(step) for step in range(1, steps + 1)]
    rows = np.concatenate([y for _, y in seen])[:windows]
    assert int((rows != -1).sum()) == targets
