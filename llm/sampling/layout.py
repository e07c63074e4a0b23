"""Weights laid out in memory as decoding reads them fastest."""

import torch
from torch import Tensor, nn

from llm.model.gpt import GPT
from llm.model.layers import Attention

LARGE = 2**20  # weights; what is smaller is read as fast by rows (python -m benchmarks.functional)


@torch.no_grad()
def lay_out_for_decoding(model: GPT, texts: int = 1) -> None:
    """Rearrange the weights of ``model`` in place; names, shapes and values stay what they are.

    Queries, keys and values become views of one matrix. Where one text is written at a time, which
    is bound by reading every weight once per token, large matrices with more outputs than inputs
    are laid column by column: vectors as long as the output are added up. No memory is taken but
    that of one matrix at a time. Not for a model in training.
    """
    for module in model.modules():
        if isinstance(module, Attention):
            module.qkv = _join([module.q, module.k, module.v])
    if texts > 1 or model.head_weight.device.type != "cpu":
        return
    # Of an embedding one row is read at a time, unless it is the head as well.
    matrices: list[nn.Module] = [m for m in model.modules() if isinstance(m, nn.Linear)]
    for module in matrices + ([model.embed] if model.head is None else []):
        assert isinstance(module.weight, Tensor)
        outputs, inputs = module.weight.shape
        if outputs > inputs and module.weight.numel() >= LARGE:
            module.weight.data = module.weight.t().contiguous().t()


def _join(parts: list[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """One weight and bias for all ``parts``, of which theirs become views."""
    sizes = [part.out_features for part in parts]
    weight = torch.cat([part.weight for part in parts])
    for part, rows in zip(parts, torch.split(weight, sizes), strict=True):
        part.weight.data = rows
    if parts[0].bias is None:
        return weight, None
    bias = torch.cat([part.bias for part in parts])
    for part, rows in zip(parts, torch.split(bias, sizes), strict=True):
        part.bias.data = rows
    return weight, bias
