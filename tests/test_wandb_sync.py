"""What a W&B server receives: every row once, also from runs that were killed and resumed."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from llm.experiment import wandb_run
from llm.experiment.loggers import open_logger
from llm.settings.schema import LoggerSection
from tests import wandb_file
from tests.command_line import rows, started, summary, wait_until
from tests.conftest import HANGS, TINY_RUN
from tests.experiment.test_loggers import Saved
from tests.wandb_server import Received, WandbServer, wandb_server

WITH_WANDB = [word for word in TINY_RUN if word != "logger=none"]
ONLINE = LoggerSection(mode="online")
LONG = [
    *WITH_WANDB, "trainer.max_steps=400", "trainer.checkpoint_interval=20",
    "trainer.eval_interval=50", "trainer.sample_interval=150",
]  # fmt: skip


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server, and an environment in which W&B knows no other."""
    with wandb_server() as one:
        for name, value in one.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        for name in ("WANDB_MODE", "WANDB_RUN_ID", "NETRC", "WANDB_SERVICE"):
            monkeypatch.delenv(name, raising=False)
        wandb.teardown()  # its service in this process knows the server of an earlier test
        yield one
        wandb.teardown()


@pytest.fixture
def typed(text_file: Path, tmp_path: Path) -> list[str]:
    """The options of a run over the text of the tests, in a folder with a name."""
    data = [f"data.path={text_file}", "data.tokenizer=byte", f"data.dir={tmp_path / 'data'}"]
    return ["data=text", *data]


