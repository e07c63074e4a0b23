"""A run that was stopped or killed is resumed as if nothing had happened."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import pytest
import wandb

from llm.checkpoint.folder import newest_valid
from llm.experiment.loggers import RunLogger
from llm.training.logger import Row
from llm.training.trainer import Trainer
from tests import wandb_file
from tests.command_line import here, rows, summary
from tests.conftest import HANGS, ROOT, TINY_RUN

KILLED_AFTER_24 = """
import os, runpy, signal, sys
import llm.start
from llm.experiment.loggers import RunLogger

def killed(self, step):
    tick(self, step)
    if step == 24:
        os.kill(os.getpid(), signal.SIGKILL)

tick, RunLogger.tick = RunLogger.tick, killed
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
TINY = [override for override in TINY_RUN if override != "logger=none"]


@pytest.fixture(scope="module")
def text(text_file: Path) -> list[str]:
    return ["data=text", f"data.path={text_file}", "data.tokenizer=byte"]


def test_a_killed_run_and_an_interrupted_run_are_resumed_to_the_end(
    tmp_path: Path, text: list[str]
) -> None:
    steps = ["trainer.max_steps=60", "trainer.checkpoint_interval=10", "trainer.eval_interval=25"]
    command = [*text, *TINY, *steps, "run.name=long"]
    run = tmp_path / "outputs" / "long"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AFTER_24, str(ROOT / "run_train.py"), *command],
        cwd=tmp_path, timeout=HANGS, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    assert not (run / "summary.json").exists()
    assert max(row["step"] for row in rows(run)) == 23
    newest, _ = newest_valid(run)
    assert newest is not None and newest.step == 20

    def stopped_after_44(self: RunLogger, step: int) -> None:
        tick(self, step)
        if step == 44:
            os.kill(os.getpid(), signal.SIGTERM)

    tick = RunLogger.tick
    wandb.teardown()  # the service of an earlier test would write to the folder of that test
    with patch.object(RunLogger, "tick", stopped_after_44):
        stopped = here("train", *command, cwd=tmp_path)
    assert stopped.returncode == 75, stopped
    found = summary(run)
    assert (found["status"], found["step"]) == ("interrupted", 44)
    assert rows(run)[-1]["step"] == 44
    assert found["reason"].startswith("SIGTERM at step")
    assert stopped.stderr.startswith("run_train.py: SIGTERM at step")
    again = shlex.split(stopped.stderr.partition("to continue: ")[2])
    assert again == ["python", str(ROOT / "run_train.py"), *command]

    done = here("train", *again[2:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(run)] == list(range(61))
    tokens = [row["tokens"] for row in rows(run)]  # the last window of an epoch may be shorter
    assert all(0 < after - before <= 64 for before, after in pairwise(tokens))
    assert (summary(run)["status"], summary(run)["step"]) == ("finished", 60)
    assert summary(run)["wall_seconds"] > found["wall_seconds"]
    assert [row["_step"] for row in wandb_file.read(run)["history"]] == list(range(61))
    assert here("train", *command, cwd=tmp_path).stdout.startswith("outputs/long is finished")


def test_a_run_killed_before_its_first_checkpoint_starts_again_with_clean_metrics(
    tmp_path: Path, text: list[str]
) -> None:
    command = [*text, *TINY_RUN, "run.name=a"]
    run = tmp_path / "outputs" / "a"
    assert here("train", *command, cwd=tmp_path).returncode == 0
    first = rows(run)
    shutil.rmtree(run / "checkpoints")
    (run / "summary.json").unlink()
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 7, "tok')
    assert here("train", *command, cwd=tmp_path).returncode == 0
    assert [row["step"] for row in rows(run)] == list(range(7))
    for before, after in zip(first, rows(run), strict=True):
        same = before.keys() - {
            "train_seconds", "tokens_per_second", "mfu", "peak_memory_bytes",
        }  # fmt: skip
        assert {key: before[key] for key in same} == {key: after[key] for key in same}


@pytest.mark.slow
def test_a_report_that_a_signal_interrupted_is_in_the_metrics_once_also_after_a_crash(
    tmp_path: Path, text: list[str]
) -> None:
    command = [*text, *TINY_RUN, "trainer.checkpoint_interval=null", "run.name=b"]
    evaluate, tick = Trainer.evaluate, RunLogger.tick

    def signalled(self: Trainer) -> Row:
        if self.progress.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self)

    def crash(self: RunLogger, step: int) -> None:
        tick(self, step)
        if step == 5:
            raise RuntimeError("a crash")

    with patch.object(Trainer, "evaluate", signalled):
        assert here("train", *command, cwd=tmp_path).returncode == 75
    with patch.object(RunLogger, "tick", crash), pytest.raises(RuntimeError, match="a crash"):
        here("train", *command, cwd=tmp_path)
    assert here("train", *command, cwd=tmp_path).returncode == 0
    assert [row["step"] for row in rows(tmp_path / "outputs" / "b")] == list(range(7))


def test_a_reader_that_ends_early_is_not_an_error(tmp_path: Path, text: list[str]) -> None:
    command = shlex.join([sys.executable, str(ROOT / "run_prepare.py"), *text])
    done = subprocess.run(
        f"{command} | true; echo ${{PIPESTATUS[0]}}", shell=True, executable="/bin/bash",
        cwd=tmp_path, capture_output=True, text=True, timeout=HANGS,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert list((tmp_path / "data").glob("text-*/meta.json"))
