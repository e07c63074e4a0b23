"""Weights laid out in memory as a matrix-vector product reads them fastest."""

import torch
from torch import Tensor, nn

from llm.model.gpt import GPT
from llm.model.layers import Attention


@torch.no_grad()
def lay_out_for_decoding(model: GPT) -> None:
    """Rearrange the weights of ``model`` in place; names, shapes and values stay what they are.

    Decoding one text is bound by reading every weight once per token. A matrix with more outputs
    than inputs is laid column by column (vectors as long as the output are added up), any other row
    by row (dot products as long as the input). Queries, keys and values become views of one matrix.
    No memory is taken but that of one matrix at a time. Not for a model in training.
    """
    # Of an embedding one row is read at a time, unless it is the head as well.
    done: set[nn.Module] = {m for m in model.modules() if isinstance(m, nn.Embedding)}
    done -= {model.embed} if model.head is None else set()
    for module in model.modules():
        if isinstance(module, Attention):
            done |= {module.q, module.k, module.v}
            module.qkv = _join([module.q, module.k, module.v])
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding) and module not in done:
            outputs, inputs = module.weight.shape
            if outputs > inputs:
                module.weight.data = _by_columns(module.weight)


def _join(parts: list[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """One weight and bias for all ``parts``, of which theirs become views."""
    sizes = [part.out_features for part in parts]
    weight = _by_columns(torch.cat([part.weight for part in parts]))
    for part, rows in zip(parts, torch.split(weight, sizes), strict=True):
        part.weight.data = rows
    if parts[0].bias is None:
        return weight, None
    bias = torch.cat([part.bias for part in parts])
    for part, rows in zip(parts, torch.split(bias, sizes), strict=True):
        part.bias.data = rows
    return weight, bias


def _by_columns(matrix: Tensor) -> Tensor:
    return matrix.t().contiguous().t() if matrix.device.type == "cpu" else matrix
