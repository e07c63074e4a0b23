"""A report that a signal interrupts is finished by the resumed run."""

import math
from typing import Any

import pytest
import torch

from llm.checkpoint.checkpoint import Checkpoint
from llm.errors import Interrupted
from llm.sampling.options import SamplingOptions
from llm.training.logger import Row
from tests.training.conftest import HandBuilt, MakeTrainer, assert_same_bits, copied, signalled

# Evaluations at steps 0, 4 and 8, in four batches each; samples of 5 tokens at steps 3 and 6.
OPTIONS: dict[str, Any] = {"log_interval": 1, "sample_interval": 3, "checkpoint_interval": None}
MEASURED_ANEW = ("train_seconds", "tokens_per_second", "mfu", "peak_memory_bytes")


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm.training.trainer.SAMPLE", SamplingOptions(max_new_tokens=5))


def fit_until(trainer: HandBuilt, step: int, passes: int) -> None:
    """Train until a signal comes in the ``passes``-th pass without training at ``step``."""
    left = passes

    def count(norm: torch.nn.Module, inputs: object, output: object) -> None:
        nonlocal left
        left -= not norm.training and trainer.progress.step == step
        if left == 0:
            left = -1
            signalled()

    trainer.model.norm.register_forward_hook(count)
    with pytest.raises(Interrupted, match=f"SIGTERM at step {step}: the checkpoint is saved"):
        trainer.fit()


def resumed(make_trainer: MakeTrainer, first: HandBuilt, **options: Any) -> HandBuilt:
    """Another trainer at the last checkpoint of the first one, with its rows so far."""
    second = make_trainer("parts", weights=9, **OPTIONS | options)
    second.resume(first.newest)
    second.logger.rows[:] = first.logger.rows
    second.logger.samples[:] = first.logger.samples
    return second


def results(trainer: HandBuilt) -> list[Row]:
    """Its rows without the numbers that differ from run to run."""
    return [{k: v for k, v in row.items() if k not in MEASURED_ANEW} for row in trainer.logger.rows]


@pytest.mark.parametrize(("step", "passes"), [(0, 1), (4, 3), (8, 1), (6, 4)], ids=str)
def test_each_step_is_logged_once_with_the_same_numbers(
    make_trainer: MakeTrainer, step: int, passes: int
) -> None:
    whole = make_trainer("whole", dropout=0.1, **OPTIONS)
    whole.fit()
    first = make_trainer("parts", dropout=0.1, **OPTIONS)
    fit_until(first, step, passes)
    assert step not in first.logger.column("tokens"), "not before all its numbers are known"
    second = resumed(make_trainer, first, dropout=0.1)
    second.fit()
    assert results(second) == results(whole)
    assert second.logger.samples == whole.logger.samples
    assert_same_bits(copied(second.model.state_dict()), copied(whole.model.state_dict()))
    for key in ("val_loss", "best_val_loss", "best_step", "evaluations_since_best", "row"):
        assert getattr(second.progress, key) == getattr(whole.progress, key), key
    assert Checkpoint.open(second.folder / "best").step == whole.progress.best_step


def test_numbers_measured_before_the_signal_are_kept(make_trainer: MakeTrainer) -> None:
    whole = make_trainer("whole", eval_interval=3, **OPTIONS)
    whole.fit()
    first = make_trainer("parts", eval_interval=3, **OPTIONS)
    fit_until(first, 6, passes=4 + 2)  # in the sample
    row = first.newest.state["progress"]["row"]
    assert row["val/loss"] == first.progress.val_loss == whole.logger.column("val/loss")[6]
    second = resumed(make_trainer, first, eval_interval=3)
    evaluate, evaluated = second.evaluate, list[int]()
    second.evaluate = lambda: evaluated.append(second.progress.step) or evaluate()
    second.fit()
    assert evaluated == [8]
    assert results(second) == results(whole)
    assert second.logger.rows[6] == second.logger.rows[6] | row, "its speed and memory too"


def test_a_signal_after_the_last_report_interrupts_nothing(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(**OPTIONS)
    log = trainer.logger.log

    def log_then_signal(row: Row) -> None:
        log(row)
        if row["step"] == 8:
            signalled()

    trainer.logger.log = log_then_signal
    assert trainer.fit().step == 8
    assert trainer.newest.state["progress"]["row"] is None


def test_after_a_rollback_the_interrupted_report_is_logged_once(make_trainer: MakeTrainer) -> None:
    first = make_trainer("parts", **OPTIONS)
    fit_until(first, 4, passes=1)
    second = resumed(make_trainer, first, rollbacks=1, max_skipped=2)
    network = second.network

    def failing(*tokens: Any, **options: Any) -> Any:
        fails = second.progress.step >= 5 and second.progress.rollbacks == 0
        return network(*tokens, **options) * (math.nan if fails else 1.0)

    second.network = failing
    second.fit()
    assert second.progress.rollbacks == 1
    assert [row["step"] for row in second.logger.rows] == list(range(9))
