"""Rounds the matrices of a network to 8 bits, to measure the cost.

Each row of a matrix becomes whole numbers from -127 to 127 and one scale, the largest absolute
value of the row divided by 127.
"""

import copy

import torch

from llm.model.gpt import GPT

SCALE_BYTES, OTHER_BYTES = 4, 4  # float32


@torch.no_grad()
def rounded(model: GPT) -> tuple[GPT, int]:
    """A copy whose matrices were rounded to 8 bits and back, and the bytes that such weights take.

    Vectors, such as the weights of norms, stay in float32.
    """
    result, n_bytes = copy.deepcopy(model), 0
    for parameter in result.parameters():
        if parameter.dim() < 2:
            n_bytes += parameter.numel() * OTHER_BYTES
            continue
        scale = parameter.abs().amax(dim=1, keepdim=True) / 127
        whole = (parameter / scale.clamp(min=torch.finfo(scale.dtype).tiny)).round()
        parameter.copy_(whole.clamp(-127, 127) * scale)
        n_bytes += parameter.numel() + len(parameter) * SCALE_BYTES
    return result, n_bytes
