"""Sweeps: all combinations, checked and planned before the first job starts.

This module chooses the jobs, for any launcher. The screen and the table at the end read their
folders.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, read_write

from llm.answer import answer
from llm.commands import typed_command
from llm.config.grid import Combinations
from llm.config.launcher import JobFailed, ProcessLauncher, find_from_workers, placed
from llm.config.questions import question_of
from llm.config.sweep_folder import SweepFolder, sweep_folder
from llm.config.sweep_report import SweepReport
from llm.data.config import DataConfig
from llm.errors import Interrupted, Refused, Stop, require
from llm.experiment.console import count_progress, say
from llm.experiment.sweep_answer import answer_sweep
from llm.experiment.sweep_screen import SweepScreen
from llm.experiment.watch import Rates, Watched, rates_of
from llm.planning.custom_optimizer import try_custom_classes
from llm.planning.forecast import forecasts
from llm.planning.plain import plain_jobs
from llm.planning.points import Point
from llm.planning.preflight import PlannedJob, show_jobs, show_preflight
from llm.planning.reserve import planned_device
from llm.settings.earlier import earlier_runs
from llm.settings.schema import TrainSettings
from llm.signals import Signalled

Points = list[Point[TrainSettings]]


class SweepFailed(Stop):
    """Some jobs did not finish."""


class Grid(Sweeper):
    """All combinations, for any launcher."""

    def __init__(
        self, max_batch_size: int | None = None, params: dict[str, str] | None = None,
        zip: Any = None, zip_typed: Any = None,
    ) -> None:  # fmt: skip
        # Combinations reads `zip` and `zip_typed` from the composed configuration.
        size = f"hydra.sweeper.max_batch_size={max_batch_size}"
        require(max_batch_size is None or max_batch_size > 0, f"{size} must be at least 1, or null")
        self.max_batch_size, self.params = max_batch_size, params or {}

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra once, before :meth:`sweep`."""
        self.context, self.task, self.composed = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        """Run all combinations of ``arguments``; :class:`SweepFailed` if a job did not finish."""
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.context, task_function=self.task, config=self.composed
        )
        points, swept = self.points(arguments)
        settings = [point.settings for point in points]
        run = settings[0].run
        folder = sweep_folder(run.sweep, points, swept, self.composed)
        at_once = jobs_at_once(launcher, len(points))
        if run.dry_run:
            planned = planned_jobs(settings, folder)
            rates = earlier_rates(planned, folder)
            show_jobs(folder.path.name, planned, rates, at_once)
            answer(folder=folder.path, **plain_jobs(folder.folders, planned, rates, at_once))
            return []
        if not folder.path.exists():  # so that a refusal leaves no folder
            require_usable_data(one.data for one in settings)
        with folder.open():
            planned = planned_jobs(settings, folder)
            show_preflight(folder.path.name, planned, earlier_rates(planned, folder), at_once)
            jobs = [
                Watched(path, one.values, one.forecast, one.runs)
                for path, one in zip(folder.folders, planned, strict=True)
            ]
            try:
                return [self.run(launcher, points, jobs, folder)]
            finally:
                answer_sweep(folder.path, jobs)

    def points(self, arguments: Sequence[str]) -> tuple[Points, list[str]]:
        """The checked points without repetitions, and the keys that are swept over.

        Raises :class:`llm.errors.Refused`.
        """
        grid = Combinations(
            self.context.config_loader, self.composed, TrainSettings, self.params, arguments,
            ", so none was started",
        )  # fmt: skip
        with count_progress("checking jobs") as report:
            points = list(grid.points(report))
        for run in (point.settings.run for point in points):
            for key, name in (("run.name", run.name), ("run.dir", run.dir)):
                alone = f"{key}={name} names one run, so none was started: take run.sweep="
                require(not name, alone)
            same = run == points[0].settings.run
            of_all = "run.sweep=, run.note=, run.retry= and run.dry_run= are for all jobs at once"
            require(same, of_all)
        try_custom_classes([point.settings for point in points])
        first: dict[str, Point[TrainSettings]] = {}
        for point in points:
            first.setdefault(repr(point.settings), point)
        if len(first) < grid.count:
            again = next(p for p in points if first[repr(p.settings)] is not p)
            left_out = f"{grid.count - len(first)} of {grid.count} combinations repeat others"
            say(f"{left_out}, such as {again.label}: each is run once")
        return list(first.values()), grid.swept

    def run(
        self, launcher: Launcher, points: Points, jobs: list[Watched], folder: SweepFolder
    ) -> list[JobReturn]:
        """Run the jobs that are to start, and return their results.

        Raises :class:`SweepFailed` if a job is not finished then, and
        :class:`llm.errors.Interrupted` after a signal.
        """
        name, retry = folder.path.name, points[0].settings.run.retry
        started = [number for number, job in enumerate(jobs) if job.will_run]
        batch = [placed(points[n].overrides, name, folder.names[n], retry) for n in started]
        with read_write(self.composed):  # launchers of other packages write their own files there
            self.composed.hydra.sweep.dir = str(folder.path)
        others = [
            Watched(folder.path / one, values, will_run=False)
            for one, values in folder.others.items()
        ]
        again = typed_command(
            *([] if folder.is_named else [f"run.sweep={name}"]), without=["run.retry="]
        )
        results: list[JobReturn] = []
        try:
            with (
                SweepReport(folder.path, jobs, self.question()),
                SweepScreen(jobs, jobs_at_once(launcher, len(batch)), folder.path, others),
            ):
                if isinstance(launcher, ProcessLauncher):
                    launcher.watched = {job.folder: job for job in jobs}
                    launcher.on_cpu = {
                        job.folder
                        for point, job in zip(points, jobs, strict=True)
                        if planned_device(point.settings.trainer.device) != "cuda"
                    }
                else:
                    find_from_workers()
                self.launch(launcher, batch, results)
                for number, result in zip(started, results, strict=False):
                    jobs[number].ended(*end_of(result))
        except Signalled as stop:
            raise Interrupted(f"stopped by {stop}; to continue: {again}") from None
        failed = sum(not job.is_finished for job in jobs)
        if failed:
            say(f"to run what did not finish again: {again}")
            raise SweepFailed(f"{failed} of {len(jobs)} jobs did not finish")
        return results

    def question(self) -> str | None:
        """The question in the sweep file; None without a file, or if the file has none."""
        runtime = self.composed.hydra.runtime
        name = f"sweep/{runtime.choices.get('sweep')}.yaml"
        sources = [source for source in runtime.config_sources if source.schema == "file"]
        files = [Path(source.path) / name for source in sources]
        found = next(filter(None, map(question_of, files)), None)
        return found and found[1]

    def launch(self, launcher: Launcher, batch: list[list[str]], results: list[JobReturn]) -> None:
        """Hand the jobs to the launcher and append its return values to ``results``."""
        size = self.max_batch_size or max(1, len(batch))
        try:
            for start in range(0, len(batch), size):
                results += launcher.launch(batch[start : start + size], initial_job_idx=start)
        except Exception as error:
            if isinstance(launcher, ProcessLauncher):
                raise
            # For example joblib's TerminatedWorkerError.
            reason = next(iter(str(error).splitlines()), "")
            raise SweepFailed(f"the launcher failed: {type(error).__name__}: {reason}") from error


