"""Products with a few rows equal torch's."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llm.functional.linear import FEW, has_slow_mkl, linear, prefers_onednn, product


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [(0,), (1,), (1, 1), (3, 2), (FEW,), (FEW + 1,)], ids=str)
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
    assert found.is_contiguous()
    assert torch.allclose(found, F.linear(x, weight, bias), atol=1e-5)


def test_in_training_gradients_are_torchs(threads: int) -> None:
    x, weight = torch.randn(2, 8, requires_grad=True), torch.randn(12, 8, requires_grad=True)
    linear(x, weight).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, weight.detach().sum(0).expand(2, 8), atol=1e-5)


@pytest.mark.parametrize("rows", [1, 5])
def test_only_float32_products_avoid_torchs_linear(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    plain = F.linear
    monkeypatch.setattr(F, "linear", lambda *a: calls.append(1) or plain(*a))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    x, weight = torch.randn(8, rows).t(), torch.randn(12, 8)  # not contiguous
    with torch.no_grad():
        found = linear(x, weight)
        assert not calls
        assert torch.allclose(found, plain(x, weight), atol=1e-5)
        half = linear(x.bfloat16(), weight.bfloat16())
        assert len(calls) == 1
        assert half.dtype == torch.bfloat16
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert linear(x, weight).dtype == torch.bfloat16
        assert len(calls) == 2


@pytest.mark.parametrize("is_slow", [False, True])
@pytest.mark.parametrize("by_columns", [False, True])
def test_a_product_of_either_library_is_the_exact_one(
    by_columns: bool, is_slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_slow and not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr("llm.functional.linear.has_slow_mkl", lambda: is_slow)
    generator = torch.Generator().manual_seed(2)
    x, weight = (torch.randn(n, 64, generator=generator) for n in (40, 24))
    if by_columns:
        weight = weight.t().contiguous().t()
    exact = x.double() @ weight.double().t()
    torch.testing.assert_close(product(x, weight).double(), exact, atol=1e-5, rtol=1e-5)
    assert prefers_onednn(x) == is_slow
    assert not prefers_onednn(x.bfloat16())


def test_torch_compile_gets_torchs_own_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm.functional.linear.has_slow_mkl", lambda: True)
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        seen.append(graph.code)
        return graph

    compiled = torch.compile(product, backend=backend, fullgraph=True)
    compiled(torch.randn(40, 64), torch.randn(24, 64))
    assert len(seen) == 1
    assert "mkldnn" not in seen[0], "inductor cannot compile this operator"


@pytest.mark.parametrize("maker", ["GenuineIntel", "AuthenticAMD"])
def test_mkl_is_slow_only_on_cpus_of_other_makers(
    maker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"vendor_id : {maker}\n"
    monkeypatch.setattr("pathlib.Path.exists", lambda _: True)
    monkeypatch.setattr("pathlib.Path.read_text", lambda _, encoding: text)
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    assert has_slow_mkl.__wrapped__() == (has_both and maker != "GenuineIntel")
