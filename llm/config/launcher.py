"""Sweeps: Hydra's grid of overrides, all jobs checked first, then each in a fresh process.

Hydra finds plugins by name in a package ``hydra_plugins``. The last lines make this module known
there, so that no second top-level folder is needed; Hydra imports it again by that name, hence no
work at import.
"""

import logging
import os
import shlex
import sys
import types
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from llm.config.schema import TrainSettings
from llm.config.settings import read_settings
from llm.config.verbatim import as_typed
from llm.data.config import SAFE
from llm.errors import Interrupted, Refused, Stop, require
from llm.experiment.rundir import claim, read_summary
from llm.experiment.sweep import Job, run_job
from llm.signals import Signalled

PLUGIN = "hydra_plugins.llm_process"
MULTIRUN, NAME = Path("multirun"), "%Y-%m-%d_%H-%M-%S"  # and of a sweep without a name
HOUSEKEEPING = ("run.sweep", "run.dir")  # overrides that say where, not what
log = logging.getLogger("llm")


class SweepFailed(Stop):
    """Some jobs did not finish. Each says why in its own folder."""


class Grid(Sweeper):
    """All combinations, as Hydra's own sweeper makes them."""

    def __init__(
        self, max_batch_size: int | None = None, params: dict[str, str] | None = None
    ) -> None:
        size = f"hydra.sweeper.max_batch_size={max_batch_size}"
        require(max_batch_size is None or max_batch_size > 0, f"{size} must be at least 1, or null")
        self.max_batch_size, self.params = max_batch_size, params or {}

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what :meth:`sweep` needs; called by Hydra once."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run all combinations of ``arguments``; :class:`SweepFailed` if a job did not finish."""
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides(
            [*(f"{k}={v}" for k, v in self.params.items()), *arguments]
        )
        assert self.launcher is not None
        batches = BasicSweeper.split_arguments(overrides, self.max_batch_size)
        if isinstance(self.launcher, ProcessLauncher):
            self.launcher.check_all([list(job) for batch in batches for job in batch])
        results: list[JobReturn] = []
        for batch in batches:
            results += self.launcher.launch(batch, initial_job_idx=len(results))
        failed = sum(result.status == JobStatus.FAILED for result in results)
        if failed:
            raise SweepFailed(f"{failed} of {len(results)} jobs did not finish")
        return [results]


