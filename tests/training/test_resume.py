"""A run that was interrupted, or watched more closely, ends with the same bits."""

import functools
import random
import time
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from llm.checkpoint.checkpoint import Checkpoint
from llm.sampling.options import SamplingOptions
from llm.training.optimizer import adamw, muon
from llm.training.precision import LossScale
from llm.training.state import Progress
from tests.training.conftest import HandBuilt, MakeTrainer, assert_same_bits

DROPPING: dict[str, Any] = {"dropout": 0.1, "micro_batch_size": 2, "log_interval": 1}
TIMES = {"train_seconds", "eval_seconds", "checkpoint_seconds"}
COMPARED = ("train/loss", "val/loss", "lr", "grad_norm", "tokens")


def stopped(make_trainer: MakeTrainer, step: int, **options: Any) -> HandBuilt:
    """A run that a signal ended after ``step``."""
    trainer = make_trainer("resumed", **options)
    trainer.stop_after(step)
    return trainer


def resumed(make_trainer: MakeTrainer, before: HandBuilt, **options: Any) -> HandBuilt:
    """Another trainer, with other weights, at the last checkpoint of ``before``."""
    trainer = make_trainer("resumed", weights=99, **options)
    trainer.resume(before.newest)
    trainer.logger.rows = list(before.logger.rows)
    return trainer


def interrupted_and_resumed(make_trainer: MakeTrainer, step: int, **options: Any) -> HandBuilt:
    """A run that was stopped after ``step`` and resumed in a trainer with other weights."""
    second = resumed(make_trainer, stopped(make_trainer, step, **options), **options)
    assert second.progress.step == step
    second.fit()
    return second


def assert_same_run(parts: HandBuilt, whole: HandBuilt) -> None:
    """The same bits at the end, and the same numbers on the way, each step once."""
    assert_same_bits(parts.everything(), whole.everything())
    assert parts.precision.loss_scale == whole.precision.loss_scale
    assert parts.guard.recent == whole.guard.recent
    for key in COMPARED:
        assert parts.logger.column(key) == whole.logger.column(key), key
    assert len(parts.logger.rows) == len(whole.logger.rows)
    for key in Progress.__dataclass_fields__.keys() - TIMES:
        assert getattr(parts.progress, key) == getattr(whole.progress, key), key


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("step", "optimizer"), [(3, adamw), (4, adamw), (3, muon)])
def test_an_interrupted_run_ends_with_the_bits_of_an_uninterrupted_one(
    make_trainer: MakeTrainer, precision: str, step: int, optimizer: Any
) -> None:
    options = DROPPING | {"precision": precision, "optimizer": optimizer}
    whole = make_trainer("whole", **options)
    whole.fit()
    assert_same_run(interrupted_and_resumed(make_trainer, step, **options), whole)


# Every second combination, which has every pair of values; the others are slow tests.
LEVERS = [
    pytest.param(*one, marks=[pytest.mark.slow] * (number.bit_count() % 2))
    for number, one in enumerate(
        product(["fp32", "fp16", "bf16_weights"], [False, True], [32, 8], [adamw, muon])
    )
]


@pytest.mark.parametrize(("precision", "in_backward", "bits", "optimizer"), LEVERS)
def test_it_does_with_every_lever_that_saves_memory(
    make_trainer: MakeTrainer, precision: str, in_backward: bool, bits: int, optimizer: Any
) -> None:
    options = DROPPING | {
        "precision": precision, "step_in_backward": in_backward,
        "micro_batch_size": None if in_backward else 2,
        "optimizer": functools.partial(optimizer, state_bits=bits),
        "activation_checkpointing": "full",
    }  # fmt: skip
    whole = make_trainer("whole", **options)
    whole.fit()
    assert_same_run(interrupted_and_resumed(make_trainer, 3, **options), whole)


def test_it_does_over_the_end_of_an_epoch_and_twice_in_a_row(make_trainer: MakeTrainer) -> None:
    options = DROPPING | {"batch_size": 450, "micro_batch_size": 150}
    whole = make_trainer("whole", **options)
    assert 2 * whole.batch_size < whole.sampler.windows < 3 * whole.batch_size
    whole.fit()
    first = stopped(make_trainer, 2, **options)  # the third step crosses into the next epoch
    second = resumed(make_trainer, first, **options)
    second.stop_after(3)
    third = resumed(make_trainer, second, **options)
    third.fit()
    assert_same_run(third, whole)


