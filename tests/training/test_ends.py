"""However a run ends, it leaves a whole checkpoint, its counters, and the signal handlers."""

import json
import os
import signal

import pytest
import torch

from llm.checkpoint.checkpoint import Checkpoint
from llm.errors import Diverged, Interrupted
from llm.signals import SIGNALS
from llm.training.logger import Row
from tests.training.conftest import HandBuilt, MakeTrainer, assert_same_bits, copied, signalled


def checkpoints(trainer: HandBuilt) -> list[str]:
    return sorted(path.name for path in trainer.folder.glob("*-*"))


def test_a_whole_run_leaves_its_last_steps_and_its_best(make_trainer: MakeTrainer) -> None:
    make_trainer().fit()
    trainer = make_trainer()  # into the same folder
    progress = trainer.fit()
    assert progress.step == 8
    best = f"best-{progress.best_step:08d}"
    assert checkpoints(trainer) == [best, "step-00000004", "step-00000008"]
    assert_same_bits(trainer.newest.weights(), copied(trainer.model.state_dict()))
    assert trainer.newest.state["run_id"] == trainer.logger.run_id
    outcome, losses = trainer.outcome(), trainer.logger.column("val/loss")
    assert (outcome["step"], outcome["tokens"]) == (8, 8 * 64)
    assert outcome["parameters"] == sum(p.numel() for p in trainer.model.parameters())
    assert (outcome["val_loss"], outcome["best_val_loss"]) == (losses[8], min(losses.values()))
    best_bits = trainer.logger.column("val/bits_per_byte")[progress.best_step]
    assert outcome["bits_per_byte"] == best_bits
    assert outcome["train_seconds"] > 0 and outcome["peak_memory_bytes"] > 0


def test_the_best_checkpoint_has_the_weights_of_the_lowest_validation_loss(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer(eval_interval=1, lr=0.2, patience=3)  # the loss soon goes up
    progress = trainer.fit()
    losses = trainer.logger.column("val/loss")
    assert progress.best_val_loss == min(losses.values()) < losses[progress.step]
    best = Checkpoint.open(trainer.folder / "best")
    assert losses[best.step] == min(losses.values())
    trainer.model.load_state_dict(best.weights())
    assert trainer.evaluate()["val/loss"] == pytest.approx(progress.best_val_loss, abs=1e-6)


def test_when_time_runs_out_it_evaluates_and_saves(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_minutes=30)

    def an_hour_passes(step: int) -> None:
        trainer.progress.train_seconds += 3600 * (step == 2)

    trainer.logger.on_tick = an_hour_passes
    assert trainer.fit().step == 3
    assert list(trainer.logger.column("val/loss")) == [0, 3]
    assert trainer.newest.step == 3


def test_patience_ends_a_run_that_does_not_improve(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(lr=0.0, patience=2, eval_interval=2, checkpoint_interval=None)
    assert trainer.fit().step == 4
    assert list(trainer.logger.column("val/loss")) == [0, 2, 4]  # the first is the best
    assert trainer.newest.step == 4
    assert make_trainer("better", patience=1, eval_interval=1, lr=1e-3).fit().step == 8


@pytest.mark.parametrize("interrupted", [False, True])
def test_eval_only_changes_and_writes_nothing(make_trainer: MakeTrainer, interrupted: bool) -> None:
    trainer = make_trainer(eval_only=True)
    before, evaluate = copied(trainer.model.state_dict()), trainer.evaluate

    def then_signal() -> Row:
        signalled()
        return evaluate()

    if interrupted:
        trainer.evaluate = then_signal
        with pytest.raises(Interrupted, match="nothing is written"):
            trainer.fit()
    else:
        trainer.fit()
        assert list(trainer.logger.column("val/loss")) == [0]
    assert (trainer.progress.step, trainer.progress.tokens) == (0, 0)
    assert_same_bits(copied(trainer.model.state_dict()), before)
    assert not trainer.folder.exists()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(
    make_trainer: MakeTrainer, number: signal.Signals
) -> None:
    before = {n: signal.getsignal(n) for n in SIGNALS}
    trainer = make_trainer()
    trainer.logger.on_tick = lambda step: os.kill(os.getpid(), number) if step == 3 else None
    with pytest.raises(Interrupted, match=f"{number.name} at step 3: the checkpoint is saved"):
        trainer.fit()
    assert trainer.logger.steps == [1, 2, 3]
    assert trainer.newest.step == 3
    assert {n: signal.getsignal(n) for n in before} == before


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("log_interval", [1, 100])
def test_nan_in_the_weights_ends_the_run_and_replaces_no_sound_checkpoint(
    make_trainer: MakeTrainer, log_interval: int, interrupted: bool
) -> None:
    trainer = make_trainer(checkpoint_interval=1, eval_interval=100, log_interval=log_interval)

    def break_weights(step: int) -> None:
        if step == 5:
            with torch.no_grad():
                trainer.model.norm.weight[0] = float("nan")
            if interrupted:
                signalled()

    trainer.logger.on_tick = break_weights
    with pytest.raises(Diverged, match="at step 5"):
        trainer.fit()
    assert trainer.newest.step == 4
    assert all(tensor.isfinite().all() for tensor in trainer.newest.weights().values())


def test_a_validation_loss_of_nan_ends_the_run(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    with torch.no_grad():
        trainer.model.norm.weight[0] = float("inf")
    with pytest.raises(Diverged, match="the validation loss is nan at step 0") as end:
        trainer.fit()
    assert end.value.facts == {"step": 0, "scale": 1.0, "skipped_steps": 0}
    assert trainer.logger.rows == []
    json.dumps(trainer.outcome(), allow_nan=False)  # for summary.json
