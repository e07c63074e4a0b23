"""Weights laid out in memory as a matrix-vector product reads them fastest."""

import torch
from torch import Tensor, nn

from llm.model.gpt import GPT
from llm.model.layers import Attention


@torch.no_grad()
def lay_out_for_decoding(model: GPT) -> None:
    """Rearrange the weights of ``model`` in place; names, shapes and values stay what they are.

    Decoding one text is bound by reading every weight once per token. A CPU reads a matrix with
    more outputs than inputs up to twice as fast when it lies column by column (vectors as long as
    the output are added up) and any other row by row (dot products as long as the input):
    ``python -m benchmarks.decode`` shows it. Queries, keys and values become views of one matrix.
    No memory is taken but that of one matrix at a time. Not for a model in training.
    """
    for module in model.modules():
        if isinstance(module, Attention):
            parts = [module.q, module.k, module.v]
            weight = _by_columns(torch.cat([part.weight for part in parts]))
            bias = torch.cat([part.bias for part in parts]) if module.q.bias is not None else None
            sizes = [part.out_features for part in parts]
            for part, rows in zip(parts, weight.split(sizes), strict=True):
                part.weight.data = rows
            if bias is not None:
                for part, rows in zip(parts, bias.split(sizes), strict=True):
                    part.bias.data = rows
            module.joined = weight, bias
    joined = {id(part) for m in model.modules() if isinstance(m, Attention) for part in (m.q, m.k, m.v)}
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding) and id(module) not in joined:
            rows, columns = module.weight.shape
            if rows > columns and module is not model.position:
                module.weight.data = _by_columns(module.weight.data)


def _by_columns(matrix: Tensor) -> Tensor:
    return matrix.t().contiguous().t()
