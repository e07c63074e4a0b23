"""Sweeps: all combinations, checked before the first job starts, each in its own folder.

This module chooses the jobs and their folders, for any launcher. The table at the end is made from
the ``summary.json`` of each job.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import chain, count, zip_longest
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, read_write

from llm.commands import typed_command
from llm.config.grid import Combinations
from llm.config.launcher import (
    MULTIRUN,
    JobFailed,
    ProcessLauncher,
    find_from_workers,
    folder_name,
    is_housekeeping,
    placed,
)
from llm.config.verbatim import displayed
from llm.errors import Interrupted, Stop, require
from llm.experiment.console import count_progress, jobs_table, say, title
from llm.experiment.rundir import claim, make_folder, read_summary, replace_text
from llm.options import from_plain
from llm.planning.custom_optimizer import try_custom_classes
from llm.planning.plan import label
from llm.planning.points import Point
from llm.sealed import Plain, read_json
from llm.settings.identity import identity
from llm.settings.saved import to_plain
from llm.settings.schema import TrainSettings
from llm.signals import Signalled

NAME = "%Y-%m-%d_%H-%M-%S"  # if run.sweep is null
SWEEP = "sweep.json"
Points = list[Point[TrainSettings]]


@dataclass
class SweepFile:
    """``sweep.json``, in the folder of a sweep."""

    over: list[str]  # the keys that differ between its jobs
    fixed: Plain  # the settings that all jobs share and that change a result


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
        points = self.points(arguments)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.context, task_function=self.task, config=self.composed
        )
        named = points[0].settings.run.sweep
        sweep, values = claim_folder(named, points)
        again = typed_command(*([] if named else [f"run.sweep={sweep}"]))
        names = folder_names(values)
        batch = [placed(p.overrides, sweep, name) for p, name in zip(points, names, strict=True)]
        labels = [label(one) or "(no overrides)" for one in values]
        with read_write(self.composed):  # launchers of other packages write their own files there
            self.composed.hydra.sweep.dir = str(MULTIRUN / sweep)
        results: list[JobReturn] = []
        try:
            titles = [f"job {n} of {len(labels)}: {one}" for n, one in enumerate(labels, 1)]
            self.launch(launcher, batch, dict(zip(names, titles, strict=True)), results)
        except Signalled as stop:
            raise Interrupted(f"stopped by {stop}; to continue: {again}") from None
        finally:
            ends = [
                end_of(MULTIRUN / sweep / name, result)
                for name, result in zip_longest(names, results)
            ]
            jobs_table(list(zip(labels, ends, strict=True)))
        failed = sum(end["status"] != "finished" for end in ends)
        if failed:
            say(f"to run what did not finish again: {again}")
            raise SweepFailed(f"{failed} of {len(batch)} jobs did not finish")
        return [results]

    def points(self, arguments: Sequence[str]) -> Points:
        """The checked points without repetitions; raises :class:`llm.errors.Refused`."""
        grid = Combinations(
            self.context.config_loader, self.composed, TrainSettings, self.params, arguments,
            ", so none was started",
        )  # fmt: skip
        with count_progress("checking jobs") as report:
            points = list(grid.points(report))
        for run in (point.settings.run for point in points):
            alone = f"run.name={run.name} names one run, so none was started: take run.sweep="
            require(not run.name, alone)
            require(run.sweep == points[0].settings.run.sweep, "run.sweep= names all jobs at once")
        try_custom_classes([point.settings for point in points])
        first: dict[str, Point[TrainSettings]] = {}
        for point in points:
            first.setdefault(repr(point.settings), point)
        if len(first) < grid.count:
            again = next(p for p in points if first[repr(p.settings)] is not p)
            left_out = f"{grid.count - len(first)} of {grid.count} combinations repeat others"
            say(f"{left_out}, such as {again.label}: each is run once")
        return list(first.values())

    def launch(
        self, launcher: Launcher, batch: list[list[str]], labels: dict[str, str],
        results: list[JobReturn],
    ) -> None:  # fmt: skip
        """Hand the jobs to the launcher and append its return values to ``results``."""
        if isinstance(launcher, ProcessLauncher):
            launcher.on_start = lambda folder: title(labels[folder.name])
        else:
            find_from_workers()
        size = self.max_batch_size or len(batch)
        try:
            for start in range(0, len(batch), size):
                results += launcher.launch(batch[start : start + size], initial_job_idx=start)
        except Exception as error:
            if isinstance(launcher, ProcessLauncher):
                raise
            # For example joblib's TerminatedWorkerError.
            reason = next(iter(str(error).splitlines()), "")
            raise SweepFailed(f"the launcher failed: {type(error).__name__}: {reason}") from error


def claim_folder(named: str | None, points: Points) -> tuple[str, list[dict[str, str]]]:
    """The name of the sweep, and for each job the values that differ between jobs.

    Raises :class:`llm.errors.Refused` if the folder holds another sweep.
    """
    typed = [typed_values(point) for point in points]
    first, *others = [identity(to_plain(point.settings), "") for point in points]
    fixed = {key: v for key, v in first.items() if all(one.get(key) == v for one in others)}
    over = [key for key in typed[0] if len({one.get(key) for one in typed}) > 1] or list(typed[0])
    folder = MULTIRUN / (named or f"{datetime.now():{NAME}}")
    if named and (folder / SWEEP).exists():
        over = varied_keys(folder, typed[0], over if len(points) > 1 else [], fixed)
    folder = make_folder(folder) if named else claim(folder)
    if not (folder / SWEEP).exists():
        text = json.dumps(asdict(SweepFile(sorted(over), fixed)), indent=1) + "\n"
        replace_text(folder / SWEEP, text)
    return folder.name, [{key: one[key] for key in over} for one in typed]


def varied_keys(folder: Path, typed: dict[str, str], varied: list[str], fixed: Plain) -> list[str]:
    """The keys that the sweep in ``folder`` varies; :class:`llm.errors.Refused` if it is another.

    The jobs of this command may repeat some of its jobs, or add values of its keys.
    """
    path = folder / SWEEP
    before = from_plain(SweepFile, read_json(path), f"{path}: ")
    other = f"{folder} holds another sweep"
    was, now = (", ".join(keys) or "nothing" for keys in (before.over, varied or typed))
    same = set(varied) <= set(before.over) <= set(typed)
    require(same, f"{other} (over {was}, not {now}): take another run.sweep")
    changes = ", ".join(
        f"{key} was {value}, now {fixed[key]}"
        for key, value in before.fixed.items()
        if key in fixed and value != fixed[key]
    )
    require(not changes, f"{other} ({changes}): take another run.sweep, or the same settings")
    return before.over


def typed_values(point: Point[TrainSettings]) -> dict[str, str]:
    """The values from the command line and the sweep file, by key; not the place of the job."""
    pairs = [one.partition("=") for one in point.overrides if not is_housekeeping(one)]
    return {key: displayed(value) for key, _, value in pairs}


def folder_names(values: list[dict[str, str]]) -> list[str]:
    """A different name for the folder of each job, from the values that vary."""
    names: dict[str, None] = {}  # an ordered set
    for number, one in enumerate(values):
        name = folder_name([f"{key}={value}" for key, value in one.items()], number)
        numbered = (f"{name}-{again}" for again in count(2))
        names[next(free for free in chain([name], numbered) if free not in names)] = None
    return list(names)


def end_of(folder: Path, result: JobReturn | None) -> dict[str, Any]:
    """How a job ended: its summary, or the error that its launcher returned."""
    if result is None or result.status != JobStatus.FAILED:
        return read_summary(folder) or {"status": "not started"}
    error = result._return_value  # the public property would raise it
    if isinstance(error, JobFailed):
        return error.summary
    reason = next(iter(str(error).splitlines()), "no reason given")
    return {"status": "failed", "reason": reason}
