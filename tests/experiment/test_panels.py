"""The panels before and after training."""

from pathlib import Path

import pytest

from llm.experiment.panels import show_already_finished, show_end, show_start
from llm.training.schedule import Horizon
from llm.training.state import Progress
from tests.training.conftest import MakeTrainer, make_trainer, one_thread  # noqa: F401  (fixtures)

SUMMARY = {
    "wall_seconds": 61.0, "peak_memory_bytes": 2**30, "tokens_per_second": 1234.0,
    "bits_per_byte": 2.5,
}  # fmt: skip


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_the_first_panel_shows_the_step_of_a_resumed_run_and_that_it_is_deterministic(
    make_trainer: MakeTrainer,  # noqa: F811  (the fixture)
    capsys: pytest.CaptureFixture[str],
) -> None:
    trainer = make_trainer()
    show_start(Path("outputs/a"), trainer, trainer.dataset, "fp32, as configured", "1 MiB")
    text = shown(capsys)
    assert "fp32, as configured" in text and "outputs/a" in text
    assert "continues" not in text and "deterministic" not in text
    assert "trained" not in text, "all parameters are"
    trainer = make_trainer(deterministic=True)
    trainer.progress.step = 4
    trainer.model.embed.requires_grad_(False)
    show_start(Path("outputs/a"), trainer, trainer.dataset, "fp32, as configured", "1 MiB")
    text = shown(capsys)
    assert "continues after step 4" in text
    kept = trainer.model.n_parameters() - trainer.model.embed.weight.numel()
    assert f"trained {kept:,} of the parameters" in text
    assert "deterministic the same bits each time" in text


def test_the_last_panel_shows_skipped_steps_and_rollbacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(step=8, best_val_loss=1.5, best_step=4, train_seconds=60.0)
    show_end(tmp_path, progress, SUMMARY)
    text = shown(capsys)
    assert "1.5000 at step 4 (2.500 bits per byte)" in text
    assert "divergence" not in text and "budget" not in text
    progress.skipped, progress.rollbacks = 3, 1
    show_end(tmp_path, progress, SUMMARY)
    assert "divergence 3 steps skipped, 1 rollback" in shown(capsys)


def test_a_budget_in_minutes_is_in_both_panels(
    make_trainer: MakeTrainer,  # noqa: F811  (the fixture)
    capsys: pytest.CaptureFixture[str],
) -> None:
    trainer = make_trainer(max_steps=None, max_minutes=5)
    show_start(Path("outputs/a"), trainer, trainer.dataset, "fp32, as configured", "1 MiB")
    assert "training tokens, 5 minutes of training" in shown(capsys)
    horizon = Horizon(max_steps=8, minutes=5)
    progress = Progress(step=8, train_seconds=306.0, horizon=horizon)
    show_end(Path("outputs/a"), progress, SUMMARY)
    assert "budget 5.10 of 5 minutes of training: 8 steps" in shown(capsys)


def test_the_next_command_of_a_run_on_conversations_is_a_chat(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints").mkdir()
    for is_chat, typed in ((True, "chat=true"), (False, 'prompt="..."')):
        show_end(tmp_path, Progress(), SUMMARY, is_chat)
        assert shown(capsys).endswith(typed)


def test_an_evaluation_before_the_first_step_has_no_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_end(tmp_path, Progress(best_val_loss=4.0), SUMMARY)
    assert "budget" not in shown(capsys)


def test_a_finished_run_shows_the_command_to_train_on(capsys: pytest.CaptureFixture[str]) -> None:
    show_already_finished(Path("outputs/my run"), None, "trainer.max_steps=MORE")
    assert "'resume=outputs/my run' trainer.max_steps=MORE" in shown(capsys)
