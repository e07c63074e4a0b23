"""The same sweep again: what is skipped, continued, run again and refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from llm.config import launcher
from llm.experiment import rundir
from llm.experiment.rundir import write_summary
from tests.command_line import Done, here, jobs_here, listing, rows, started, summary, wait_until
from tests.conftest import HANGS, ROOT, TINY_RUN

SEEDS = "seed=1,2,3"


@pytest.fixture(scope="module")
def text(text_file: Path) -> list[str]:
    return ["data=text", f"data.path={text_file}", "data.tokenizer=byte"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, text: list[str]) -> Path:
    """A folder in which the sweep ``s`` over three seeds has finished."""
    folder = tmp_path_factory.mktemp("done")
    with patch.object(launcher, "run_jobs", jobs_here):
        found = sweep(folder, text, SEEDS)
    assert found.returncode == 0, found.stderr
    return folder


@pytest.fixture
def cwd(done: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(done, tmp_path / "cwd", symlinks=True))


def sweep(cwd: Path, text: list[str], *typed: str) -> Done:
    return here("train", "-m", *text, *TINY_RUN, *typed, "run.sweep=s", cwd=cwd)


def job(cwd: Path, seed: int) -> Path:
    return cwd / f"multirun/s/seed-{seed}"


def times(cwd: Path) -> dict[int, int]:
    """When each job's summary was written."""
    return {seed: (job(cwd, seed) / "summary.json").stat().st_mtime_ns for seed in (1, 2, 3)}


def end_as(folder: Path, status: str) -> None:
    """Let the summary of a finished job say that it ended otherwise."""
    write_summary(folder, **summary(folder) | {"status": status, "reason": "a test"})


def test_finished_jobs_are_skipped_by_the_sweep_itself(
    cwd: Path, text: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = times(cwd)
    monkeypatch.setattr(subprocess, "Popen", None)  # no job may be started
    found = sweep(cwd, text, SEEDS)
    assert found.returncode == 0, found.stderr
    assert "3 of 3 jobs are skipped: 3 finished" in found.stdout
    assert times(cwd) == before


def test_more_values_of_the_same_key_run_beside_the_finished_ones(
    cwd: Path, text: list[str]
) -> None:
    before = times(cwd)
    found = sweep(cwd, text, "seed=2,4")
    assert found.returncode == 0, found.stderr
    assert times(cwd) == before
    assert summary(job(cwd, 4))["status"] == "finished"
    table = (cwd / "multirun/s/summary.csv").read_text(encoding="utf-8-sig")
    assert len(table.splitlines()) == 1 + 4, "all jobs of the folder"


@pytest.mark.slow  # tests/settings/test_earlier.py asks the same of single runs
@pytest.mark.parametrize(
    ("retry", "again"),
    [
        ("failed", {"diverged", "interrupted", "killed"}),
        ("none", {"interrupted", "killed"}),
    ],
)
def test_run_retry_says_which_jobs_run_again(
    retry: str, again: set[str], cwd: Path, text: list[str]
) -> None:
    ends = {1: "diverged", 2: "interrupted", 3: "killed"}
    for seed, status in ends.items():
        end_as(job(cwd, seed), status)
    before = times(cwd)
    found = sweep(cwd, text, SEEDS, f"run.retry={retry}")
    after = times(cwd)
    assert {ends[seed] for seed in ends if after[seed] != before[seed]} == again
    assert found.returncode == (0 if retry == "failed" else 1), found.stderr
    statuses = {summary(job(cwd, seed))["status"] for seed in ends}
    assert statuses == ({"finished"} if retry == "failed" else {"finished", "diverged"})


@pytest.mark.slow
def test_run_retry_all_trains_finished_jobs_anew(cwd: Path, text: list[str]) -> None:
    before, losses = times(cwd), [summary(job(cwd, seed))["val_loss"] for seed in (1, 2, 3)]
    (job(cwd, 2) / "metrics.jsonl").write_text('{"step": 99}\n', encoding="utf-8")
    found = sweep(cwd, text, SEEDS, "run.retry=all")
    assert found.returncode == 0, found.stderr
    assert all(times(cwd)[seed] != before[seed] for seed in before)
    assert [row["step"] for row in rows(job(cwd, 2))] == list(range(7))
    assert [summary(job(cwd, seed))["val_loss"] for seed in (1, 2, 3)] == losses


def test_a_changed_configuration_is_refused_with_the_keys_that_differ(
    cwd: Path, text: list[str]
) -> None:
    before = listing(cwd)
    found = sweep(cwd, text, SEEDS, "trainer.max_steps=9", "optimizer.lr=0.5")
    assert found.returncode == 2
    assert "optimizer.lr was 0.02, now 0.5" in found.stderr
    assert "trainer.max_steps was 6, now 9" in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert listing(cwd) == before


def test_a_job_that_was_trained_with_other_settings_is_refused_before_the_first_job(
    cwd: Path, text: list[str]
) -> None:
    path = job(cwd, 2) / "config.yaml"
    path.write_text(path.read_text().replace("grad_clip: 1.0", "grad_clip: 2.0"), encoding="utf-8")
    (job(cwd, 2) / "summary.json").unlink()
    shutil.rmtree(job(cwd, 1))
    found = sweep(cwd, text, SEEDS)
    assert found.returncode == 2
    assert (
        "multirun/s/seed-2 holds another run (trainer.grad_clip was 2.0, now 1.0)" in found.stderr
    )
    assert not job(cwd, 1).exists()


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "[]",
        '{"over": ["seed"], "fixed": {}',
        '{"over": ["seed"], "fixed": {}, "jobs": {"a": 3}}',
    ]
    + [
        f'{{"over": ["seed"], "fixed": {{}}, "jobs": {{"{name}": {{"seed": "{seed}"}}}}}}'
        for name, seed in [("../s", "1"), ("/s", "1"), ("a\\u0000", "1"), ("a", "\\ud800")]
    ],
)
def test_a_damaged_or_hostile_sweep_file_is_refused(
    damaged: str, cwd: Path, text: list[str]
) -> None:
    (cwd / "multirun/s/sweep.json").write_text(damaged, encoding="utf-8")
    before = listing(cwd)
    found = sweep(cwd, text, SEEDS)
    assert found.returncode == 2
    assert found.stderr.startswith("run_train.py: multirun/s/sweep.json")
    assert len(found.stderr.splitlines()) == 1
    assert listing(cwd) == before