class ProcessLauncher(Launcher):
    """One job after another, each as the command that would run it alone."""

    def __init__(self, timeout_min: float | None = None) -> None:
        self.timeout_seconds = None if timeout_min is None else 60 * timeout_min

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what :meth:`launch` needs; called by Hydra once per sweep."""
        self.loader, self.config = hydra_context.config_loader, config
        self.sweep: str | None = None  # its name, the same for all batches
        self.checked: dict[tuple[str, ...], TrainSettings] = {}

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Check all jobs, then run them; returns their results. Called by Hydra once per batch."""
        from llm.experiment.console import jobs_table, say, title

        batch = [list(overrides) for overrides in job_overrides]
        named = self.check_all(batch)[0].run.sweep
        self.sweep = self.sweep or named or claim(MULTIRUN / f"{datetime.now():{NAME}}").name
        jobs = self.jobs(batch, self.sweep, initial_job_idx)
        typed = [Path(sys.argv[0]).name, *as_typed(sys.argv[1:])]
        again = "python " + shlex.join(typed if named else [*typed, f"run.sweep={self.sweep}"])
        done: list[tuple[Job, dict[str, Any]]] = []
        try:
            for place, job in enumerate(jobs, 1):
                title(f"job {place} of {len(jobs)}: {_label(job.overrides)}")
                done.append((job, run_job(job, self.timeout_seconds)))
        except Signalled as stop:
            done += _not_started(done, jobs)
            jobs_table([(_label(job.overrides), found) for job, found in done])
            raise Interrupted(f"stopped by {stop}; to continue: {again}") from None
        jobs_table([(_label(job.overrides), found) for job, found in done])
        if any(found["status"] != "finished" for _, found in done):
            say(f"to run what did not finish again: {again}")
        return [self.result(job, found) for job, found in done]

    def check_all(self, batch: list[list[str]]) -> list[TrainSettings]:
        """The settings of all jobs, none of which is started if one cannot work."""
        labels = [_label(different) for different in _differences(batch)]
        return [self.check(*pair) for pair in zip(batch, labels, strict=True)]

    def check(self, overrides: list[str], label: str) -> TrainSettings:
        """The settings of one job; :class:`llm.errors.Refused` with ``label`` if it cannot work."""
        known = self.checked.get(tuple(overrides))
        if known is not None:
            return known
        config = self.loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            del config["hydra"]
        try:
            require(not config.resume, "resume= continues one run: take run.sweep= for a sweep")
            require(not config.run.name, "run.name= names one run: take run.sweep= for a sweep")
            settings = self.checked[tuple(overrides)] = read_settings(config, TrainSettings)
            return settings
        except Refused as refusal:
            raise Refused(f"job {label} cannot run, so none was started: {refusal}") from None

    def jobs(self, batch: list[list[str]], sweep: str, first: int) -> list[Job]:
        """One job for each list of overrides, in a folder named after what differs between them."""
        names: dict[str, int] = {}
        jobs = []
        for number, (overrides, different) in enumerate(
            zip(batch, _differences(batch), strict=True), first
        ):
            name = _folder_name(different, number)
            names[name] = names.get(name, 0) + 1
            folder = MULTIRUN / sweep / (name if names[name] == 1 else f"{name}-{names[name]}")
            kept = as_typed([o for o in overrides if not _is_housekeeping(o)])
            own = self.command([*kept, f"run.sweep={sweep}", f"run.dir={folder}"])
            jobs.append(Job(number, different, folder, own))
        return jobs

    def command(self, overrides: list[str]) -> list[str]:
        """What to run for one job: this script, as a single run."""
        flags = ["--config-name", str(self.config.hydra.job.config_name)]
        for source in self.loader.get_search_path().get_path():
            if source.provider == "command-line":
                flags += ["--config-dir", source.path.removeprefix("file://")]
        # Unresolved on purpose: some of Hydra's own overrides only mean something inside a job.
        of_hydra = OmegaConf.to_container(self.config.hydra.overrides.hydra, resolve=False)
        assert isinstance(of_hydra, list)
        of_sweep = ("hydra.mode", "hydra.sweeper", "hydra/sweeper")
        kept = [str(o) for o in of_hydra if not str(o).startswith(of_sweep)]
        script = os.path.abspath(sys.argv[0])
        return [sys.executable, script, *flags, *kept, *overrides, "hydra.mode=RUN"]

    def result(self, job: Job, found: dict[str, Any]) -> JobReturn:
        """A job's summary as Hydra, and an optimizing sweeper, wants it."""
        finished = found["status"] == "finished"
        result = JobReturn(overrides=job.overrides, working_dir=os.getcwd(), task_name="run_train")
        result.status = JobStatus.COMPLETED if finished else JobStatus.FAILED
        said = f"job {_label(job.overrides)} is {found['status']}: {found.get('reason')}"
        result.return_value = found.get("best_val_loss") if finished else SweepFailed(said)
        return result


def _is_housekeeping(override: str) -> bool:
    return override.partition("=")[0] in HOUSEKEEPING


def _differences(batch: list[list[str]]) -> list[list[str]]:
    """Of each job's overrides those that not all jobs have; all of them where there is one job."""
    common = set(batch[0]).intersection(*batch) if len(batch) > 1 else set()
    return [[o for o in overrides if o not in common] for overrides in batch]


def _label(overrides: list[str]) -> str:
    return " ".join(o for o in overrides if not _is_housekeeping(o)) or "(no overrides)"


def _folder_name(overrides: list[str], number: int) -> str:
    """``model.n_layer-4_optimizer.lr-0.001``: at most 120 letters, digits and ``. _ -``."""
    kept = sorted(o for o in overrides if not _is_housekeeping(o))
    plain = "_".join(kept).replace("e+", "e")  # 1e+30 must not read as 1e-30
    name = "".join(c if c in SAFE else "-" for c in plain).strip("-.")
    if not name:
        return f"job-{number}"
    return name if len(name) <= 120 else f"{name[:110]}-{number}"


def _not_started(
    done: list[tuple[Job, dict[str, Any]]], jobs: list[Job]
) -> list[tuple[Job, dict[str, Any]]]:
    """What is known of the jobs that were not reached when a sweep was stopped."""
    unknown = {"status": "not started"}
    return [(job, read_summary(job.folder) or unknown) for job in jobs[len(done) :]]


def _register() -> None:
    sys.modules.setdefault("hydra_plugins", types.ModuleType("hydra_plugins")).__dict__.setdefault(
        "__path__", []
    )
    sys.modules[PLUGIN] = sys.modules[__name__]
    for plugin in (Grid, ProcessLauncher):
        plugin.__module__ = PLUGIN
        Plugins.instance().register(plugin)


_register()