def planned_jobs(settings: Sequence[TrainSettings], folder: SweepFolder) -> list[PlannedJob]:
    """All jobs, and what their folders hold; :class:`llm.errors.Refused` for another run there."""
    found = earlier_runs(zip(settings, folder.folders, strict=True))
    jobs = zip(settings, folder.values, forecasts(settings), found, strict=True)
    planned = [
        PlannedJob(values, known, earlier, one.run.retry, one.memory.fit)
        for one, values, known, earlier in jobs
    ]
    require_usable_data(one.data for one, job in zip(settings, planned, strict=True) if job.runs)
    return planned


def require_usable_data(configs: Iterable[DataConfig]) -> None:
    """Raise :class:`llm.errors.Refused` for a text that is missing, and for a folder of other
    data: each job would be refused for it.
    """
    from llm.data.prepare import ready  # imports tiktoken, which --help does not need

    for config in {repr(one): one for one in configs}.values():
        try:
            ready(config)
        except Refused as refusal:
            raise Refused(f"{refusal} (no job was started)") from refusal


def earlier_rates(planned: Sequence[PlannedJob], folder: SweepFolder) -> Rates:
    """The speeds of jobs that have run before."""
    jobs = [
        Watched(path, one.values, one.forecast, will_run=False)
        for path, one in zip(folder.folders, planned, strict=True)
        if one.earlier.summary
    ]
    for job in jobs:
        job.refresh()
    return rates_of(jobs)


def jobs_at_once(launcher: Launcher, jobs: int) -> int:
    """How many jobs a launcher runs together; all of them if it does not say so."""
    count = getattr(launcher, "n_jobs", None) or getattr(launcher, "joblib", {}).get("n_jobs")
    if not isinstance(count, int):
        return jobs
    return min(jobs, count if count > 0 else os.cpu_count() or 1)


def end_of(result: JobReturn) -> tuple[str, str]:
    """The status and the reason of a job that left no summary, from its launcher."""
    if result.status != JobStatus.FAILED:
        return "", ""
    error = result._return_value  # the public property would raise it
    if isinstance(error, JobFailed):
        return str(error.summary["status"]), str(error.summary.get("reason") or "")
    return "failed", next(iter(str(error).splitlines()), "no reason given")
