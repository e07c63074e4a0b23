"""The products of adapters have the gradients of autograd, with either library."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llm.functional.low_rank import adapted, narrowed

ROWS, IN, RANK, OUT = 12, 10, 3, 7


def drawn(*sizes: int, seed: int, learns: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*sizes, generator=generator, requires_grad=learns)


@pytest.mark.parametrize("is_slow", [False, True])
@pytest.mark.parametrize("x_learns", [False, True])
def test_gradients_are_those_of_autograd(
    x_learns: bool, is_slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_slow and not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr("llm.functional.linear.has_slow_mkl", lambda: is_slow)
    x = drawn(ROWS, IN, seed=1, learns=x_learns)
    a, b = drawn(RANK, IN, seed=2), drawn(OUT, RANK, seed=3)
    weight, bias = drawn(OUT, IN, seed=4, learns=False), drawn(OUT, seed=5, learns=False)
    leaves = [x, a, b] if x_learns else [a, b]

    low, same = narrowed(x, a)
    found = adapted(same, weight, 2 * low, b, bias)
    expected = F.linear(x, weight, bias) + 2 * x @ a.t() @ b.t()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    gradient = drawn(ROWS, OUT, seed=6, learns=False)
    kept = gradient.clone()
    for one, other in zip(
        torch.autograd.grad(found, leaves, gradient),
        torch.autograd.grad(expected, leaves, gradient),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert torch.equal(gradient, kept)  # the incoming gradient may have other readers
    assert same.requires_grad == x_learns


def test_without_gradients_nothing_is_recorded() -> None:
    x, a, b = drawn(ROWS, IN, seed=1), drawn(RANK, IN, seed=2), drawn(OUT, RANK, seed=3)
    with torch.no_grad():
        low, same = narrowed(x, a)
        out = adapted(same, torch.zeros(OUT, IN), low, b)
    assert same is x and not out.requires_grad
    torch.testing.assert_close(out, (x @ a.t() @ b.t()).detach())
