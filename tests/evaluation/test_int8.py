"""Rounding to 8 bits: its error, its size, and that the network itself stays as it was."""

import torch

from llm.evaluation.int8 import rounded
from llm.model.gpt import GPT


def test_matrices_are_off_by_half_a_step_of_their_row_and_vectors_stay() -> None:
    torch.manual_seed(0)
    model = GPT(n_layer=1, n_embed=16, head_size=8, block_size=8, vocab_size=12, bias=True)
    with torch.no_grad():
        model.embed.weight[3] = 0  # a row without a scale
    before = {name: one.clone() for name, one in model.named_parameters()}
    small, n_bytes = rounded(model)
    expected = 0
    for name, one in small.named_parameters():
        full = before[name]
        assert torch.equal(dict(model.named_parameters())[name], full)
        if full.dim() == 1:
            assert torch.equal(one, full)
            expected += 4 * full.numel()
            continue
        step = full.abs().amax(dim=1, keepdim=True) / 127
        assert ((one - full).abs() <= step / 2 * 1.001).all()
        assert all(len(row.unique()) <= 255 for row in one)
        expected += full.numel() + 4 * len(full)
    assert n_bytes == expected
