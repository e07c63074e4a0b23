"""What the folder of a run holds, found without torch; and ``run.retry``."""

import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml

from llm.config.inside import compose_training
from llm.errors import Refused
from llm.experiment import rundir
from llm.experiment.loggers import RunLogger
from llm.experiment.rundir import discard_run
from llm.lock import locked
from llm.settings.earlier import (
    FINISHED,
    NEW,
    UNFINISHED,
    UNVERIFIED,
    Earlier,
    earlier_run,
    earlier_runs,
    prepared_data,
    runs_again,
)
from llm.settings.identity import config_digest
from llm.settings.saved import to_plain
from llm.settings.schema import RETRIES, TrainSettings
from llm.training import state as state_module
from tests.command_line import here, rows, summary
from tests.conftest import PLAY, ROOT, TINY_RUN, entered

RUN = "outputs/a"
DATA = ["data=text", "data.path=play.txt", "data.tokenizer=byte"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, its dataset and the finished run ``outputs/a``."""
    cwd = tmp_path_factory.mktemp("earlier")
    (cwd / "play.txt").write_text(PLAY, encoding="utf-8")
    assert here("train", *typed(), cwd=cwd).returncode == 0
    return cwd


@pytest.fixture
def cwd(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the current folder."""
    return entered(original, tmp_path, monkeypatch)


def typed(*more: str) -> list[str]:
    return [*DATA, *TINY_RUN, "run.name=a", *more]


def state_of(*more: str) -> Earlier:
    settings = compose_training(*typed(*more))
    return earlier_run(settings, Path(RUN), prepared_data(settings))


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values), encoding="utf-8")


@pytest.mark.usefixtures("cwd")
@pytest.mark.parametrize(
    "more", [[], ["precision=fp32"], ["trainer.eval_interval=2"], ["memory.fit=auto"]]
)
def test_a_finished_run_is_known_by_its_summary_alone(more: list[str]) -> None:
    Path(RUN, "config.yaml").write_text("not: [read", encoding="utf-8")
    assert state_of(*more).state == FINISHED


