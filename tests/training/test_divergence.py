"""NaN never reaches the weights, spikes are reported, and a run that diverges can roll back."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llm.errors import Diverged, Interrupted
from llm.experiment.rundir import recording
from llm.training.logger import Row
from llm.training.schedule import Constant
from tests.training.conftest import HandBuilt, MakeTrainer, assert_same_bits, copied, signalled

NAN, PRECISIONS = math.nan, ["fp32", "bf16", "fp16"]
LONG: dict[str, Any] = {"max_steps": 40, "eval_interval": 100, "checkpoint_interval": None}


def disturb(
    trainer: HandBuilt, change: Callable[[Tensor], Tensor], when: Callable[[int], bool]
) -> None:
    """Change the loss of the steps for which ``when`` is true."""
    network = trainer.network

    def inner(*tokens: Tensor, reduction: str) -> Tensor:
        loss: Tensor = network(*tokens, reduction=reduction)
        return change(loss) if when(trainer.progress.step + 1) else loss

    trainer.network = inner


def nan_loss(loss: Tensor) -> Tensor:
    return loss * NAN


def nan_gradient(loss: Tensor) -> Tensor:
    """The loss is finite, its gradients are not."""
    loss.register_hook(lambda gradient: gradient * NAN)
    return loss


def overflow(loss: Tensor) -> Tensor:
    """The loss is finite, its gradients overflow at any scale."""
    loss.register_hook(lambda gradient: gradient * math.inf)
    return loss


def spike(loss: Tensor) -> Tensor:
    return loss * 100


def changing_steps(trainer: HandBuilt) -> list[int]:
    """Filled while it trains: the steps that change the weights."""
    before, taken = copied(trainer.model.state_dict()), list[int]()

    def compare(step: int) -> None:
        now = copied(trainer.model.state_dict())
        assert all(tensor.isfinite().all() for tensor in now.values())
        if any(not torch.equal(now[name], before[name]) for name in now):
            taken.append(step)
        before.update(now)

    trainer.logger.on_tick = compare
    return taken


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("broken", [nan_loss, nan_gradient])
def test_one_step_that_is_not_finite_is_skipped_and_the_others_are_taken(
    make_trainer: MakeTrainer, broken: Callable[[Tensor], Tensor], precision: str
) -> None:
    trainer = make_trainer(precision=precision, max_steps=12, log_interval=1, micro_batch_size=2)
    disturb(trainer, broken, lambda step: step == 7)
    taken = changing_steps(trainer)
    progress = trainer.fit()
    assert taken == [step for step in range(1, 13) if step != 7]
    assert (progress.step, progress.skipped, progress.tokens) == (12, 1, 12 * 64)
    seventh = next(row for row in trainer.logger.rows if row["step"] == 7)
    assert (seventh["train/loss"] is None) is (broken is nan_loss)
    assert seventh["grad_norm"] is None
    assert trainer.logger.column("skipped_steps") == dict.fromkeys(range(7, 13), 1)
    assert trainer.precision.loss_scale.scale == (2.0**15 if precision == "fp16" else 1.0)
    if precision == "fp16" and broken is nan_gradient:  # overflows are how the scale is found
        assert trainer.logger.warnings == []
    else:
        (warning,) = trainer.logger.warnings
        assert warning.startswith("step 7: loss ")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_that_stays_at_nan_ends_and_keeps_its_last_sound_checkpoint(
    make_trainer: MakeTrainer, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the ledger is written
    trainer = make_trainer(precision=precision, max_skipped=5, checkpoint_interval=2, max_steps=30)
    disturb(trainer, nan_loss, lambda step: step >= 7)
    run = trainer.folder.parent
    with pytest.raises(Diverged, match="5 steps in a row") as end, recording(run, {}, "", True):
        trainer.fit()
    assert end.value.exit_status == 3
    facts = json.loads((run / "diverged.json").read_text(encoding="utf-8"))
    assert facts == {
        "reason": str(end.value), "step": 11, "loss": "nan", "grad_norm": "nan",
        "positions": trainer.sampler.positions(11).tolist(),
        "scale": 2.0**12 if precision == "fp16" else 1.0,  # halved four times from 2^16
        "skipped_steps": 4,  # the fifth ended it
    }  # fmt: skip
    assert trainer.newest.step == 6
    assert_same_bits(trainer.newest.weights(), copied(trainer.model.state_dict()))


def test_gradients_that_always_overflow_end_the_run_before_they_ruin_it(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer(precision="fp16", max_steps=201, max_skipped=1000, log_interval=1)
    disturb(trainer, overflow, lambda step: step <= 200)
    taken = changing_steps(trainer)
    with pytest.raises(Diverged, match=r"step 17: .* overflow even at a loss scale of 0\.5") as end:
        trainer.fit()
    assert end.value.facts == {"step": 17, "scale": 0.5, "skipped_steps": 17}
    assert taken == []


@pytest.mark.parametrize("skip", [False, True])
def test_a_spike_is_reported_once_and_skipped_on_request(
    make_trainer: MakeTrainer, skip: bool
) -> None:
    trainer = make_trainer(skip_spikes=skip, log_interval=1, **LONG)
    disturb(trainer, spike, lambda step: step == 36)
    taken = changing_steps(trainer)
    trainer.fit()
    assert taken == [step for step in range(1, 41) if not (skip and step == 36)]
    assert trainer.progress.skipped == skip
    where = ", ".join(map(str, trainer.sampler.positions(36)))
    loss, norm = (trainer.logger.column(key)[36] for key in ("train/loss", "grad_norm"))
    assert trainer.logger.warnings == [
        f"step 36: loss {loss:.4g}, gradient norm {norm:.4g}: a spike{', skipped' * skip} "
        f"(windows at {where})"
    ]


ROLLING: dict[str, Any] = {
    "max_steps": 12, "log_interval": 1, "max_skipped": 3, "rollbacks": 2, "dropout": 0.1,
}  # fmt: skip


def until_rolled_back(trainer: HandBuilt) -> Callable[[int], bool]:
    return lambda step: step >= 7 and trainer.progress.rollbacks == 0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_that_diverges_rolls_back_and_continues_at_half_the_rate(
    make_trainer: MakeTrainer, precision: str
) -> None:
    options = ROLLING | {"precision": precision, "schedule": Constant("constant", warmup_steps=0)}
    trainer = make_trainer(**options)
    disturb(trainer, nan_loss, until_rolled_back(trainer))
    progress = trainer.fit()
    assert (progress.step, progress.rollbacks, progress.skipped) == (12, 1, 0)
    assert progress.tokens == 12 * 64
    assert trainer.logger.warnings[-1].endswith("; back to step 4, at half the learning rate")
    assert [row["step"] for row in trainer.logger.rows] == list(range(13)), "each step once"
    wanted = dict.fromkeys(range(1, 5), 1e-2) | dict.fromkeys(range(5, 13), 5e-3)
    assert trainer.logger.column("lr") == wanted

    make_trainer("halved", **options).stop_after(4)
    halved = make_trainer("halved", **options)
    halved.resume(halved.newest)
    halved.progress.rollbacks = 1
    halved.fit()
    assert_same_bits(trainer.everything(), halved.everything())
    assert trainer.precision.loss_scale == halved.precision.loss_scale
    assert trainer.guard.recent == halved.guard.recent


def test_a_run_that_diverges_again_and_again_ends(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(**ROLLING)
    disturb(trainer, nan_loss, lambda step: step >= 7)
    with pytest.raises(Diverged, match=r"step 9: .* 3 steps in a row"):
        trainer.fit()
    assert sum("back to step 4" in warning for warning in trainer.logger.warnings) == 2
    assert trainer.progress.rollbacks == 2
    assert trainer.logger.column("lr")[8] == pytest.approx(1e-2 * trainer.schedule(8, 12) / 4)
    assert trainer.newest.step == 4


@pytest.mark.parametrize("rollbacks", [0, 2])
def test_without_a_checkpoint_or_rollbacks_it_ends(
    make_trainer: MakeTrainer, rollbacks: int
) -> None:
    trainer = make_trainer(**ROLLING | {"rollbacks": rollbacks})
    disturb(trainer, nan_loss, lambda step: step >= 2)
    with pytest.raises(Diverged, match="step 4: "):
        trainer.fit()
    assert trainer.progress.rollbacks == 0
    wanted = "no checkpoint to return to: lower trainer.checkpoint_interval"
    assert (wanted in trainer.logger.warnings) is (rollbacks > 0)


def test_nan_in_the_weights_is_rolled_back_too(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(**ROLLING)

    def ruin(step: int) -> None:
        if step == 7 and trainer.progress.rollbacks == 0:
            with torch.no_grad():
                trainer.model.norm.weight[0] = NAN

    trainer.logger.on_tick = ruin
    assert trainer.fit().step == 12
    assert trainer.progress.rollbacks == 1
    assert all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())


@pytest.mark.parametrize(
    ("step", "precision"), [(4, "fp32"), (6, "fp16"), (10, "fp32")],
    ids=["during the rollback", "before the divergence", "after it"],
)  # fmt: skip
def test_a_rolled_back_run_is_the_same_after_an_interruption(
    make_trainer: MakeTrainer, step: int, precision: str
) -> None:
    options = ROLLING | {"precision": precision}
    whole = make_trainer("whole", **options)
    disturb(whole, nan_loss, until_rolled_back(whole))
    whole.fit()
    first = make_trainer("parts", **options)
    disturb(first, nan_loss, until_rolled_back(first))

    def interrupt(now: int) -> None:
        if now == step and first.progress.rollbacks:
            signalled()

    rewind = first.logger.rewind
    first.logger.on_tick = interrupt
    first.logger.rewind = lambda to: (rewind(to), interrupt(to))
    with pytest.raises(Interrupted, match=f"at step {step}:"):
        first.fit()
    second = make_trainer("parts", weights=9, **options)  # nothing disturbs this one
    second.resume(first.newest)
    second.fit()
    assert second.progress.rollbacks == 1
    assert_same_bits(second.everything(), whole.everything())
    second.logger.rows[:0] = first.logger.rows
    for key in ("train/loss", "val/loss", "lr"):
        assert second.logger.column(key) == whole.logger.column(key), key
    assert [row["step"] for row in second.logger.rows] == list(range(13))


def test_a_rollback_keeps_the_best_weights_and_the_time_spent(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(**ROLLING | {"checkpoint_interval": 4, "eval_interval": 1})
    evaluate = trainer.evaluate

    def lucky() -> Row:
        row = evaluate()
        if trainer.progress.step == 5 and not trainer.progress.rollbacks:
            trainer.progress.best_val_loss, trainer.progress.best_step = 0.5, 5
            trainer.progress.train_seconds += 1000
        return row

    trainer.evaluate = lucky
    disturb(trainer, nan_loss, until_rolled_back(trainer))
    progress = trainer.fit()
    assert (progress.rollbacks, progress.best_val_loss, progress.best_step) == (1, 0.5, 5)
    assert progress.train_seconds > 1000
