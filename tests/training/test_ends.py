"""However a run ends, what it leaves is whole: a checkpoint, counters, and the signal handlers."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from llm.checkpoint.checkpoint import Checkpoint
from llm.errors import Diverged, Interrupted
from llm.signals import SIGNALS
from tests.training.conftest import HandBuilt, MakeTrainer, assert_same_bits, copied


def checkpoints(trainer: HandBuilt) -> list[str]:
    """Names of what is in the folder, the pointers left out."""
    return sorted(path.name for path in trainer.folder.glob("*-*"))


def test_a_whole_run_leaves_its_last_steps_and_its_best(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    progress = trainer.fit()
    assert progress.step == 8
    best = f"best-{progress.best_step:08d}"
    assert checkpoints(trainer) == [best, "step-00000004", "step-00000008"]
    assert_same_bits(trainer.newest.weights(), copied(trainer.model.state_dict()))
    assert trainer.newest.state["run_id"] == "abcd1234"


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


def test_time_running_out_ends_with_an_evaluation_and_a_checkpoint(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer(max_minutes=30)

    def an_hour_passes(step: int) -> None:
        trainer.progress.train_seconds += 3600 * (step == 2)

    trainer.logger.on_tick = an_hour_passes
    assert trainer.fit().step == 3
    assert list(trainer.logger.column("val/loss")) == [0, 3]
    assert trainer.newest.step == 3


def test_a_loss_that_no_longer_improves_ends_the_run_after_patience(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer(lr=0.0, patience=2, eval_interval=2, checkpoint_interval=None)
    assert trainer.fit().step == 4
    assert list(trainer.logger.column("val/loss")) == [0, 2, 4]  # the first is the best
    assert trainer.newest.step == 4


def test_a_loss_that_improves_renews_the_patience(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(patience=1, eval_interval=1, lr=1e-3)
    assert trainer.fit().step == 8


def test_eval_only_changes_and_writes_nothing(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(eval_only=True)
    before = copied(trainer.model.state_dict())
    progress = trainer.fit()
    assert (progress.step, progress.tokens) == (0, 0)
    assert list(trainer.logger.column("val/loss")) == [0]
    assert_same_bits(copied(trainer.model.state_dict()), before)
    assert not trainer.folder.exists()


def test_eval_only_that_is_interrupted_writes_nothing_either(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(eval_only=True)
    evaluate = trainer.evaluate

    def interrupted() -> dict[str, float | int | None]:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate()

    trainer.evaluate = interrupted
    with pytest.raises(Interrupted):
        trainer.fit()
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
    assert trainer.newest.training()
    assert {n: signal.getsignal(n) for n in before} == before


def test_a_signal_before_the_first_step_leaves_a_checkpoint_too(make_trainer: MakeTrainer) -> None:
    trainer, log = make_trainer(), []

    def interrupt(row: dict[str, float | int | None]) -> None:
        log.append(row)
        os.kill(os.getpid(), signal.SIGTERM)

    trainer.logger.log = interrupt
    with pytest.raises(Interrupted, match="at step 0"):
        trainer.fit()
    assert trainer.newest.step == 0
    again = make_trainer("again")
    again.resume(trainer.newest)
    again.fit()
    steps = [row["step"] for row in [*log, *again.logger.rows] if "val/loss" in row]
    assert steps == [0, 4, 8]


@pytest.mark.parametrize("interrupted", [False, True], ids=["going on", "interrupted"])
@pytest.mark.parametrize("log_interval", [1, 100])
def test_weights_that_are_not_numbers_end_the_run_and_replace_no_sound_checkpoint(
    make_trainer: MakeTrainer, log_interval: int, interrupted: bool
) -> None:
    trainer = make_trainer(checkpoint_interval=1, eval_interval=100, log_interval=log_interval)

    def break_weights(step: int) -> None:
        if step == 5:  # as an update does whose gradients overflowed: the loss was still sound
            with torch.no_grad():
                trainer.model.norm.weight[0] = float("nan")
            if interrupted:
                os.kill(os.getpid(), signal.SIGTERM)

    trainer.logger.on_tick = break_weights
    with pytest.raises(Diverged, match="at step 5"):
        trainer.fit()
    assert trainer.newest.step == 4
    assert all(tensor.isfinite().all() for tensor in trainer.newest.weights().values())


def test_a_validation_loss_that_is_no_number_ends_the_run(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    with torch.no_grad():
        trainer.model.norm.weight[0] = float("inf")
    with pytest.raises(Diverged, match="the validation loss is nan at step 0") as end:
        trainer.fit()
    assert end.value.facts == {"step": 0, "scale": 1.0, "skipped_steps": 0}
    assert trainer.logger.rows == []
    json.dumps(trainer.outcome(), allow_nan=False)  # for summary.json


def test_handlers_are_given_back_after_a_failure(make_trainer: MakeTrainer) -> None:
    before = signal.getsignal(signal.SIGTERM)
    trainer = make_trainer()

    def fail(step: int) -> None:
        raise RuntimeError("a logger that fails")

    trainer.logger.on_tick = fail
    with pytest.raises(RuntimeError, match="a logger that fails"):
        trainer.fit()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_run_into_the_same_folder_keeps_it_tidy(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    make_trainer().fit()
    trainer = make_trainer()
    trainer.fit()
    assert [name for name in checkpoints(trainer) if name.startswith("step")] == [
        "step-00000004", "step-00000008",
    ]  # fmt: skip
