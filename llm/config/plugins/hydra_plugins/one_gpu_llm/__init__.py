"""The plugins that ``conf/hydra/`` names, in the package where Hydra looks for them.

Hydra runs this module each time it looks for plugins, so the code is in ``llm.config``.
"""

from llm.config import launcher, planner, sweeper


class Grid(sweeper.Grid):
    """``hydra/sweeper/grid.yaml``"""


class Planner(planner.Planner):
    """``hydra/sweeper/plan.yaml``"""


class ProcessLauncher(launcher.ProcessLauncher):
    """``hydra/launcher/process.yaml``"""
