"""Measure custom optimizers and try all custom classes before a run starts."""

from collections.abc import Sequence
from dataclasses import fields

from llm.memory.custom import CustomState
from llm.model.config import GPTConfig
from llm.settings.build import locate_custom, naming, try_custom
from llm.settings.custom import Custom
from llm.settings.schema import TrainSettings
from llm.signals import delayed

_MEASURED: dict[str, CustomState] = {}


def optimizer_state(optimizer: object, model: GPTConfig, cuda: bool) -> CustomState | None:
    """The state of a custom ``optimizer`` for the weights of ``model``; None for a built-in one.

    Imports torch (about 2 s, once) to let it update a small network. Raises
    :class:`llm.errors.Refused` for a class that cannot be used.
    """
    if not isinstance(optimizer, Custom):
        return None
    with delayed():
        import torch

        from llm.training.measure import SMALL, measure, small

    shape = GPTConfig(**{f.name: getattr(model, f.name) for f in fields(GPTConfig)})
    network = small(shape, 1, SMALL)  # the same for models that differ only in their sizes
    key = repr((optimizer, network, cuda))
    if key not in _MEASURED:
        with naming(optimizer):
            _MEASURED[key] = measure(
                optimizer.where, locate_custom(optimizer), optimizer.arguments, network,
                torch.device("cpu"), foreach=cuda,
            )  # fmt: skip
    return _MEASURED[key]


def try_custom_classes(runs: Sequence[TrainSettings]) -> None:
    """Raise :class:`llm.errors.Refused` if a custom optimizer, schedule or logger does not work."""
    for settings in runs:
        try_custom(settings)
        optimizer_state(settings.optimizer, settings.model, cuda=False)