def sync(*typed: str, cwd: Path) -> str:
    """``wandb sync *typed``; returns its output."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("wandb")), "sync", *typed],
        cwd=cwd, capture_output=True, text=True, timeout=HANGS, check=True,
    )  # fmt: skip
    return done.stdout + done.stderr


def kill_after(step: int, run: Path, *typed: str, cwd: Path) -> None:
    """Start a run and end it with SIGKILL once the row of ``step`` is written."""
    with started("train", *typed, cwd=cwd) as process:
        wait_until(lambda: [row for row in rows(run) if row["step"] >= step] or process.poll())
        assert process.poll() is None, process.communicate()[0]
        process.kill()


def compared(received: Received, run: Path) -> tuple[int, int, int]:
    """How many rows were sent, how many ``metrics.jsonl`` has, how many were sent twice.

    Each row that was sent is compared with its line of ``metrics.jsonl``.
    """
    sent = {row.pop("_step"): row for row in received.rows}
    expected = {
        row.pop("step"): {key: value for key, value in row.items() if value is not None}
        for row in rows(run)
    }
    without_samples = {
        step: {key: value for key, value in row.items() if key != "sample"}
        for step, row in sent.items()
    }
    assert without_samples == expected
    return len(received.rows), len(rows(run)), len(received.rows) - len(sent)


@pytest.mark.slow
def test_a_run_that_was_killed_twice_and_resumed_offline_is_uploaded_complete(
    server: WandbServer, typed: list[str], tmp_path: Path, report: Callable[[str], None]
) -> None:
    run, command = tmp_path / "outputs" / "long", [*typed, *LONG, "run.name=long"]
    kill_after(90, run, *command, cwd=tmp_path)
    kill_after(230, run, *command, cwd=tmp_path)
    with started("train", *command, cwd=tmp_path) as process:
        shown, _ = process.communicate(timeout=HANGS)
    assert process.returncode == 0, shown
    output = sync("outputs/long/wandb", cwd=tmp_path)
    (received,) = server.runs.values()
    sent, expected, twice = compared(received, run)
    report(f"wandb: rows sent = {sent}, rows of metrics.jsonl = {expected}, twice = {twice}")
    assert (sent, expected, twice) == (401, 401, 0), output
    assert "Syncing 1 run(s)" in output, "the segments of the killed processes are deleted"
    assert [row["_step"] for row in received.rows if "sample" in row] == [150, 300]
    assert received.exit_codes == [0]


def test_an_online_run_sends_its_rows_and_a_resumed_one_only_the_rows_that_are_missing(
    server: WandbServer, tmp_path: Path
) -> None:
    with open_logger(tmp_path, None, ONLINE, {}, 8, None) as logger:
        for step in range(4):
            logger.log({"step": step, "tokens": 64 * step, "train/loss": 4.0 - step})
    received = server.runs[logger.run_id]
    assert compared(received, tmp_path) == (4, 4, 0)
    assert (received.exit_codes, received.variables["project"]) == ([0], "llm")

    del received.lines[2:]  # the connection was lost before the last rows
    checkpoint: Any = Saved(3, {"run_id": logger.run_id})
    with open_logger(tmp_path, checkpoint, ONLINE, {}, 8, None) as logger:
        logger.log({"step": 4, "tokens": 256, "train/loss": 0.0})
    assert compared(received, tmp_path) == (5, 5, 0)


def test_a_run_that_began_offline_and_continues_online_is_complete(
    server: WandbServer, tmp_path: Path
) -> None:
    with open_logger(tmp_path, None, LoggerSection(), {}, 8, None) as logger:
        logger.log({"step": 0, "tokens": 0, "val/loss": 4.0})
    wandb_file.read(tmp_path)
    checkpoint: Any = Saved(0, {"run_id": logger.run_id})
    with open_logger(tmp_path, checkpoint, ONLINE, {}, 8, None) as logger:
        logger.log({"step": 1, "tokens": 64, "val/loss": 3.0})
    assert compared(server.runs[logger.run_id], tmp_path) == (2, 2, 0)
    assert not list(tmp_path.glob("wandb/offline-run-*"))


@pytest.mark.slow
def test_rows_that_an_online_run_could_not_send_are_uploaded_later_by_wandb_sync(
    server: WandbServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(wandb_run, "FINISH_TIMEOUT", 1)
    with open_logger(tmp_path, None, ONLINE, {}, 8, None) as logger:
        logger.log({"step": 0, "tokens": 0, "val/loss": 4.0})
    received = server.runs[logger.run_id]
    checkpoint: Any = Saved(0, {"run_id": logger.run_id})
    with open_logger(tmp_path, checkpoint, ONLINE, {}, 8, None) as logger:
        server.is_down = True
        logger.log({"step": 1, "tokens": 64, "val/loss": 3.0})
    assert len(received.rows) == 1
    warnings = [line for line in capfd.readouterr().out.splitlines() if line[:8] == "warning:"]
    assert len(warnings) == 1

    server.is_down = False
    output = sync(*warnings[0].partition("wandb sync ")[2].split(), cwd=tmp_path)
    assert compared(received, tmp_path) == (2, 2, 0), output


@pytest.mark.slow  # the run waits for the server for half a minute
def test_a_run_finishes_in_time_when_the_network_is_cut(
    server: WandbServer, typed: list[str], tmp_path: Path, report: Callable[[str], None]
) -> None:
    run = tmp_path / "outputs" / "cut"
    command = [*typed, *LONG, "run.name=cut", "logger.mode=online"]
    with started("train", *command, cwd=tmp_path) as process:
        wait_until(lambda: server.runs)
        server.is_down = True
        shown, _ = process.communicate(timeout=HANGS)
    assert process.returncode == 0, shown
    found = summary(run)
    report(f"wandb: a run whose network was cut took {found['wall_seconds']:.0f} s")
    assert found["status"] == "finished"
    assert [row["step"] for row in rows(run)] == list(range(401))
    assert shown.count("W&B's server does not answer") == 1
    server.is_down = False
    output = sync("outputs/cut/wandb", cwd=tmp_path)
    (received,) = server.runs.values()
    assert compared(received, run) == (401, 401, 0), output


def test_a_resumed_run_whose_first_segment_was_uploaded_keeps_it_and_replaces_it_on_the_server(
    server: WandbServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with open_logger(tmp_path, None, LoggerSection(), {}, 8, None) as logger:
        logger.log({"step": 0, "tokens": 0, "val/loss": 4.0})
        logger.log({"step": 1, "tokens": 64, "val/loss": 3.0})
    wandb_file.read(tmp_path)
    sync("wandb", cwd=tmp_path)
    (first,) = tmp_path.glob("wandb/offline-run-*")
    assert compared(server.runs[logger.run_id], tmp_path) == (2, 2, 0)

    checkpoint: Any = Saved(1, {"run_id": logger.run_id})
    with open_logger(tmp_path, checkpoint, LoggerSection(), {}, 8, None) as logger:
        logger.log({"step": 2, "tokens": 128, "val/loss": 2.0})
    assert f"{first.name} was uploaded already and is kept" in capfd.readouterr().out
    assert first.exists()
    sync("wandb", cwd=tmp_path)
    assert compared(server.runs[logger.run_id], tmp_path) == (3, 3, 0)


@pytest.mark.slow
def test_wandb_sync_of_the_folder_of_a_sweep_uploads_each_run_once_and_complete(
    server: WandbServer, typed: list[str], tmp_path: Path
) -> None:
    command = [*typed, *LONG, "-m", "seed=1,2", "run.sweep=two"]
    sweep = tmp_path / "multirun" / "two"
    with started("train", *command, cwd=tmp_path) as process:
        wait_until(lambda: [run for run in sweep.glob("*2*") if len(rows(run)) > 90])
        process.kill()
    with started("train", *command, cwd=tmp_path) as process:
        shown, _ = process.communicate(timeout=HANGS)
    assert process.returncode == 0, shown
    output = sync("multirun/two/wandb", cwd=tmp_path)
    runs = [path.parent for path in sweep.glob("*/summary.json")]
    by_name = {one.variables["displayName"]: one for one in server.runs.values()}
    assert len(runs) == 2 and by_name.keys() == {run.name for run in runs}
    for run in runs:
        assert compared(by_name[run.name], run) == (401, 401, 0), output
    assert {one.variables["groupName"] for one in server.runs.values()} == {"two"}
    assert "No runs to sync" in sync("multirun/two/wandb", cwd=tmp_path)


def test_wandb_sync_uploads_all_whole_rows_of_a_segment_whose_end_is_torn(
    server: WandbServer, tmp_path: Path
) -> None:
    with open_logger(tmp_path, None, LoggerSection(), {}, 8, None) as logger:
        for step in range(50):
            logger.log({"step": step, "tokens": 64 * step, "train/loss": 50.0 - step})
    wandb_file.read(tmp_path)  # W&B's service would write behind the cut
    (segment,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    os.truncate(segment, segment.stat().st_size // 2)
    sync("wandb", cwd=tmp_path)
    sent = [row["_step"] for row in server.runs[logger.run_id].rows]
    assert 0 < len(sent) < 50 and sent == list(range(len(sent)))
    assert not list(tmp_path.glob("wandb/*/*.synced")), "it is uploaded again after a resume"
