"""Jobs of a sweep: each is the command that would run it alone, in a process of its own.

The built-in launcher runs one after another, or ``n_jobs`` at once. With a launcher of another
package (joblib, submitit, Ray), a worker starts the same command. So a job can always be killed,
run out of memory or be continued without harm to another job.
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf

from llm.config import PLUGINS
from llm.config.store import AS_RUN
from llm.config.verbatim import as_typed, quoted, unquoted
from llm.errors import Stop, require
from llm.experiment.console import say
from llm.experiment.names import folder_name, values_of
from llm.experiment.sweep import Job, Places, machine_memory, run_job, run_jobs
from llm.experiment.watch import Watched

MULTIRUN = Path("multirun")
# The keys that say where a job writes.
PLACE = ("run.sweep", "run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
HOUSEKEEPING = (*PLACE, "run.retry", "run.dry_run")  # a job gets these from its sweep
NOTE = "run.note"
OF_THE_SWEEP = ("hydra.mode", "hydra.sweep", "hydra/sweep", "hydra.launcher", "hydra/launcher")


class JobFailed(Stop):
    """A job did not finish."""

    # `summary` has a default because unpickling, from the worker of another launcher, needs it.
    def __init__(self, message: str, summary: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.summary = summary or {"status": "failed", "reason": message}


class ProcessLauncher(Launcher):
    """Up to ``n_jobs`` jobs at once."""

    def __init__(self, timeout_min: float | None = None, n_jobs: int = 1) -> None:
        limit = f"hydra.launcher.timeout_min={timeout_min}"
        require(timeout_min is None or timeout_min > 0, f"{limit} must be more than 0, or null")
        valid = type(n_jobs) is int and n_jobs >= 1  # True is an int too
        require(valid, f"hydra.launcher.n_jobs={n_jobs} must be a whole number, at least 1")
        self.timeout_seconds = None if timeout_min is None else 60 * timeout_min
        self.n_jobs = n_jobs
        # From the built-in sweeper: its jobs by folder, and the folders of jobs that use no GPU.
        self.watched: dict[Path, Watched] = {}
        self.on_cpu: set[Path] = set()

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra once per sweep."""
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Run all jobs and return their results. Called by Hydra once per batch."""
        script = Path(sys.argv[0]).resolve()
        jobs = [
            job_of(self.config.hydra, overrides, number, script)
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        jobs = [self._placed(job) for job in jobs]
        places = Places(self.n_jobs)
        ends = run_jobs(jobs, places, self.timeout_seconds, self._started, self._ended)
        return [_result(job, ends[job.number]) for job in jobs]

    def _placed(self, job: Job) -> Job:
        """``job`` with its device, its predicted peak and the memory of that device."""
        is_on_cpu, watched = job.folder in self.on_cpu, self.watched.get(job.folder)
        if watched is None or watched.forecast is None:
            return replace(job, is_on_cpu=is_on_cpu)
        room = machine_memory() if is_on_cpu else watched.forecast.budget
        return replace(job, peak=watched.forecast.peak, room=room, is_on_cpu=is_on_cpu)

    def _started(self, job: Job) -> None:
        if job.folder in self.watched:
            self.watched[job.folder].started()
        else:  # the sweeper of another package shows nothing
            say(f"job {job.number}: {' '.join(job.overrides)}")

    def _ended(self, job: Job, summary: dict[str, Any]) -> None:
        status, reason = str(summary["status"]), str(summary.get("reason") or "")
        if job.folder in self.watched:
            done = status == "finished"
            self.watched[job.folder].ended(*([] if done else [status, reason]))
        else:
            say(f"job {job.number}: {status}" + f": {reason}" * bool(reason))


def _result(job: Job, summary: dict[str, Any]) -> JobReturn:
    result = JobReturn(overrides=job.overrides, working_dir=os.getcwd())
    try:
        result.return_value, result.status = loss_of(job, summary), JobStatus.COMPLETED
    except JobFailed as error:
        result.return_value, result.status = error, JobStatus.FAILED
    return result


def is_job_of_another_launcher() -> bool:
    """Whether a launcher that runs jobs within its own process has called the main function."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def run_as_job(script: Path) -> float | None:
    """Run the job that another launcher has composed; returns its lowest validation loss.

    Raises :class:`JobFailed` if it does not finish.
    """
    hydra = HydraConfig.get()
    job = job_of(hydra, list(map(str, hydra.overrides.task)), int(hydra.job.num), script)
    # The progress bars of several jobs on one terminal would overwrite each other.
    environment = {"TTY_COMPATIBLE": "0"}
    with contextlib.chdir(hydra.runtime.cwd):  # a worker may start in another folder
        return loss_of(job, run_job(job, environment=environment))


