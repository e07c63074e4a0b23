"""Join weights in memory for the fastest decoding."""

import torch
from torch import Tensor

from llm.model.gpt import GPT
from llm.model.layers import Attention, Linear, SwiGLU
from llm.model.lora import adapted_layers


@torch.no_grad()
def lay_out_for_decoding(model: GPT) -> None:
    """Make the weights of queries, keys and values views of one matrix, and so the weights of gate
    and up, in place: names, shapes and values stay the same.

    One matrix at a time takes extra memory. Not for training. Raises ``ValueError`` for adapters,
    which would be left out: merge them first.
    """
    if any(adapted_layers(model)):
        raise ValueError("the network has adapters: call llm.model.lora.merge first")
    for module in model.modules():
        if isinstance(module, Attention):
            module.qkv = _join([module.q, module.k, module.v])
        elif isinstance(module, SwiGLU):
            module.gate_up = _join([module.gate, module.up])


def _join(parts: list[Linear]) -> tuple[Tensor, Tensor | None]:
    """One weight and bias; the weights and biases of ``parts`` become views of them."""
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
