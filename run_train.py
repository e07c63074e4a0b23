"""Train a language model: python run_train.py model=small data=shakespeare

Hydra composes conf/train.yaml with the overrides. From these settings, llm/recipe.py makes a
dataset, a run folder, a network, an optimizer and the trainer. The loop is in
llm/training/trainer.py.
"""

import llm.start  # noqa: F401  (first: from here on signals are handled)

# isort: split
from pathlib import Path

import hydra
from omegaconf import DictConfig

from llm.config.cli import command, reported
from llm.config.compose import read_settings
from llm.experiment.console import status
from llm.experiment.rundir import read_summary
from llm.settings.schema import TrainSettings
from llm.signals import delayed


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@reported
def main(cfg: DictConfig) -> float | None:
    """Train as configured; returns the lowest validation loss (nats per token)."""
    settings = read_settings(cfg, TrainSettings)  # plain and checked from here on
    # Imports after the checks: --help and typing errors need no torch.
    if settings.run.dry_run:
        from llm.planning.dry_run import show_dry_run

        show_dry_run(settings)
        return None
    with status("loading torch"), delayed():
        from llm.experiment.verify import verify_run
        from llm.recipe import train

    if settings.verify:
        verify_run(Path(str(settings.run.dir)), settings.data)
        return None
    summary = read_summary(train(settings)) or {}
    return summary.get("best_val_loss")


if __name__ == "__main__":
    command(main)
