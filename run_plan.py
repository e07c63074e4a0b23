"""How much memory would a run take, and does it fit? python run_plan.py model=small

Nothing is trained. Torch is imported only for a custom optimizer, and by the process that asks a
GPU for its reserve. The sweeper in conf/plan.yaml (llm/config/planner.py) turns a grid into a list
of points; a single run is a list of one.
"""

import llm.start  # noqa: F401  (first: from here on signals are handled)

# isort: split
import sys
from datetime import datetime
from pathlib import Path

import hydra
from omegaconf import DictConfig

from llm.answer import answer
from llm.config.cli import command
from llm.config.planner import Points, as_points
from llm.experiment.console import say
from llm.planning.picture import can_draw, save
from llm.planning.plain import plain_plan
from llm.planning.points import plan_points, refusal
from llm.planning.tables import optimizer_in_words, show_grid, show_plan
from llm.terminal import require_output

PICTURES, NAME = Path("outputs/plans"), "%Y-%m-%d_%H-%M-%S"


@hydra.main(version_base="1.3", config_path="conf", config_name="plan")
def main(cfg: DictConfig | Points) -> None:
    """Show the plan of one run, or of a grid with a picture; refuse a run that cannot fit."""
    require_output()
    points = as_points(cfg)
    plans, is_grid = plan_points(points), len(points) > 1
    optimizer = " or ".join(dict.fromkeys(optimizer_in_words(one.settings) for one in points))
    if is_grid:
        show_grid(plans, len(points), optimizer)
    else:
        show_plan(plans[0], optimizer)
    answer(points=[plain_plan(plan) for plan in plans], picture=None)
    picture = points[0].settings.picture
    if picture or is_grid:
        path = Path(picture) if picture else PICTURES / f"{datetime.now():{NAME}}.png"
        if not can_draw():
            say("no picture: pip install -c constraints.txt matplotlib")
        written = save(path, plans, is_grid)
        for file in written:
            say(str(file))
        answer(picture=next((file for file in written if file.suffix == ".png"), None))
    if (why := refusal(plans, len(points))) is not None:
        raise why


if __name__ == "__main__":
    others = [word for word in sys.argv[1:] if not word.startswith("--config-dir")]
    if not any(word.startswith(("-", "hydra.mode=")) for word in others):
        sys.argv.append("-m")  # without it Hydra answers any mistake in a grid with "-m is missing"
    command(main)
