"""Trading time for memory inside a layer."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llm.functional.sizes import RECOMPUTED_FROM


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``function(*inputs)``, keeping only large inputs and no steps between for the backward pass.

    They are computed again there, up to the last tensor needed: not a matrix product at the end.
    """
    learning = torch.is_grad_enabled() and not torch.compiler.is_compiling()  # it does so itself
    if learning and inputs[0].numel() >= RECOMPUTED_FROM:
        out: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
        return out
    return function(*inputs)
