"""``run_plan.py``: its main function gets all points of a grid at once."""

import functools
from collections.abc import Callable
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from llm.config.compose import read_settings
from llm.config.grid import Combinations
from llm.experiment.console import count_progress
from llm.planning.points import Point
from llm.settings.schema import PlanSettings

Points = list[Point[PlanSettings]]


def as_points(main: Callable[[Points], None]) -> Callable[[Any], None]:
    """For the function below ``@hydra.main``: what the sweeper hands over, or with hydra.mode=RUN a
    configuration, as a list of points.
    """

    @functools.wraps(main)
    def inner(given: Any) -> None:
        main(given if isinstance(given, list) else [Point(read_settings(given, PlanSettings), {})])

    return inner


class Planner(Sweeper):
    """All combinations at once, for a main function that takes a list of points."""

    def __init__(self, params: dict[str, str] | None = None) -> None:
        self.params = params or {}

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what :meth:`sweep` needs; called by Hydra once."""
        self.loader, self.plan = hydra_context.config_loader, task_function
        self.composed = config

    def sweep(self, arguments: list[str]) -> Any:
        """Call the main function with all points."""
        return self.plan(self.points(arguments))

    def points(self, arguments: list[str]) -> Points:
        """All combinations of ``arguments`` and of a sweep file's; :class:`llm.errors.Refused` with
        its overrides for one that cannot work.
        """
        grid = Combinations(self.loader, self.composed, PlanSettings)
        grid.expand(self.params, arguments)
        if grid.is_single:
            HydraConfig.instance().set_config(self.composed)  # resume= asks what was typed
            return [Point(read_settings(self.composed, PlanSettings), {})]
        with count_progress("checking points") as report:
            return list(grid.points(report))
