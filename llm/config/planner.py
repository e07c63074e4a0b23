"""``run_plan.py``: its main function gets all points of a grid at once."""

from typing import Any

from omegaconf import DictConfig

from llm.config.compose import read_settings
from llm.config.grid import Combinations
from llm.config.sweeper import Grid
from llm.experiment.console import count_progress
from llm.planning.points import Point
from llm.settings.schema import PlanSettings

Points = list[Point[PlanSettings]]


def as_points(cfg: DictConfig | Points) -> Points:
    """The points from :class:`Planner`; a list of one for the configuration of a single run."""
    return cfg if isinstance(cfg, list) else [Point(read_settings(cfg, PlanSettings), {})]


class Planner(Grid):
    """Calls the main function once, with all combinations."""

    def sweep(self, arguments: list[str]) -> Any:
        """Call the main function with the points, or with the configuration of a single run."""
        loader = self.context.config_loader
        grid = Combinations(loader, self.composed, PlanSettings, self.params, arguments)
        if grid.is_single:
            return self.task(self.composed)
        with count_progress("checking points") as report:
            points = list(grid.points(report))
        main: Any = self.task
        return main(points)
