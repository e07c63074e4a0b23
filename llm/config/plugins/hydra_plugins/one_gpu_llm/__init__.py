"""Our plugins under the name that Hydra asks for; ``conf/hydra/`` refers to them.

Hydra runs this module each time it looks for plugins, so the work is in ``llm.config``.
"""

from llm.config import launcher, planner, sweeper


class Grid(sweeper.Grid):
    """``hydra/sweeper/grid.yaml``"""


class Planner(planner.Planner):
    """``hydra/sweeper/plan.yaml``"""


class ProcessLauncher(launcher.ProcessLauncher):
    """``hydra/launcher/process.yaml``"""