@pytest.mark.usefixtures("cwd")
@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["seed=7"], "(seed was 1337, now 7)"),
        (["trainer.max_steps=9"], "(trainer.max_steps was 6, now 9)"),
        (["model.n_layer=2", "seed=7"], "(model.n_layer was 1, now 2, seed was 1337, now 7)"),
        (["precision=bf16"], "(precision.name was fp32, now bf16)"),
        (["optimizer.state_bits=8"], "(optimizer.state_bits was 32, now 8)"),
    ],
)
@pytest.mark.parametrize("ended", ["finished", None])
def test_another_run_is_refused_with_the_keys_that_differ_as_when_it_starts(
    more: list[str], named: str, ended: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm.settings.schema.has_eight_bit", lambda: True)
    if ended is None:
        Path(RUN, "summary.json").unlink()
    with pytest.raises(Refused) as refused:
        state_of(*more)
    assert f"{RUN} holds another run" in str(refused.value) and named in str(refused.value)


def test_a_run_is_recognized_with_the_values_that_auto_chose(cwd: Path) -> None:
    config = cwd / RUN / "config.yaml"
    for section, values in {"precision": {"name": "bf16"}, "optimizer": {"state_bits": 8}}.items():
        saved = yaml.safe_load(config.read_text())
        saved[section] |= values
        config.write_text(yaml.safe_dump(saved), encoding="utf-8")
        change_json(cwd / RUN / "summary.json", config_digest="of another version")
        assert state_of().state == FINISHED  # from config.yaml
    data = prepared_data(settings := compose_training(*typed()))
    assert data is not None
    chosen = settings.resolve(data.vocab_size, "fp16")
    digest = config_digest(to_plain(chosen), data.digest)
    change_json(cwd / RUN / "summary.json", config_digest=digest)
    config.write_text("not: [read", encoding="utf-8")
    assert state_of().state == FINISHED  # from summary.json


def test_what_cannot_be_compared_is_not_skipped(cwd: Path) -> None:
    shutil.move(cwd / "data", cwd / "elsewhere")
    assert state_of().state == UNVERIFIED
    shutil.move(cwd / "elsewhere", cwd / "data")
    (cwd / "play.txt").write_text(PLAY + "More.", encoding="utf-8")
    assert state_of().state == UNVERIFIED
    assert here("prepare", *DATA, cwd=cwd).returncode == 0
    with pytest.raises(Refused, match="the text of its data, or the tokens made of it"):
        state_of()


def test_the_state_follows_the_files_of_the_folder(cwd: Path) -> None:
    path = cwd / RUN / "summary.json"
    change_json(path, status="diverged")
    assert state_of() == Earlier(UNFINISHED, "diverged", summary(cwd / RUN))
    path.write_text("half of a summ", encoding="utf-8")
    assert state_of() == Earlier(UNFINISHED)
    path.unlink()
    assert state_of() == Earlier(UNFINISHED)
    shutil.rmtree(cwd / RUN / "checkpoints")
    assert state_of() == Earlier(UNFINISHED)
    shutil.rmtree(cwd / RUN)
    assert state_of() == Earlier(NEW)
    (cwd / RUN).mkdir()
    path.write_text('{"status": "refused"}', encoding="utf-8")  # of a job refused at once
    assert state_of() == Earlier(NEW, "refused", {"status": "refused"})


def test_the_weights_of_init_from_are_compared_by_their_digest(cwd: Path) -> None:
    more = [f"init_from={RUN}", "run.name=b"]
    assert here("train", *typed(*more), cwd=cwd).returncode == 0

    def state(origin: str) -> str:
        settings = compose_training(*typed(f"init_from={origin}", "run.name=b"))
        return earlier_run(settings, Path("outputs/b"), prepared_data(settings)).state

    shutil.copytree(RUN, "copy", symlinks=True)
    assert state(RUN) == state("copy") == FINISHED
    with pytest.raises(Refused, match=r"init_from was outputs/a, now outputs/b"):
        state("outputs/b")
    shutil.rmtree(RUN)
    assert state(RUN) == FINISHED  # the checkpoint of b records their digest
    with pytest.raises(Refused, match="init_from=outputs/a does not exist"):
        shutil.rmtree("outputs/b/checkpoints")
        state(RUN)


def test_resume_with_more_steps_continues_a_finished_run(cwd: Path) -> None:
    def state(*more: str) -> str:
        settings = compose_training(f"resume={RUN}", *more)
        return earlier_run(settings, Path(RUN), prepared_data(settings)).state

    assert state() == FINISHED
    assert state("trainer.max_steps=9") == UNFINISHED


def test_a_job_that_resume_trained_longer_is_finished_for_its_sweep(cwd: Path) -> None:
    again = here("train", f"resume={RUN}", "trainer.max_steps=9", cwd=cwd)
    assert again.returncode == 0
    job = ["run.name=null", "run.sweep=s", "run.dir=" + RUN]
    found = state_of(*job)
    assert found.state == FINISHED and found.is_extended
    with pytest.raises(Refused, match=r"seed was 1337, now 7.*take another run\.sweep"):
        state_of(*job, "seed=7")
    with pytest.raises(Refused, match=r"trainer\.max_steps was 9, now 12"):
        state_of(*job, "trainer.max_steps=12")
    with pytest.raises(Refused, match=r"max_steps was 9, now 6\): take another run\.name"):
        state_of()  # no job of a sweep


def test_a_run_with_a_budget_in_minutes_is_finished_until_it_gets_more(
    cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "OVERRUN", math.inf)  # a busy machine is no reason to stop
    minutes = ["trainer.max_steps=null", "trainer.max_minutes=0.005", "run.name=m"]
    assert here("train", *typed(*minutes), cwd=cwd).returncode == 0
    folder = Path("outputs/m")

    def state(*more: str) -> str:
        settings = compose_training(*more)
        return earlier_run(settings, folder, prepared_data(settings)).state

    assert state(*typed(*minutes)) == FINISHED
    assert state("resume=outputs/m") == FINISHED
    assert state("resume=outputs/m", "trainer.max_minutes=1") == UNFINISHED
    with pytest.raises(Refused, match=r"trainer.max_minutes was 0.005, now 1"):
        state(*typed(*minutes, "trainer.max_minutes=1"))


def test_finished_jobs_are_found_without_torch(cwd: Path) -> None:
    settings = compose_training(*typed())
    jobs: list[tuple[TrainSettings, Path]] = []
    for number in range(5):
        folder = Path(shutil.copytree(RUN, f"multirun/s/{number}", symlinks=True))
        jobs.append((replace(settings, run=replace(settings.run, sweep="s")), folder))
    assert [earlier.state for earlier in earlier_runs(jobs)] == [FINISHED] * 5
    code = (
        "import sys; from llm.settings.earlier import earlier_run; "
        "assert not {'torch', 'wandb', 'hydra'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


ENDS = ["finished", "diverged", "out_of_memory", "refused", "failed", "disk_error", "interrupted",
        "killed", None]  # fmt: skip


@pytest.mark.parametrize("ended", ENDS)
def test_run_retry_decides_by_how_a_job_ended(ended: str | None) -> None:
    earlier = Earlier(FINISHED if ended == "finished" else UNFINISHED, ended)
    again = {retry: runs_again(retry, earlier) for retry in RETRIES}
    assert again["all"]
    assert again["failed"] == (ended != "finished")
    assert again["none"] == (ended in ("interrupted", "killed", None))
    assert all(runs_again(retry, Earlier(NEW)) for retry in RETRIES)
    assert all(runs_again(retry, Earlier(UNVERIFIED, "finished")) for retry in RETRIES)


def test_retry_all_replaces_a_run_by_another(cwd: Path) -> None:
    assert state_of("run.retry=all", "seed=3").state == UNFINISHED
    (cwd / RUN / "diverged.json").write_text("{}", encoding="utf-8")
    done = here("train", *typed("trainer.max_steps=3", "run.retry=all"), cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(cwd / RUN)] == [0, 1, 2, 3]
    assert summary(cwd / RUN)["step"] == 3
    assert sorted(path.name for path in (cwd / RUN / "checkpoints").glob("step-*"))[-1:] == [
        "step-00000003"
    ]
    assert not (cwd / RUN / "diverged.json").exists()
    assert "ended early" not in (cwd / RUN / "run_train.log").read_text()
    done = here("train", *typed("trainer.max_steps=3"), cwd=cwd)
    assert "is finished already" in done.stdout


def test_the_command_that_continues_a_run_does_not_delete_it(cwd: Path) -> None:
    def stopped_after_3(self: RunLogger, step: int) -> None:
        tick(self, step)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    tick = RunLogger.tick
    with patch.object(RunLogger, "tick", stopped_after_3):
        stopped = here("train", *typed("run.retry=all"), cwd=cwd)
    assert stopped.returncode == 75, stopped
    again = shlex.split(stopped.stderr.partition("to continue: ")[2])
    assert again[2:] == typed()
    assert state_of().state == UNFINISHED


def refusal(cwd: Path, *more: str) -> str:
    before = {path: path.stat().st_mtime_ns for path in (cwd / RUN).iterdir()}
    done = here("train", *typed(*more), cwd=cwd)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done
    assert {path: path.stat().st_mtime_ns for path in (cwd / RUN).iterdir()} == before
    return done.stderr


def test_retry_all_deletes_nothing_but_a_run_of_its_own(cwd: Path) -> None:
    (cwd / "thesis.txt").write_text("years of work", encoding="utf-8")
    (cwd / RUN / "notes.txt").write_text("mine", encoding="utf-8")
    assert "also holds notes.txt, so it is not replaced" in refusal(cwd, "run.retry=all")
    (cwd / RUN / "notes.txt").unlink()
    (cwd / RUN / "samples.jsonl").symlink_to(cwd / "thesis.txt")
    assert "samples.jsonl is neither a file nor a folder" in refusal(cwd, "run.retry=all")
    (cwd / RUN / "samples.jsonl").unlink()
    assert "does not exist" in refusal(cwd, "run.retry=all", "init_from=gone")
    with locked(cwd / RUN):
        assert "is in use by another run" in refusal(cwd, "run.retry=all")
    (cwd / RUN / "config.yaml").write_text("something else", encoding="utf-8")
    assert "config.yaml holds no settings" in refusal(cwd, "run.retry=all")
    assert (cwd / "thesis.txt").read_text() == "years of work"
    assert len(rows(cwd / RUN)) == 7


def test_retry_all_and_resume_contradict_each_other(cwd: Path) -> None:
    done = here("train", f"resume={RUN}", "run.retry=all", cwd=cwd)
    assert done.returncode == 2
    assert "run.retry=all starts a run anew, and resume= continues it" in done.stderr


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("renamed", range(6))
def test_a_run_that_is_killed_while_it_is_deleted_is_the_old_one_or_none(
    renamed: int, cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Path] = []

    def sync(folder: Path) -> None:  # called after each rename
        done.append(folder)
        if len(done) > renamed:
            raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(rundir, "sync_folder", sync)
        patched.setattr(rundir, "delete", lambda path: None if renamed < 5 else sync(path))
        discard_run(cwd / RUN)
    earlier = state_of()
    assert earlier.state == (NEW if not (cwd / RUN / "config.yaml").exists() else UNFINISHED)
    same = here("train", *typed(), cwd=cwd)
    assert same.returncode == 0, same.stderr
    assert summary(cwd / RUN)["status"] == "finished"
    reached = [row["step"] for row in rows(cwd / RUN)]
    assert reached == list(range(7))
    assert (cwd / RUN / "checkpoints/step-00000006").is_dir()
    assert not list((cwd / RUN).glob(".*.tmp"))


def test_retry_none_leaves_a_run_that_ended_by_itself(cwd: Path) -> None:
    reason = "step 4: the loss is nan"
    change_json(cwd / RUN / "summary.json", status="diverged", reason=reason)
    said = refusal(cwd, "run.retry=none")
    assert f"{RUN} ended by itself (diverged: {reason}), and run.retry=none leaves it" in said
    assert "holds another run" in refusal(cwd, "run.retry=none", "seed=2")
    done = here("train", *typed(), cwd=cwd)
    assert done.returncode == 0 and summary(cwd / RUN)["status"] == "finished"
    assert here("train", *typed("run.retry=none"), cwd=cwd).returncode == 0  # finished: skipped
    change_json(cwd / RUN / "summary.json", status="interrupted", reason="stopped by SIGTERM")
    assert here("train", *typed("run.retry=none"), cwd=cwd).returncode == 0
