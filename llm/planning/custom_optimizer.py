"""Custom optimizers are measured, and all custom classes are tried, before a run begins."""

from collections.abc import Sequence
from dataclasses import fields

from llm.memory.custom import CustomState
from llm.model.config import GPTConfig
from llm.settings.build import locate_custom, naming, try_custom
from llm.settings.custom import Custom
from llm.settings.schema import TrainSettings

_MEASURED: dict[str, CustomState] = {}


def optimizer_state(optimizer: object, model: GPTConfig, cuda: bool) -> CustomState | None:
    """The state that a custom ``optimizer`` has for the weights of ``model``; None for a built-in
    optimizer.

    It updates a small network, for which torch is imported (about 2 s, once). Raises
    :class:`llm.errors.Refused` for a class that cannot be used.
    """
    if not isinstance(optimizer, Custom):
        return None
    import torch

    from llm.training.measure import SMALL, measure, small

    shape = GPTConfig(**{f.name: getattr(model, f.name) for f in fields(GPTConfig)})
    network = small(shape, 1, SMALL)  # the same for models that differ only in their sizes
    question = repr((optimizer, network, cuda))
    if question not in _MEASURED:
        with naming(optimizer):
            _MEASURED[question] = measure(
                optimizer.where, locate_custom(optimizer), optimizer.arguments, network,
                torch.device("cpu"), foreach=cuda,
            )  # fmt: skip
    return _MEASURED[question]


def try_custom_classes(runs: Sequence[TrainSettings]) -> None:
    """Raise :class:`llm.errors.Refused` for a custom optimizer, schedule or logger that does not
    work.
    """
    previous: object = None
    for settings in runs:
        parts = (settings.schedule, settings.logger, settings.trainer.max_steps)
        if parts != previous:  # neighbours in a grid mostly share them
            try_custom(settings)
        previous = parts
        optimizer_state(settings.optimizer, settings.model, cuda=False)
