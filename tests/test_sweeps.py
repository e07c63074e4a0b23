"""Sweeps: each job is a process that cannot end another, and every sweep can be continued."""

import json
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hydra.core.utils import JobReturn, JobStatus

from llm.checkpoint.folder import newest_valid
from llm.config import launcher
from llm.config.sweeper import end_of
from llm.experiment.process import PARENT_PIPE
from llm.experiment.rundir import read_summary, write_summary
from llm.experiment.sweep import Job
from tests import wandb_file
from tests.command_line import Done, here, meanwhile, rows, started, summary, wait_until
from tests.conftest import HANGS, PLAY, ROOT, TINY_RUN
from tests.data.meta_file import edit_meta

LONG = [o for o in TINY_RUN if not o.startswith(("trainer.max_steps", "trainer.check", "logger"))]
LONG += ["trainer.max_steps=150", "trainer.checkpoint_interval=15", "trainer.eval_interval=50"]


@pytest.fixture(scope="module")
def text(text_file: Path) -> list[str]:
    return ["data=text", f"data.path={text_file}", "data.tokenizer=byte"]


# Real jobs.


def pid_of(words: str) -> int | None:
    """The process with these words in its command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().split(b"\0")
        except OSError:  # it has gone meanwhile
            continue
        if words.encode() in command:
            return int(path.parent.name)
    return None


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs Linux to find a job")
def test_a_sweep_outlives_its_jobs_and_is_continued(tmp_path: Path, text: list[str]) -> None:
    command = ["-m", *text, *LONG, "logger.notes=a, b", "optimizer.lr=2e-3,1e-3,1e30,3e-3"]
    name = f"rates-{os.getpid()}"  # unique on this machine: pid_of() searches for it
    command += [f"run.sweep={name}"]
    sweep = tmp_path / "multirun" / name
    killed, first, last = (sweep / f"optimizer.lr-{rate}" for rate in ("0.002", "0.001", "0.003"))
    with started("train", *command, cwd=tmp_path) as process:
        wait_until(lambda: newest_valid(killed)[0])
        pid = pid_of(f"run.dir={killed.relative_to(tmp_path)}")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        shown, _ = process.communicate(timeout=HANGS)
    jobs = {path.name for path in sweep.iterdir() if path.is_dir()} - {"wandb"}
    diverged = sweep / next(job for job in jobs if "1e" in job)
    assert process.returncode == 1, shown
    assert jobs == {killed.name, first.name, diverged.name, last.name}
    assert all(re.fullmatch(r"[\w.-]+", job, re.ASCII) for job in jobs)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "multirun", "outputs"}
    found = {folder: summary(folder) for folder in (killed, first, diverged, last)}
    statuses = [found[folder]["status"] for folder in (killed, first, diverged, last)]
    assert statuses == ["killed", "finished", "diverged", "finished"]
    lines = (tmp_path / "outputs/ledger.jsonl").read_text(encoding="ascii").splitlines()
    ledger = [json.loads(line) for line in lines]
    assert sorted(line["status"] for line in ledger) == sorted(statuses)
    line = next(line for line in ledger if line["status"] == "killed")
    assert line["reason"] == "killed by SIGKILL"
    assert tmp_path / line["folder"] == killed and tmp_path / line["sweep"] == sweep
    assert "optimizer.lr=0.002" in line["overrides"]
    assert found[killed]["reason"] == "killed by SIGKILL"
    assert "try a lower optimizer.lr" in found[diverged]["reason"]
    assert shown.strip().endswith("run_train.py: 2 of 4 jobs did not finish")
    table = shown.partition("best val loss")[2]
    order = re.findall(r"^lr=\S+ \*? +(\w+)", table, flags=re.MULTILINE)
    assert order[:2] == ["finished", "finished"], "the table has the lowest loss first"
    assert set(order[2:]) == {"killed", "diverged"}

    links = {path.name: path for path in (sweep / "wandb").iterdir()}
    assert len(links) == 4
    assert all(path.is_symlink() and path.is_dir() for path in links.values())
    # A job killed before W&B's first flush, after 2 s, has not written its name.
    runs = [wandb_file.read_file(next(path.glob("*.wandb"))) for path in links.values()]
    runs = [run for run in runs if "run" in run]
    assert len(runs) in (3, 4)
    assert {run["run"].run_group for run in runs} == {name}
    assert jobs - {run["run"].display_name for run in runs} <= {killed.name}
    assert {run["run"].notes for run in runs} == {"a, b"}
    assert {run["config"]["optimizer"]["lr"] for run in runs} >= {0.001, 0.003, 1e30}
    leet = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json"]
    shown = subprocess.run(
        [*leet, str(next(last.glob("wandb/offline-run-*")))],
        capture_output=True, text=True, timeout=HANGS, check=True,
    ).stdout  # fmt: skip
    assert f'"{name}"' in shown

    # The same again, stopped in the middle of the job that was killed.
    before = {
        path: path.stat().st_mtime_ns for path in (first / "summary.json", last / "summary.json")
    }
    reached = rows(killed)[-1]["step"]
    with started("train", *command, cwd=tmp_path) as process:
        wait_until(lambda: max(row["step"] for row in rows(killed)) > reached)
        process.terminate()
        shown, _ = process.communicate(timeout=HANGS)
    assert process.returncode == 75, shown
    assert summary(killed)["status"] == "interrupted"
    newest = rows(killed)[-1]["step"]
    assert summary(killed)["step"] == newest < 150
    checkpoint, _ = newest_valid(killed)
    assert checkpoint is not None and checkpoint.step == newest
    assert shown.count("job 1 of 4  lr=0.002: running") == 1
    assert "job 2 of 4" not in shown
    assert f"stopped by SIGTERM; to continue: python {ROOT}/run_train.py -m" in shown
    assert before == {path: path.stat().st_mtime_ns for path in before}

    # Its command can be repeated by hand; while it runs, the sweep it came from dies.
    own = [*text, *LONG, "logger=none", "optimizer.lr=0.002", f"run.sweep={name}"]
    own += [f"run.dir={killed.relative_to(tmp_path)}"]
    reading, writing = os.pipe()

    def die() -> None:
        wait_until(lambda: rows(killed)[-1]["step"] > newest)
        os.close(writing)

    with meanwhile(die):
        done = here("train", *own, cwd=tmp_path, **{PARENT_PIPE: str(reading)})
    os.close(reading)
    assert done.returncode == 75, done
    assert here("train", *own, cwd=tmp_path).returncode == 0
    assert [row["step"] for row in rows(killed)] == list(range(151))
    assert summary(killed)["status"] == "finished"
    assert here("train", *own, cwd=tmp_path).stdout.startswith(f"{own[-1][8:]} is finished already")


@pytest.mark.slow
def test_the_second_job_of_a_sweep_uses_the_compiled_code_of_the_first(
    tmp_path: Path, text: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "compiled"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
    command = ["-m", *text, *TINY_RUN, "trainer.compile=true", "optimizer.lr=1e-3,2e-3"]
    with started("train", *command, "run.sweep=rates", cwd=tmp_path) as process:
        shown, _ = process.communicate(timeout=HANGS)
    assert process.returncode == 0, shown
    first = (tmp_path / "multirun/rates/optimizer.lr-0.001/summary.json").stat().st_mtime
    made = [path.stat().st_mtime for path in cache.rglob("*.so")]
    assert len(made) > 1
    assert max(made) < first, "nothing was compiled after the first job"


# The commands of the jobs, without starting them.


@pytest.fixture
def sweep(tmp_path: Path, text: list[str]) -> Callable[..., tuple[Done, list[Job]]]:
    """Run a sweep whose jobs end as ``ends`` says, finished if not; returns it and its jobs."""

    def inner(*typed: str, ends: dict[int, str] | None = None) -> tuple[Done, list[Job]]:
        jobs: list[Job] = []

        def run_jobs(batch: list[Job], *_: object) -> dict[int, dict[str, Any]]:
            jobs.extend(batch)
            for job in batch:
                status = (ends or {}).get(job.number, "finished")
                job.folder.mkdir(parents=True, exist_ok=True)
                write_summary(job.folder, status=status, best_val_loss=1.0)
            return {job.number: read_summary(job.folder) or {} for job in batch}

        with patch.object(launcher, "run_jobs", run_jobs):
            done = here("train", "-m", *text, *typed, cwd=tmp_path)
        return done, jobs

    return inner


Sweep = Callable[..., tuple[Done, list[Job]]]


def test_a_job_is_the_command_of_a_single_run(sweep: Sweep, text: list[str]) -> None:
    free = ["logger.notes=lr=1e-3, it's [deep]", "logger.name=null"]
    done, jobs = sweep("model.n_layer=1,2", "seed=3,4", *free)
    assert done.returncode == 0, done.stderr
    assert [job.number for job in jobs] == [0, 1, 2, 3]
    names = ["model.n_layer-1_seed-3", "model.n_layer-1_seed-4"]
    assert [job.folder.name for job in jobs][:2] == names
    name = jobs[0].folder.parent.name
    command = jobs[0].command
    assert command[:2] == [sys.executable, str(ROOT / "run_train.py")]
    for argument in (*text, *free, "model.n_layer=1", "seed=3", f"run.sweep={name}"):
        assert argument in command
    assert f"run.dir=multirun/{name}/model.n_layer-1_seed-3" in command
    assert command[-1] == "hydra.mode=RUN"


def test_a_job_on_the_cpu_is_planned_beside_no_gpu(sweep: Sweep) -> None:
    _, jobs = sweep("seed=1,2", "trainer.device=cpu")
    assert [job.is_on_cpu for job in jobs] == [True, True]


def test_a_job_can_be_repeated_by_hand(sweep: Sweep, tmp_path: Path) -> None:
    tiny = [override for override in TINY_RUN if "n_layer" not in override]
    _, jobs = sweep(*tiny, "model.n_layer=1,2", "logger.notes=a, b", ends={1: "killed"})
    done = here("train", *jobs[1].command[2:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / jobs[1].folder)["status"] == "finished"
    config = (tmp_path / jobs[1].folder / "config.yaml").read_text(encoding="utf-8")
    assert "notes: a, b\n" in config
    assert "n_layer: 2\n" in config


def test_folders_of_jobs_have_plain_short_names_of_their_own(sweep: Sweep) -> None:
    done, jobs = sweep("logger.tags=[a],[b c]", "logger.entity=x/../y,'é'", "run.sweep=names")
    assert done.returncode == 0, done.stderr
    assert len({job.folder.name for job in jobs}) == len(jobs) == 4
    for job in jobs:
        assert job.folder.parent == Path("multirun/names")
        assert all(c.isalnum() or c in "._-" for c in job.folder.name)
        assert job.folder.name.strip(".") != ""
    _, jobs = sweep(f"logger.entity={'x' * 200}1,{'x' * 200}2", "run.sweep=long")
    assert len({job.folder.name for job in jobs}) == 2
    assert all(len(job.folder.name) <= 120 for job in jobs)


def test_a_sweep_that_did_not_finish_prints_how_to_continue_it(sweep: Sweep) -> None:
    done, jobs = sweep("seed=1,2,3", "logger.notes=a, b", ends={1: "diverged"})
    assert done.returncode == 1
    assert done.stderr == "run_train.py: 1 of 3 jobs did not finish\n"
    line = next(line for line in done.stdout.splitlines() if line.startswith("to run what did not"))
    again = shlex.split(line.partition("again: ")[2])
    assert again[:3] == ["python", str(ROOT / "run_train.py"), "-m"]
    assert "logger.notes=a, b" in again
    assert again[-1] == f"run.sweep={jobs[0].folder.parent.name}"
    repeated, jobs_again = sweep(*again[again.index("seed=1,2,3") :])
    assert [job.folder for job in jobs_again] == [job.folder for job in jobs]
    assert [job.command for job in jobs_again] == [job.command for job in jobs]
    assert repeated.returncode == 0
    assert "to run what did not" not in repeated.stdout


def test_each_sweep_without_a_name_gets_a_folder_and_its_batches_share_it(
    sweep: Sweep,
) -> None:
    folders = {sweep("seed=1,2")[1][0].folder.parent for _ in range(3)}
    assert len(folders) == 3
    _, jobs = sweep("seed=1,2,3", "hydra.sweeper.max_batch_size=2")
    assert [job.number for job in jobs] == [0, 1, 2]
    assert len({job.folder.parent for job in jobs}) == 1
    assert len({job.folder for job in jobs}) == 3


def test_a_named_sweep_runs_its_jobs_in_a_folder_of_its_name(sweep: Sweep) -> None:
    done, jobs = sweep("sweep=depth")
    assert done.returncode == 0, done.stderr
    names = [f"model.n_layer-{layers}_seed-{seed}" for layers in (1, 2, 4, 8) for seed in (1, 2)]
    assert [str(job.folder) for job in jobs] == [f"multirun/depth/{name}" for name in names]


def test_typed_values_replace_the_values_of_the_sweep_file(sweep: Sweep) -> None:
    _, jobs = sweep("sweep=depth", "model.n_layer=3,5")
    assert [job.folder.name for job in jobs] == [
        f"model.n_layer-{layers}_seed-{seed}" for layers in (3, 5) for seed in (1, 2)
    ]
    assert sum("model.n_layer" in word for word in jobs[0].command) == 2, "once, and in run.dir"
    _, jobs = sweep("sweep=depth", "model.n_layer=3,5", "seed=7", "run.sweep=one_seed")
    assert [job.folder.name for job in jobs] == ["model.n_layer-3", "model.n_layer-5"]
    assert all("seed=7" in job.command for job in jobs)


def test_values_that_belong_together_make_one_job_each(sweep: Sweep) -> None:
    grid = ["model.n_layer=1,2", "model.n_embed=64,32", "seed=1,2", "logger.tags=[a],[b]"]
    done, jobs = sweep(*grid, "zip=model.n_layer,model.n_embed", "zip=seed,logger.tags")
    assert done.returncode == 0, done.stderr
    pairs = [
        {f"model.n_layer={n}", f"model.n_embed={width}", f"seed={seed}", f"logger.tags=[{tag}]"}
        for n, width in ((1, 64), (2, 32))
        for seed, tag in ((1, "a"), (2, "b"))
    ]  # fmt: skip
    assert len(jobs) == len(pairs)
    for job, pair in zip(jobs, pairs, strict=True):
        assert pair <= set(job.command)
        assert not any(word.startswith(("zip", "hydra.sweeper")) for word in job.command)


# The jobs of a sweep.


@pytest.mark.parametrize(
    ("typed", "names", "said"),
    [
        (["optimizer.lr=1e-5,1e-05,0.00001"], ["optimizer.lr-1e-05"], "2 of 3 combinations repeat"),
        (["seed=1,1"], ["seed-1"], "1 of 2 combinations repeat others, such as seed=1: each"),
        (["seed=1,2", "model.n_layer=2,2"], ["seed-1", "seed-2"], "2 of 4 combinations repeat"),
        (["model.n_layer=range(4,5)"], ["model.n_layer-4"], ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_equal_points_are_one_job(
    typed: list[str], names: list[str], said: str, sweep: Sweep, text: list[str]
) -> None:
    done, jobs = sweep(*typed)
    assert done.returncode == 0, done.stderr
    for job, name in zip(jobs, names, strict=True):
        assert job.folder.name.endswith(name)
    assert said in done.stdout


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (
            ["sweep=depth,width"],
            "job sweep=depth cannot run, so none was started: sweep= says what",
        ),
        (
            ["seed=1,2", "run.name=a"],
            "run.name=a names one run, so none was started: take run.sweep=",
        ),
        (
            ["seed=1,2", "run.dir=a"],
            "run.dir=a names one run, so none was started: take run.sweep=",
        ),
        (
            ["model.n_layer=1,2", "seed=1,2,3", "zip=model.n_layer,seed"],
            "model.n_layer has 2 values and seed has 3 values, but zip pairs them: give each key",
        ),
        (["seed=1,2", "zip=seed"], "zip=seed must name two keys or more, as in zip=model.n_layer"),
        (["seed=1,2", "hydra.sweep.dir=x"], "hydra.sweep.dir= has no effect: take run.sweep=NAME"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_sweep_that_cannot_be_run_is_refused_before_anything_is_written(
    typed: list[str], words: str, sweep: Sweep, tmp_path: Path
) -> None:
    done, jobs = sweep(*typed)
    assert (done.returncode, jobs) == (2, [])
    assert done.stderr.startswith(f"run_train.py: {words}")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "multirun").exists()


def test_a_folder_takes_more_of_its_sweep_and_no_other(sweep: Sweep) -> None:
    def names(*typed: str) -> list[str]:
        done, jobs = sweep(*typed, "run.sweep=s")
        assert done.returncode == 0, done.stderr
        return [job.folder.name for job in jobs]

    assert names("model.n_layer=1", "seed=1,2") == ["seed-1", "seed-2"]
    assert names("model.n_layer=1", "seed=3,4", "logger=none") == ["seed-3", "seed-4"]
    assert names("model.n_layer=1", "seed=2") == ["seed-2"], "one of its jobs, in the same folder"
    for typed, words in (
        (["model.n_layer=1,2", "seed=1"], "holds another sweep (over seed, not model.n_layer): "),
        (["trainer.max_steps=60"], "holds another sweep (over seed, not data, data.path, data.tok"),
        (["model.n_layer=2", "seed=1,2"], "holds another sweep (model.n_layer was 1, now 2): take"),
        (["seed=1,2"], "holds another sweep (model.n_layer was 1, now 4): take another run.sweep"),
    ):
        done, jobs = sweep(*typed, "run.sweep=s")
        assert (done.returncode, jobs) == (2, [])
        assert f"run_train.py: multirun/s {words}" in done.stderr
    done, jobs = sweep("model.n_layer=1,2", "seed=1", "run.sweep=t")
    assert [job.folder.name for job in jobs] == ["model.n_layer-1", "model.n_layer-2"]


# Launchers of other packages.

DUMMY = """
from hydra.core.utils import run_job, setup_globals
from hydra.plugins.launcher import Launcher

