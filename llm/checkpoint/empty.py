"""A network without memory: its weights have names and shapes, but no values.

A checkpoint is checked against it before anything is allocated, and loaded into it.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from llm.model.config import GPTConfig
from llm.model.gpt import GPT

Shapes = dict[str, tuple[int, ...]]


class _WithoutValues(TorchFunctionMode):
    """Skips torch.nn.init: on the meta device it imports a compiler, which takes a second."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        is_init = getattr(function, "__module__", "") == "torch.nn.init"
        if is_init:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def empty_model(config: GPTConfig) -> GPT:
    """The network of ``config``, with all tensors on torch's meta device."""
    with torch.device("meta"), _WithoutValues():
        return GPT(**asdict(config))


def weight_shapes(config: GPTConfig) -> Shapes:
    """The name and shape of every weight of the network."""
    return {name: tuple(tensor.shape) for name, tensor in empty_model(config).state_dict().items()}
