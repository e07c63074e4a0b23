"""Rearrange the weights in memory for the fastest decoding."""

import torch
from torch import Tensor, nn

from llm.model.gpt import GPT
from llm.model.layers import Attention, Linear
from llm.model.lora import adapted_layers

LARGE = 2**20  # weights; smaller matrices are read faster by rows (python -m benchmarks.functional)


@torch.no_grad()
def lay_out_for_decoding(model: GPT, texts: int) -> None:
    """Rearrange the weights of ``model`` in place; names, shapes and values stay the same.

    The weights of queries, keys and values become views of one matrix. For a single text, where
    reading every weight once per token limits the speed, large matrices with more outputs than
    inputs are stored column by column. One matrix at a time takes extra memory. Not for training.
    Raises ``ValueError`` for adapters, which would be left out: merge them first.
    """
    if any(adapted_layers(model)):
        raise ValueError("the network has adapters: call llm.model.lora.merge first")
    by_columns = texts == 1 and model.head_weight.device.type == "cpu"
    joined: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, Attention):
            parts = [module.q, module.k, module.v]
            module.qkv = _join(parts, by_columns)
            joined |= set(parts)
    if by_columns:
        matrices = [m for m in model.modules() if isinstance(m, nn.Linear) and m not in joined]
        # An embedding is read whole only if it is also the head.
        head = [model.embed.weight] if model.head is None else []
        for weight in [m.weight for m in matrices] + head:
            weight.data = _by_columns(weight)


def _join(parts: list[Linear], by_columns: bool) -> tuple[Tensor, Tensor | None]:
    """One weight and bias; the weights and biases of ``parts`` become views of them."""
    sizes = [part.out_features for part in parts]
    weight = torch.cat([part.weight for part in parts])
    if by_columns:
        weight = _by_columns(weight)
    for part, rows in zip(parts, torch.split(weight, sizes), strict=True):
        part.weight.data = rows
    if parts[0].bias is None:
        return weight, None
    bias = torch.cat([part.bias for part in parts])
    for part, rows in zip(parts, torch.split(bias, sizes), strict=True):
        part.bias.data = rows
    return weight, bias


def _by_columns(matrix: Tensor) -> Tensor:
    """The same matrix; if it is large and tall, its columns are contiguous."""
    is_tall = matrix.shape[0] > matrix.shape[1] and matrix.numel() >= LARGE
    return matrix.t().contiguous().t() if is_tall else matrix
