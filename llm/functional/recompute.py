"""Store less of a layer's forward pass and compute it again in the backward pass."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llm.functional.sizes import RECOMPUTED_FROM


def recomputed(
    function: Callable[..., Tensor], *inputs: Tensor, is_random: bool = False
) -> Tensor:  # fmt: skip
    """``function(*inputs)``; if the inputs are large, only they are stored for the backward pass.

    Intermediate tensors are computed again there, up to the last one needed: a matrix product at
    the end is not repeated. A SwiGLU stores two tensors instead of three. ``is_random``: the
    function has dropout, which must be the same in both passes.
    """
    # torch.compile decides by itself what to recompute.
    learning = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if learning and inputs[0].numel() >= RECOMPUTED_FROM:
        out: Tensor = checkpoint(
            function, *inputs, use_reentrant=False, preserve_rng_state=is_random
        )
        return out
    return function(*inputs)