class DummyLauncher(Launcher):
    "Calls the main function in this process, as Hydra's own launcher does."

    def __init__(self, word):
        print("word:", word)

    def setup(self, *, hydra_context, task_function, config):
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides, initial_job_idx):
        setup_globals()
        found = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
            config.hydra.job.id, config.hydra.job.num = str(number), number
            found.append(
                run_job(
                    hydra_context=self.context, task_function=self.task, config=config,
                    job_dir_key="hydra.sweep.dir", job_subdir_key="hydra.sweep.subdir",
                )
            )
        return found
"""


def test_a_job_without_a_summary_ends_as_its_launcher_says() -> None:
    result = JobReturn(status=JobStatus.FAILED)
    end = {"status": "killed", "reason": "killed by SIGKILL"}
    result.return_value = launcher.JobFailed("job seed=1 is killed: killed by SIGKILL", end)
    from_worker = pickle.loads(pickle.dumps(result))
    assert end_of(result) == end_of(from_worker) == ("killed", "killed by SIGKILL")
    result.return_value = RuntimeError("no node\nis left")
    assert end_of(result) == ("failed", "no node")


@pytest.mark.slow
def test_an_installed_launcher_is_found_and_its_jobs_are_the_same(
    tmp_path: Path, text: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site/hydra_plugins/dummy"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(DUMMY, encoding="utf-8")
    options = tmp_path / "my_conf/hydra/launcher"
    options.mkdir(parents=True)
    dummy = "_target_: hydra_plugins.dummy.DummyLauncher\nword: null\n"
    (options / "dummy.yaml").write_text(dummy, encoding="utf-8")
    typed = ["--config-dir", "my_conf", "hydra/launcher=dummy", "hydra.launcher.word=found"]
    # The second job is refused: its folder holds another file.
    stranger = tmp_path / "multirun/engine/seed-2"
    stranger.mkdir(parents=True)
    (stranger / "novel.txt").touch()
    command = [sys.executable, str(ROOT / "run_train.py"), "-m", *typed, *text, *TINY_RUN]
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    done = subprocess.run(
        [*command, "seed=1,2", "run.sweep=engine"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "word: found" in done.stdout
    assert done.stderr.endswith("run_train.py: 1 of 2 jobs did not finish\n")
    assert {path.name for path in (tmp_path / "multirun").iterdir()} == {"engine"}
    found = [summary(tmp_path / f"multirun/engine/seed-{seed}") for seed in (1, 2)]
    assert [one["status"] for one in found] == ["finished", "refused"]
    assert "has other files in it" in found[1]["reason"]
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["ledger.jsonl"]


def test_data_that_was_prepared_otherwise_refuses_the_sweep_before_it_starts(
    tmp_path: Path,
) -> None:
    (tmp_path / "play.txt").write_text(PLAY, encoding="utf-8")
    text = ["data=text", "data.tokenizer=byte", "data.path=play.txt"]
    assert here("prepare", *text, cwd=tmp_path).returncode == 0
    (made,) = (tmp_path / "data").iterdir()
    edit_meta(made, lambda meta: meta["made_from"].update(val_fraction=0.5))
    done = here("train", "-m", *text, "seed=1,2", cwd=tmp_path)
    assert done.returncode == 2
    assert "was prepared with val_fraction=0.5" in done.stderr
    assert "no job was started" in done.stderr
    assert not (tmp_path / "multirun").exists()
