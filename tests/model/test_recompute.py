"""Recomputing in the backward pass changes only the memory."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llm.functional import low_rank, recompute
from llm.functional.linear import product
from llm.model.finetune import TARGETS, FinetuneOptions
from llm.model.gpt import GPT
from llm.model.lora import adapt

SHAPE: dict[str, Any] = {
    "n_layer": 3, "n_embed": 32, "head_size": 16, "block_size": 16, "vocab_size": 40,
}  # fmt: skip
STYLES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {"norm": "layernorm", "mlp": "gelu", "position": "learned", "bias": True},
}


def learn(every: int, dtype: torch.dtype | None = None, **options: Any) -> tuple[list[Tensor], int]:
    """Loss and all gradients with dropout, and the bytes stored for the backward pass."""
    torch.manual_seed(0)
    model = GPT(**SHAPE | options, dropout=0.2).train()
    model.checkpoint_every = every
    tokens = torch.randint(40, (4, 16), generator=torch.Generator().manual_seed(1))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=dtype, enabled=dtype is not None),
    ):
        loss = model(tokens, tokens.roll(1, 1))
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) == len(list(model.parameters()))
    return [loss.detach(), *gradients], sum(kept.values())


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_checkpointed_blocks_give_the_same_bits_with_dropout(
    style: str, dtype: torch.dtype | None
) -> None:
    wanted, most = learn(0, dtype, **STYLES[style])
    for every in (2, 1):
        found, kept = learn(every, dtype, **STYLES[style])
        assert all(map(torch.equal, found, wanted))
        assert kept < 0.8 * most
        most = kept


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("every", [0, 1])
def test_recomputed_parts_of_a_block_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, style: str, every: int
) -> None:
    wanted, most = learn(every, **STYLES[style])
    monkeypatch.setattr(recompute, "RECOMPUTED_FROM", 1)
    found, kept = learn(every, **STYLES[style])
    assert all(map(torch.equal, found, wanted))
    assert every or kept < 0.85 * most


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return func(*args, **kwargs or {})


def test_only_checkpointed_blocks_repeat_matrix_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def products(every: int) -> int:
        with Products() as products:
            learn(every)
        return products.count

    plain, again = products(0), products(1)
    monkeypatch.setattr(recompute, "RECOMPUTED_FROM", 1)
    assert products(0) == plain < again


def test_a_recomputed_mlp_with_adapters_repeats_no_product_with_a_frozen_matrix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    products = []

    def counted(*inputs: Tensor) -> Tensor:
        products.append(inputs)
        return product(*inputs)

    monkeypatch.setattr(low_rank, "product", counted)
    monkeypatch.setattr(recompute, "RECOMPUTED_FROM", 1)
    model = adapt(GPT(**SHAPE), FinetuneOptions("lora")).train()
    tokens = torch.zeros(2, 16, dtype=torch.long)
    model(tokens, tokens).backward()
    first = 3  # q, k and v of the first block read the frozen embedding, which needs no gradient
    assert len(products) == 2 * 3 * len(TARGETS) - first


def test_evaluation_recomputes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("checkpointed")

    monkeypatch.setattr(recompute, "RECOMPUTED_FROM", 1)
    monkeypatch.setattr("llm.model.gpt.checkpoint", fail)
    monkeypatch.setattr(recompute, "checkpoint", fail)
    model, tokens = GPT(**SHAPE).eval(), torch.zeros(2, 16, dtype=torch.long)
    model.checkpoint_every = 1
    with torch.no_grad():
        model(tokens, tokens, reduction="sum")
    with pytest.raises(AssertionError, match="checkpointed"):
        model(tokens, tokens)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_it_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recompute, "RECOMPUTED_FROM", 1)
    tokens = torch.randint(40, (4, 16), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    model = GPT(**SHAPE, loss="chunked").train()
    model.checkpoint_every = 2
    results = []
    for network in (model, torch.compile(model)):
        model.zero_grad()
        network(tokens, tokens.roll(1, 1)).backward()
        results.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)