@pytest.fixture
def quickly_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile without code generation, which takes most of its time."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compiled(model, backend="eager"))


@pytest.mark.usefixtures("quickly_compiled")
def test_a_compiled_run_ends_with_the_bits_of_an_uninterrupted_one(
    make_trainer: MakeTrainer,
) -> None:
    whole = make_trainer("whole", **DROPPING, compile=True)
    before = whole.everything()
    whole.compile_ahead()
    assert_same_bits(whole.everything(), before)
    whole.fit()
    assert_same_run(interrupted_and_resumed(make_trainer, 3, **DROPPING, compile=True), whole)


LEFT_OUT: dict[str, Callable[[HandBuilt], object]] = {
    "weights": lambda t: t.model.initialise(),
    "optimizer": lambda t: t.optimizer.state.clear(),
    "loss scale": lambda t: setattr(t.precision, "loss_scale", LossScale(1024.0)),
    "torch's random state": lambda t: torch.manual_seed(5),
    "Python's random state": lambda t: random.seed(5),
    "numpy's random state": lambda t: np.random.seed(5),
    "step": lambda t: setattr(t.progress, "step", 0),
    "tokens": lambda t: setattr(t.progress, "tokens", 0),
    "best loss": lambda t: setattr(t.progress, "best_val_loss", None),
    "patience": lambda t: setattr(t.progress, "evaluations_since_best", 0),
    "guard": lambda t: t.guard.recent.losses.clear(),
    "interrupted row": lambda t: setattr(t.progress, "row", {}),
}


def with_other_generators(trainer: HandBuilt) -> HandBuilt:
    """Draws from Python's and numpy's generators too, as a custom module may."""

    def noise(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        if not module.training:
            return None
        return output * (1 + 0.01 * random.gauss(0, 1) + 0.01 * float(np.random.standard_normal()))

    trainer.model.embed.register_forward_hook(noise)
    return trainer


@pytest.mark.parametrize("item", [None, *LEFT_OUT])
def test_each_thing_that_is_saved_is_needed(make_trainer: MakeTrainer, item: str | None) -> None:
    """Tests the tests above: the loss goes up, so that patience ends the run."""
    options = DROPPING | {
        "precision": "fp16", "lr": 0.2, "eval_interval": 1, "patience": 5, "max_steps": 40,
    }  # fmt: skip
    random.seed(3)
    np.random.seed(3)
    whole = with_other_generators(make_trainer("whole", **options))
    whole.fit()
    assert 5 < whole.progress.step < 40, "patience ended it"
    random.seed(3)
    np.random.seed(3)
    first = with_other_generators(make_trainer("resumed", **options))
    first.stop_after(whole.progress.step - 3)
    random.seed(99)
    np.random.seed(99)
    second = with_other_generators(resumed(make_trainer, first, **options))
    assert second.progress.row, "the signal came before the evaluation"
    if item is None:
        second.fit()
        assert_same_run(second, whole)
    else:
        LEFT_OUT[item](second)
        second.fit()
        with pytest.raises(AssertionError):
            assert_same_run(second, whole)


@pytest.mark.parametrize(
    "watching",
    [
        {"sample_interval": 1},
        {"eval_interval": 1, "eval_batches": None},
        {"log_interval": 3},
        {"checkpoint_interval": 1, "keep_last": 1},
        {"checkpoint_interval": None},
        {"profile": True},
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
    assert_same_bits(watched.everything(), plain.everything())


def test_seconds_are_summed_over_an_interruption(make_trainer: MakeTrainer) -> None:
    first = make_trainer(checkpoint_interval=4)
    first.fit()
    first.progress.train_seconds = 1000.0
    first.save()
    second = make_trainer(max_steps=9)
    second.resume(Checkpoint.open(first.folder / "last"))
    began = time.perf_counter()
    assert second.fit().step == 9
    took = time.perf_counter() - began
    assert 1000 < second.progress.train_seconds < 1000 + took
    assert second.logger.column("tokens_per_second")[9] > 64 / took  # without the 1000 seconds
