"""A run folder that is gone, incomplete, or not the one that was meant."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from llm.experiment.loggers import RunLogger
from tests.command_line import Done, here, listing
from tests.conftest import TINY_RUN


@pytest.fixture(scope="module")
def data(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for a dataset that is prepared already."""
    folder = tmp_path_factory.mktemp("prepared")
    data = ["data=text", f"data.path={text_file}", "data.tokenizer=byte", f"data.dir={folder}"]
    assert here("prepare", *data, cwd=text_file.parent).returncode == 0
    return data


@pytest.fixture
def headless(tmp_path: Path) -> Path:
    """``outputs/a``, in which there is nothing but a checkpoint."""
    (tmp_path / "outputs/a/checkpoints/step-00000002").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def gone_after_step_3(tmp_path: Path) -> Iterator[None]:
    """Somebody deletes the folder of the run, or the folder above it."""
    tick = RunLogger.tick

    def deleting(self: RunLogger, step: int) -> None:
        tick(self, step)
        if step == 3:
            shutil.rmtree(tmp_path / "outputs")

    with patch.object(RunLogger, "tick", deleting):
        yield


@pytest.mark.usefixtures("gone_after_step_3")
@pytest.mark.parametrize(
    ("typed", "place"),
    [
        (["trainer.eval_interval=100"], "metrics.jsonl"),
        (["trainer.log_interval=100", "trainer.eval_interval=100"], "checkpoints/step-00000004"),
        ([], "checkpoints/best-00000003"),
        (
            ["trainer.log_interval=100", "trainer.eval_interval=100", "trainer.sample_interval=3"],
            "samples.jsonl",
        ),
    ],
)
def test_a_run_folder_that_is_deleted_ends_the_run_at_the_next_write_and_is_not_made_again(
    typed: list[str], place: str, tmp_path: Path, data: list[str]
) -> None:
    done = here("train", *data, *TINY_RUN, *typed, "run.name=a", cwd=tmp_path)
    assert done.returncode == 5, done
    assert done.stderr.startswith("run_train.py: ") and done.stderr.count("\n") == 1
    assert f"outputs/a/{place} could not be written: No such file or directory" in done.stderr
    assert listing(tmp_path) == set()


def one_refusal(done: Done) -> str:
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_checkpoints_without_a_config_are_named_and_left_alone(
    headless: Path, data: list[str]
) -> None:
    before = listing(headless)
    said = one_refusal(here("train", "resume=outputs/a", cwd=headless))
    assert "resume=outputs/a has checkpoints but no config.yaml" in said
    assert "ckpt=outputs/a or init_from=outputs/a" in said
    said = one_refusal(here("train", *data, *TINY_RUN, "run.name=a", cwd=headless))
    assert "outputs/a has checkpoints but no config.yaml in it: take another run.name" in said
    assert listing(headless) == before


@pytest.mark.parametrize("part", ["checkpoints", "checkpoints/last", "checkpoints/step-00000002/"])
def test_a_part_of_a_run_to_be_resumed_is_answered_with_the_name_of_the_run(
    part: str, headless: Path
) -> None:
    (headless / "outputs/a/checkpoints/last").symlink_to("step-00000002")
    (headless / "outputs/a/config.yaml").write_text("{}", encoding="utf-8")
    said = one_refusal(here("train", f"resume=outputs/a/{part}", cwd=headless))
    assert "is a part of a run: continue the whole run by resume=outputs/a\n" in said
