"""A run that was interrupted, or watched more closely, ends with the same bits."""

import os
import signal
from typing import Any

import pytest
import torch
from torch import Tensor

from llm.checkpoint.checkpoint import Checkpoint
from llm.checkpoint.folder import newest_valid
from llm.errors import Interrupted, Refused
from llm.sampling.generate import SamplingOptions
from llm.training.optimizer import adamw, muon
from llm.training.state import training_tensors
from tests.training.conftest import HandBuilt, MakeTrainer, assert_same_bits, copied

DROPPING: dict[str, Any] = {"dropout": 0.1, "micro_batch_size": 2, "log_interval": 1}


def everything(trainer: HandBuilt) -> dict[str, Tensor]:
    """Weights, optimizer state and random state."""
    tensors = training_tensors(trainer.model, trainer.optimizer, trainer.device)
    return copied(trainer.model.state_dict() | tensors)


def interrupted_and_resumed(make_trainer: MakeTrainer, step: int, **options: Any) -> HandBuilt:
    """A run that was stopped after ``step`` and went on in a trainer with other weights."""
    first = make_trainer("resumed", **options)
    first.logger.on_tick = lambda now: os.kill(os.getpid(), signal.SIGTERM) if now == step else None
    with pytest.raises(Interrupted):
        first.fit()
    checkpoint, _ = newest_valid(first.folder.parent)
    assert checkpoint is not None
    second = make_trainer("resumed", weights=99, **options)
    second.resume(checkpoint)
    assert second.progress.step == step
    second.fit()
    second.logger.rows[:0] = first.logger.rows
    return second


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("step", "optimizer"), [(3, adamw), (4, adamw), (3, muon)])
def test_an_interrupted_run_ends_with_the_bits_of_an_uninterrupted_one(
    make_trainer: MakeTrainer, precision: str, step: int, optimizer: Any
) -> None:
    options = DROPPING | {"precision": precision, "optimizer": optimizer}
    whole = make_trainer("whole", **options)
    whole.fit()
    parts = interrupted_and_resumed(make_trainer, step, **options)
    assert_same_bits(everything(parts), everything(whole))
    assert parts.precision.scaler.state_dict() == whole.precision.scaler.state_dict()
    assert bool(parts.precision.scaler.state_dict()) is (precision == "fp16")
    for key in ("train/loss", "val/loss", "lr", "grad_norm", "tokens"):
        assert parts.logger.column(key) == whole.logger.column(key), key
    for key in ("step", "tokens", "val_loss", "best_val_loss", "best_step"):
        assert getattr(parts.progress, key) == getattr(whole.progress, key), key


def test_another_dropout_state_would_have_ended_with_other_bits(make_trainer: MakeTrainer) -> None:
    whole = make_trainer("whole", **DROPPING)
    whole.fit()
    other = make_trainer("other", **DROPPING)
    other.logger.on_tick = lambda step: torch.manual_seed(step)
    other.fit()
    assert not torch.equal(whole.model.embed.weight, other.model.embed.weight)


@pytest.mark.parametrize(
    "watching",
    [
        {"sample_interval": 1},
        {"eval_interval": 1, "eval_batches": None},
        {"log_interval": 3},
        {"checkpoint_interval": 1, "keep_last": 1},
        {"checkpoint_interval": None},
    ],
    ids=str,
)
def test_how_closely_a_run_is_watched_does_not_change_it(
    make_trainer: MakeTrainer, watching: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm.training.trainer.SAMPLE", SamplingOptions(max_new_tokens=5))
    plain = make_trainer("plain", **DROPPING)
    plain.fit()
    watched = make_trainer("watched", **DROPPING | watching)
    watched.fit()
    assert len(watched.logger.samples) == (8 if "sample_interval" in watching else 0)
    assert_same_bits(everything(watched), everything(plain))


def test_seconds_are_summed_over_an_interruption(make_trainer: MakeTrainer) -> None:
    first = make_trainer(checkpoint_interval=4)
    first.fit()
    first.progress.train_seconds = 1000.0
    first.save()
    second = make_trainer(max_steps=9)
    second.resume(Checkpoint.open(first.folder / "last"))
    assert second.fit().step == 9
    assert 1000 < second.progress.train_seconds < 1060
    assert second.logger.column("tokens_per_second")[9] > 64 / 60  # the 1000 seconds left out


def test_a_finished_run_given_more_steps_goes_on(make_trainer: MakeTrainer) -> None:
    first = make_trainer()
    first.fit()
    second = make_trainer(max_steps=12)
    second.resume(Checkpoint.open(first.folder / "last"))
    second.fit()
    assert second.logger.steps == [9, 10, 11, 12]
    assert list(second.logger.column("val/loss")) == [12]


def test_the_best_weights_are_no_place_to_resume_from(make_trainer: MakeTrainer) -> None:
    first = make_trainer()
    first.fit()
    with pytest.raises(Refused, match="holds weights only"):
        make_trainer("other").resume(Checkpoint.open(first.folder / "best"))
