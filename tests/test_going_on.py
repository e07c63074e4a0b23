"""What a run folder may and may not go through when its command is typed again or changed."""

import shutil
from pathlib import Path

import pytest

from tests.command_line import here, rows, summary
from tests.conftest import TINY_RUN


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A folder in which ``outputs/base`` has finished."""
    cwd = tmp_path_factory.mktemp("base")
    data = ["data=text", f"data.path={text_file}", "data.tokenizer=byte", "data.dir=data"]
    done = here("train", *data, *TINY_RUN, "run.name=base", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd


@pytest.fixture
def cwd(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "copy", symlinks=True))


@pytest.fixture
def data(text_file: Path) -> list[str]:
    return ["data=text", f"data.path={text_file}", "data.tokenizer=byte", "data.dir=data"]


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_evaluating_only_never_takes_the_place_of_training(cwd: Path, data: list[str]) -> None:
    refused = here("train", *data, *TINY_RUN, "run.name=x", "trainer.eval_only=true", cwd=cwd)
    assert refused.returncode == 2
    assert "run.name" in refused.stderr
    before = contents(cwd / "outputs/base")
    done = here("train", "resume=outputs/base", "trainer.eval_only=true", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert contents(cwd / "outputs/base") == before
    (other,) = cwd.glob("outputs/????-??-??/*")
    assert summary(other)["best_val_loss"] == summary(cwd / "outputs/base")["best_val_loss"]
    assert summary(other)["step"] == 0


def test_a_damaged_checkpoint_is_refused_before_the_folder_is_touched(cwd: Path) -> None:
    base = cwd / "outputs/base"
    path = base / "checkpoints/last/training.safetensors"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    before = contents(base)
    done = here("train", "resume=outputs/base", "trainer.max_steps=9", cwd=cwd)
    assert done.returncode == 2
    assert "training.safetensors is damaged" in done.stderr
    assert contents(base) == before


def test_a_run_that_started_from_other_weights_goes_on_without_them(
    cwd: Path, data: list[str]
) -> None:
    tuned = [*data, *TINY_RUN, "init_from=outputs/base", "run.name=tuned"]
    assert here("train", *tuned, cwd=cwd).returncode == 0
    shutil.rmtree(cwd / "outputs/base")
    done = here("train", "resume=outputs/tuned", "trainer.max_steps=8", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(cwd / "outputs/tuned")] == list(range(9))


def test_weights_that_fit_no_more_are_refused_and_leave_no_run(cwd: Path, data: list[str]) -> None:
    wider = [*data, *TINY_RUN, "model.n_embed=64", "init_from=outputs/base", "run.name=wide"]
    done = here("train", *wider, cwd=cwd)
    assert done.returncode == 2
    assert "embed.weight has shape" in done.stderr
    assert not (cwd / "outputs/wide").exists()


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("run.sweep=x", "add -m"),
        ("logger.project=me/llm", "logger.project=me/llm"),
        ("logger.tags=['']", "1 to 64 characters"),
    ],
)
def test_it_is_refused_before_anything_is_made(
    typed: str, named: str, cwd: Path, data: list[str]
) -> None:
    before = set(contents(cwd))
    done = here("train", *data, *TINY_RUN, typed, cwd=cwd)
    assert done.returncode == 2
    assert named in done.stderr
    assert set(contents(cwd)) == before


def test_all_jobs_are_checked_first_even_in_batches(cwd: Path, data: list[str]) -> None:
    swept = ["-m", "model.n_embed=32,40", "hydra.sweeper.max_batch_size=1"]
    done = here("train", *data, *(o for o in TINY_RUN if "n_embed" not in o), *swept, cwd=cwd)
    assert done.returncode == 2
    assert "model.n_embed=40" in done.stderr
    assert not (cwd / "multirun").exists()


def test_warm_up_stays_what_it_was_when_a_run_is_made_longer(cwd: Path) -> None:
    done = here("train", "resume=outputs/base", "trainer.max_steps=60", cwd=cwd)
    assert done.returncode == 0
    config = (cwd / "outputs/base/config.yaml").read_text(encoding="utf-8")
    assert "max_steps: 60" in config
    assert "warmup_steps: 0" in config  # as for the few steps it was started with, not for 60
    assert "vocab_size: 257" in config


def test_another_optimizer_cannot_go_on_with_a_run(cwd: Path) -> None:
    before = contents(cwd / "outputs/base")
    done = here("train", "resume=outputs/base", "optimizer=adamw", "trainer.max_steps=9", cwd=cwd)
    assert done.returncode == 2
    assert "was trained with optimizer=muon" in done.stderr
    assert "init_from=outputs/base" in done.stderr
    assert contents(cwd / "outputs/base") == before
