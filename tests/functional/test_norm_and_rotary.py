"""Hand-written gradients equal the gradients of the definitions."""

import pytest
import torch
import torch.nn.functional as F

from llm.functional.gated import gated
from llm.functional.norm import rms_norm
from llm.functional.rotary import rotate
from llm.model.config import GPTConfig
from llm.model.layers import rotary_angles


def drawn(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("shape", [(2, 5, 16), (3, 2, 7, 8), (4, 6)], ids=str)
def test_rms_norm_equals_torchs_in_value_and_gradient(shape: tuple[int, ...]) -> None:
    found = []
    for norm in (
        lambda x, w: rms_norm(x, w, 1e-6),
        lambda x, w: F.rms_norm(x, w.shape, w, 1e-6),
    ):
        x, weight = drawn(*shape).requires_grad_(), drawn(shape[-1], seed=2).requires_grad_()
        y = norm(x, weight)
        y.backward(drawn(*shape, seed=3))
        found.append((y, x.grad, weight.grad))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_rms_norm_passes_torchs_numerical_check() -> None:
    x = drawn(3, 4, 8, dtype=torch.double).requires_grad_()
    weight = drawn(8, seed=2, dtype=torch.double).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-6), (x, weight))


def test_swiglu_gives_the_bits_of_its_definition_and_stores_its_inputs_only() -> None:
    found, stored = [], []
    for function in (gated, lambda gate, up: F.silu(gate) * up):
        gate, up = drawn(5, 8).requires_grad_(), drawn(5, 8, seed=2).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: stored.append(tensor) or tensor, lambda tensor: tensor
        ):
            y = function(gate, up)
        y.backward(drawn(5, 8, seed=3))
        found.append((y, gate.grad, up.grad))
        if function is gated:
            assert [one.data_ptr() for one in stored] == [gate.data_ptr(), up.data_ptr()]
    assert all(map(torch.equal, *found))
    with torch.no_grad():
        assert torch.equal(gated(gate, up), found[0][0])


@pytest.mark.parametrize("rows", [1, 2], ids=["shared positions", "positions by row"])
def test_rotation_equals_its_definition_in_value_and_gradient(rows: int) -> None:
    cos, sin = rotary_angles(GPTConfig(head_size=8, block_size=6))
    if rows > 1:
        cos, sin = (torch.stack([t, t.flip(0)])[:, None] for t in (cos, sin))
    found = []
    for by_hand in (True, False):
        x = drawn(2, 3, 6, 8).requires_grad_()
        if by_hand:
            y = rotate(x, cos, sin)
        else:
            low, high = x.chunk(2, dim=-1)
            y = x * cos + torch.cat([-high, low], dim=-1) * sin
        y.backward(drawn(2, 3, 6, 8, seed=3))
        found.append((y, x.grad))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_rotating_16_bit_numbers_rounds_once_at_the_end() -> None:
    cos, sin = rotary_angles(GPTConfig(head_size=8, block_size=6))
    x = drawn(2, 3, 6, 8).bfloat16()
    assert torch.equal(rotate(x, cos, sin), rotate(x.float(), cos, sin).bfloat16())


def test_without_gradients_norm_and_rotation_give_the_same_bits() -> None:
    x, weight = drawn(2, 3, 1, 8).requires_grad_(), drawn(8, seed=2)
    cos, sin = rotary_angles(GPTConfig(n_embed=8, head_size=8, block_size=1, vocab_size=5))
    learning = (rms_norm(x, weight, 1e-6), rotate(x, cos, sin))
    with torch.no_grad():
        found = (rms_norm(x, weight, 1e-6), rotate(x, cos, sin))
    assert all(map(torch.equal, found, learning))