def test_two_sweeps_in_one_folder_at_once_are_refused(cwd: Path, text: list[str]) -> None:
    source = (
        "import pathlib, sys, time\nfrom llm.lock import locked\n"
        "with locked(pathlib.Path('multirun/s')):\n    print('locked', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", source], cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert first.stdout is not None and first.stdout.readline() == "locked\n"
    found = sweep(cwd, text, SEEDS)
    first.communicate("")
    assert found.returncode == 2
    assert found.stderr == (
        f"run_train.py: multirun/s is in use by another sweep (process {first.pid}): "
        "wait for it, or take another run.sweep\n"
    )


@pytest.mark.parametrize("n_jobs", ["0", "-1", "1.5", "two", "null", "True"])
def test_an_impossible_number_of_jobs_at_once_is_refused(
    n_jobs: str, tmp_path: Path, text: list[str]
) -> None:
    found = sweep(tmp_path, text, SEEDS, f"hydra.launcher.n_jobs={n_jobs}")
    assert (found.returncode, len(found.stderr.splitlines())) == (2, 1), found.stderr
    line = (
        f"hydra.launcher.n_jobs={n_jobs.replace('null', 'None')} must be a whole number, at least 1"
    )
    assert line in found.stderr
    assert listing(tmp_path) == set()


def test_a_sweep_folder_that_is_a_file_or_cannot_be_written_is_refused(
    tmp_path: Path, text: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "multirun").mkdir()
    (tmp_path / "multirun/s").touch()
    for more in ([], ["run.dry_run=true"]):
        found = sweep(tmp_path, text, SEEDS, *more)
        assert found.returncode == 2
        assert found.stderr == (
            "run_train.py: sweep folder multirun/s is a file: take another run.sweep\n"
        )
    (tmp_path / "multirun/s").unlink()

    def read_only(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(rundir.Path, "write_bytes", read_only)
    found = sweep(tmp_path, text, SEEDS)
    assert found.returncode == 2
    line = "run_train.py: sweep folder multirun/s cannot be written: Permission denied\n"
    assert found.stderr == line


@pytest.mark.slow
def test_a_job_whose_folder_is_deleted_while_it_runs_ends_no_other(
    tmp_path: Path, text: list[str]
) -> None:
    long = ["trainer.max_steps=2000", "trainer.checkpoint_interval=null", "run.sweep=s"]
    with started("train", "-m", *text, *TINY_RUN, SEEDS, *long, cwd=tmp_path) as process:
        wait_until(lambda: len(rows(job(tmp_path, 1))) > 5)
        job(tmp_path, 1).rename(tmp_path / "deleted")  # at once, unlike rmtree()
        wait_until(lambda: len(rows(job(tmp_path, 2))) > 5)
        process.terminate()
        shown, _ = process.communicate(timeout=HANGS)
    assert process.returncode == 75, shown
    assert summary(job(tmp_path, 1))["status"] == "disk_error"
    assert summary(job(tmp_path, 2))["status"] == "interrupted"


@pytest.mark.slow
def test_a_sweep_killed_at_any_moment_is_continued_by_the_same_command(
    cwd: Path, text: list[str]
) -> None:
    end_as(job(cwd, 1), "killed")
    command = ["-m", *text, *TINY_RUN, SEEDS, "run.sweep=s"]
    # An empty lock and a half-written table, as a killed sweep leaves them.
    (cwd / "multirun/s/.lock").write_text("4000000\n", encoding="ascii")
    (cwd / "multirun/s/.summary.csv.tmp").write_text("half", encoding="ascii")
    found = here("train", *command, cwd=cwd)
    assert found.returncode == 0, found.stderr
    assert not list((cwd / "multirun/s").glob(".*.tmp"))
    assert summary(job(cwd, 1))["status"] == "finished"


def test_the_jobs_of_a_sweep_are_recorded_with_their_values(done: Path) -> None:
    recorded = json.loads((done / "multirun/s/sweep.json").read_text(encoding="utf-8"))
    assert recorded["over"] == ["seed"]
    assert recorded["jobs"] == {f"seed-{n}": {"seed": str(n)} for n in (1, 2, 3)}


def test_a_dry_run_writes_nothing(tmp_path: Path, text: list[str]) -> None:
    found = sweep(tmp_path, text, SEEDS, "run.dry_run=true")
    assert found.returncode == 0, found.stderr
    assert "seed=1" in found.stdout and "seed=3" in found.stdout
    assert listing(tmp_path) == set()
