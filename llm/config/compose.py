"""Settings without a command line, for benchmarks, tests and notebooks."""

from pathlib import Path

from hydra import compose, initialize_config_dir

from llm.config.schema import TrainSettings
from llm.config.settings import read_settings

CONF = Path(__file__).resolve().parent.parent.parent / "conf"


def compose_training(*overrides: str) -> TrainSettings:
    """The settings of ``python run_train.py <overrides>``, checked.

    Raises Hydra's errors for what it cannot compose, :class:`llm.errors.Refused` for what cannot
    work. Like Hydra itself, not to be called while a ``@hydra.main`` function runs.
    """
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        composed = compose("train", overrides=list(overrides), return_hydra_config=True)
        return read_settings(composed, TrainSettings)