def loss_of(job: Job, summary: dict[str, Any]) -> float | None:
    """The lowest validation loss, for sweepers that minimize it; raises :class:`JobFailed`."""
    if summary["status"] == "finished":
        loss: float | None = summary.get("best_val_loss")
        return loss
    end = f"{summary['status']}: {summary.get('reason')}"
    raise JobFailed(f"job {' '.join(job.overrides)} is {end}", summary)


def job_of(hydra: Any, overrides: Sequence[str], number: int, script: Path) -> Job:
    """The job with these overrides, in a new folder if they name none.

    The built-in sweeper names one, sweepers of other packages do not.
    """
    settings = [one for one in overrides if not is_housekeeping(one)]
    distinct = [one for one in settings if distinguishes(one)]
    pairs = [one.partition("=") for one in overrides if is_housekeeping(one)]
    place = {key.lstrip("+"): unquoted(value) for key, _, value in pairs}
    sweep = place.get("run.sweep") or Path(str(hydra.sweep.dir)).name
    folder = Path(place.get("run.dir") or MULTIRUN / sweep / folder_name(values_of(distinct)))
    typed = [*map(as_typed, settings), f"run.sweep={sweep}", f"run.dir={folder}"]
    if retry := place.get("run.retry"):
        typed.append(f"run.retry={retry}")
    return Job(number, settings, folder, command_of(hydra, typed, script))


def command_of(hydra: Any, overrides: list[str], script: Path) -> list[str]:
    """The command that runs one job alone."""
    flags = ["--config-name", str(hydra.job.config_name)]
    for source in hydra.runtime.config_sources:
        path = Path(source.path)
        if source.provider == "command-line":
            flags += ["--config-dir", str(path)]
        elif source.provider == "main" and path.resolve() != script.parent / "conf":
            flags += ["--config-path", str(path)]
    # Not resolved: some of Hydra's own overrides have a value only inside a job.
    typed: Any = OmegaConf.to_container(hydra.overrides.hydra, resolve=False)
    of_hydra = [str(one) for one in typed if not str(one).startswith(OF_THE_SWEEP)]
    return [sys.executable, str(script), *flags, *of_hydra, *overrides, AS_RUN]


def placed(overrides: Sequence[str], sweep: str, name: str, retry: str = "failed") -> list[str]:
    """``overrides`` with the place of the job, ``multirun/<sweep>/<name>``."""
    values = (sweep, str(MULTIRUN / sweep / name), str(MULTIRUN / sweep), name)
    place = [f"{key}={quoted(value)}" for key, value in zip(PLACE, values, strict=True)]
    anew = ["run.retry=all"] if retry == "all" else []
    return [*(one for one in overrides if not is_housekeeping(one)), *place, *anew]


def is_housekeeping(override: str) -> bool:
    """Whether an override says where a job writes, or what to do with an earlier run there."""
    return override.partition("=")[0].lstrip("+") in HOUSEKEEPING


def distinguishes(override: str) -> bool:
    """Whether an override may distinguish a job from the others of its sweep."""
    return not (is_housekeeping(override) or override.partition("=")[0] == NOTE)


def find_from_workers() -> None:
    """Let processes that another launcher starts import this package and its plugins."""
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    added = [str(Path(sys.argv[0]).resolve().parent), str(PLUGINS)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*added, *filter(None, known)]))
