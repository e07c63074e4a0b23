"""``run_plan.py``: its main function gets all points of a grid at once."""

import functools
from collections.abc import Callable
from typing import Any

from llm.config.compose import read_settings
from llm.config.grid import Combinations
from llm.config.sweeper import Grid
from llm.experiment.console import count_progress
from llm.planning.points import Point
from llm.settings.schema import PlanSettings

Points = list[Point[PlanSettings]]


def as_points(main: Callable[[Points], None]) -> Callable[[Any], None]:
    """For the function below ``@hydra.main``, which :class:`Planner` calls with a list of points.

    The configuration of a single run becomes a list of one point.
    """

    @functools.wraps(main)
    def inner(given: Any) -> None:
        main(given if isinstance(given, list) else [Point(read_settings(given, PlanSettings), {})])

    return inner


class Planner(Grid):
    """All combinations at once, for a main function that takes a list of points."""

    def sweep(self, arguments: list[str]) -> Any:
        """Call the main function with all points."""
        loader = self.context.config_loader
        grid = Combinations(loader, self.composed, PlanSettings, self.params, arguments)
        if grid.is_single:
            return self.task(self.composed)
        with count_progress("checking points") as report:
            points = list(grid.points(report))
        main: Any = self.task
        return main(points)
