"""Products with a few rows are torch's own."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from llm.functional.linear import FEW, linear


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [(1,), (1, 1), (3, 2), (FEW,), (FEW + 1,)], ids=str)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("outputs", [2, 7, 12, 13])
def test_a_product_of_any_size_equals_torchs(
    threads: int, rows: tuple[int, ...], biased: bool, by_columns: bool, outputs: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(*size, generator=generator) for size in ((*rows, 8), (outputs, 8)))
    bias = torch.randn(outputs, generator=generator) if biased else None
    if by_columns:
        weight = weight.t().contiguous().t()
    with torch.no_grad():
        found = linear(x, weight, bias)
    assert found.shape == (*rows, outputs)
    assert torch.allclose(found, F.linear(x, weight, bias), atol=1e-5)


def test_in_training_gradients_are_torchs(threads: int) -> None:
    x, weight = torch.randn(2, 8, requires_grad=True), torch.randn(12, 8, requires_grad=True)
    linear(x, weight).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, weight.detach().sum(0).expand(2, 8))
