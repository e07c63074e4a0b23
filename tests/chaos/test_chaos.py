"""Twenty jobs, two at a time, while everything goes wrong: every healthy job finishes, once."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llm.checkpoint.folder import newest_valid
from tests.chaos.troubles import DIVERGES, OUT_OF_MEMORY, RAISES
from tests.command_line import here, rows, started, summary, wait_until
from tests.conftest import HANGS, TINY_RUN, needs_linux

JOBS, STEPS = 20, 150
FAILING = {OUT_OF_MEMORY: "out_of_memory", DIVERGES: "diverged", RAISES: "failed"}
OPTIONS = [
    *TINY_RUN, f"trainer.max_steps={STEPS}", "trainer.checkpoint_interval=25",
    "trainer.eval_interval=50", "trainer.eval_batches=1", "optimizer=troubled",
    "--config-dir=mine/conf", f"optimizer.job=range(1,{JOBS + 1})", "hydra.launcher.n_jobs=2",
]  # fmt: skip
EXACT = ("step", "tokens", "train/loss", "val/loss", "grad_norm", "lr")


@pytest.mark.chaos
@needs_linux
def test_every_healthy_job_of_a_troubled_sweep_finishes_once_with_the_same_bits(
    tmp_path: Path, text_file: Path, report: Callable[[str], None]
) -> None:
    option = tmp_path / "mine/conf/optimizer/troubled.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("_target_: troubles.Troubled\nlr: 1e-3\njob: 0\n", encoding="utf-8")
    shutil.copy(Path(__file__).with_name("troubles.py"), tmp_path / "mine/troubles.py")
    data = ["data=text", f"data.path={text_file}", "data.tokenizer=byte"]
    assert here("prepare", *data, cwd=tmp_path).returncode == 0

    with sweep(data, "calm", tmp_path) as process:
        shown, _ = process.communicate(timeout=HANGS)
    assert process.returncode == 1, shown
    calm, troubled = (tmp_path / "multirun" / name for name in ("calm", "troubled"))

    disturb(data, troubled, tmp_path)
    # A job that has finished is not touched again by the last command.
    before = {path: path.stat().st_mtime_ns for path in finished(troubled)}
    with sweep(data, "troubled", tmp_path) as process:
        shown, _ = process.communicate(timeout=HANGS)
    assert process.returncode == 1, shown
    assert f"{len(FAILING)} of {JOBS} jobs did not finish" in shown
    touched = sum(path.stat().st_mtime_ns != at for path, at in before.items())

    healthy = [number for number in range(1, JOBS + 1) if number not in FAILING]
    folders = [troubled / f"optimizer.job-{number}" for number in healthy]
    done = [folder for folder in folders if summary(folder)["status"] == "finished"]
    repeated = [folder for folder in folders if steps(folder) != list(range(STEPS + 1))]
    same = [folder for folder in folders if result(folder) == result(calm / folder.name)]
    report(
        f"chaos: jobs={JOBS} finished={len(done)} expected={len(healthy)} "
        f"twice={len(repeated) + touched} bitwise_equal={len(same)}"
    )
    assert len(done) == len(same) == len(healthy)
    assert not repeated and not touched
    for number, status in FAILING.items():
        assert summary(troubled / f"optimizer.job-{number}")["status"] == status
    table = (troubled / "summary.csv").read_text(encoding="utf-8-sig").splitlines()
    assert len(table) == JOBS + 1


@contextlib.contextmanager
def sweep(data: list[str], name: str, cwd: Path) -> Iterator["subprocess.Popen[str]"]:
    command = ["-m", *data, *OPTIONS, f"run.sweep={name}"]
    with started("train", *command, cwd=cwd) as process:
        yield process


def disturb(data: list[str], folder: Path, cwd: Path) -> None:
    """Kill a job, then the sweep itself, then stop the sweep by Ctrl-C, each in the middle."""
    random.seed(0)
    with sweep(data, folder.name, cwd) as process:
        job = wait_until(lambda: in_the_middle(folder))
        os.kill(owner(job), signal.SIGKILL)
        status = wait_until(lambda: (job / "summary.json").exists() and summary(job))["status"]
        assert status == "killed"
        wait_until(lambda: len(finished(folder)) >= 4)
        orphans = [owner(one) for one in [wait_until(lambda: in_the_middle(folder))]]
        process.kill()
    # The same command at once: it waits for jobs of the dead sweep that are still saving.
    with sweep(data, folder.name, cwd) as process:
        wait_until(lambda: len(finished(folder)) >= 10)
        job = wait_until(lambda: in_the_middle(folder))
        process.send_signal(signal.SIGINT)
        shown, _ = process.communicate(timeout=HANGS)
    assert process.returncode == 75, shown
    assert summary(job)["status"] in ("interrupted", "finished"), shown
    assert not any(Path(f"/proc/{pid}").exists() for pid in orphans)


def in_the_middle(folder: Path) -> Path | None:
    """A healthy job that is training and has a checkpoint."""
    for path in folder.glob("optimizer.job-*/.lock"):
        number = int(path.parent.name.rpartition("-")[2])
        has_ended = (path.parent / "summary.json").exists()
        if number not in FAILING and not has_ended and 30 < len(rows(path.parent)) < STEPS - 30:
            return path.parent
    return None


def owner(job: Path) -> int:
    return int((job / ".lock").read_text(encoding="ascii"))


def finished(folder: Path) -> list[Path]:
    """The summaries of the jobs that have finished."""
    found = folder.glob("optimizer.job-*/summary.json")
    return [path for path in found if summary(path.parent)["status"] == "finished"]


def steps(folder: Path) -> list[int]:
    return [row["step"] for row in rows(folder)]


def result(folder: Path) -> tuple[object, ...]:
    """The losses of all steps, and the weights that the run ended with."""
    newest, _ = newest_valid(folder)
    assert newest is not None
    losses = [[row.get(key) for key in EXACT] for row in rows(folder)]
    weights = (newest.path / "model.safetensors").read_bytes()
    return losses, weights
