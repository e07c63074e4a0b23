"""AdamW over the right parameters, as torch computes it; its state is saved by parameter name."""

import copy
from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llm.errors import Refused
from llm.model.gpt import GPT
from llm.training.optimizer import UNUSABLE, Optimizer, adamw, layout_bytes, muon
from llm.training.precision import to_precision
from tests.training.conftest import assert_same_bits, copied

OPTIONS: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.3, "betas": [0.8, 0.9]}
KINDS = [
    (build, bits, dtype)
    for build in (adamw, muon)
    for bits in (32, 8)
    for dtype in (torch.float32, torch.bfloat16)
]
of_each_kind = pytest.mark.parametrize(("build", "bits", "dtype"), KINDS)


def network(dtype: torch.dtype = torch.float32, seed: int = 0) -> GPT:
    """A network with parameters of every kind, some large enough for 8 bits."""
    torch.manual_seed(seed)
    model = GPT(
        n_layer=2, n_embed=64, head_size=32, block_size=16, vocab_size=70, bias=True,
        norm="layernorm", position="learned", smear=3, residual_scalars=True, tie_embeddings=False,
    )  # fmt: skip
    return to_precision(model, dtype)


def set_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def trained(
    build: Any, bits: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[GPT, Optimizer]:
    """A network and its optimizer after two steps."""
    model = network(dtype, seed)
    optimizer = build(model, **OPTIONS, state_bits=bits)
    for step in range(2):
        set_gradients(model, seed + step)
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("build", [adamw, muon])
def test_matrices_and_embeddings_decay_norms_biases_and_scalars_do_not(build: Any) -> None:
    model = network()
    optimizer = build(model, **OPTIONS)
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert set(decay) == set(model.parameters())
    for name, parameter in model.named_parameters():
        undecayed = name.endswith(("bias", "mix", "smear")) or "norm" in name
        assert decay[parameter] == (0.0 if undecayed else 0.3), name


@pytest.mark.parametrize("fused", [True, False])
def test_it_equals_torchs_adamw_and_its_fused_one_in_every_bit(
    tiny_model: GPT, fused: bool
) -> None:
    model, reference = tiny_model, copy.deepcopy(tiny_model)
    optimizer = adamw(model, **OPTIONS)
    groups = [
        {"params": [p for p in reference.parameters() if p.dim() >= 2], "weight_decay": 0.3},
        {"params": [p for p in reference.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    theirs = torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.9), fused=fused, foreach=False)
    for seed in range(5):
        for each, of_each in ((model, optimizer), (reference, theirs)):
            set_gradients(each, seed)
            of_each.step()
    for ours, other in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours, other, rtol=0, atol=0 if fused else 1e-6)


def test_frozen_and_absent_kinds_of_parameters_have_no_group(tiny_model: GPT) -> None:
    tiny_model.embed.weight.requires_grad_(False)
    optimizer = adamw(tiny_model, **OPTIONS)
    assert set(optimizer.names) == set(tiny_model.parameters()) - {tiny_model.embed.weight}
    for model in (nn.LayerNorm(4), nn.Linear(4, 4, bias=False)):
        assert len(adamw(model, **OPTIONS).param_groups) == 1


@of_each_kind
def test_updating_one_parameter_after_another_is_a_step(
    build: Any, bits: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # To the nearest: random rounding depends on the order.
    monkeypatch.setattr("llm.training.rounding.round_at_random_", lambda values: values)
    whole, single = network(dtype), network(dtype)
    of_whole, of_single = (build(model, **OPTIONS, state_bits=bits) for model in (whole, single))
    for seed in range(3):
        set_gradients(whole, seed)
        set_gradients(single, seed)
        of_whole.step()
        for parameter in reversed(list(single.parameters())):
            of_single.update([parameter])
            parameter.grad = None
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5  # Muon multiplies stacks of other sizes
    for one, other in zip(whole.parameters(), single.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=0 if build is adamw else tolerance)


@of_each_kind
def test_a_restored_optimizer_continues_to_the_same_bits(
    build: Any, bits: int, dtype: torch.dtype
) -> None:
    model, optimizer = trained(build, bits, dtype)
    saved, weights = copied(optimizer.state_dict()), copied(model.state_dict())
    known_before = build(network(dtype), **OPTIONS, state_bits=bits).full_layout()
    assert known_before == {name: (tuple(t.shape), t.dtype) for name, t in saved.items()}
    assert layout_bytes(known_before) == sum(tensor.nbytes for tensor in saved.values())
    other, restored = trained(build, bits, dtype, seed=9)
    other.load_state_dict(weights)
    restored.load_state_dict(saved)
    for each, its in ((model, optimizer), (other, restored)):
        torch.manual_seed(5)
        set_gradients(each, 2)
        its.step()
    assert_same_bits(other.state_dict(), model.state_dict())
    assert_same_bits(restored.state_dict(), optimizer.state_dict())


EMBED = "optimizer/embed.weight"
# What is wrong with a state of AdamW in 8 bits.
WRONG: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "a mean without its scale": lambda t: t.pop(f"{EMBED}/exp_avg_scale"),
    "no count": lambda t: t.pop(f"{EMBED}/step"),
    "nothing of one parameter": lambda t: [t.pop(n) for n in list(t) if n.startswith(EMBED)],
    "one more": lambda t: t.update({f"{EMBED}/momentum": torch.zeros(70, 64)}),
    "a mean in 32 bits": lambda t: t.update({f"{EMBED}/exp_avg": torch.zeros(70, 64)}),
    "another shape": lambda t: t.update(
        {f"{EMBED}/exp_avg": torch.zeros((64, 70), dtype=torch.uint8)}
    ),
    "an unknown parameter": lambda t: t.update({"optimizer/x/step": torch.tensor(1.0)}),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=list(WRONG))
def test_a_wrong_state_is_refused_and_changes_nothing(
    change: Callable[[dict[str, Tensor]], object],
) -> None:
    _, optimizer = trained(adamw, 8)
    before, state = copied(optimizer.state_dict()), optimizer.state_dict()
    change(state)
    with pytest.raises(Refused, match=UNUSABLE):
        optimizer.load_state_dict(state)
    assert_same_bits(optimizer.state_dict(), before)


def test_the_state_of_another_optimizer_is_refused() -> None:
    kinds = [(adamw, 32), (adamw, 8), (muon, 32)]
    for (build, bits), (own_build, own_bits) in permutations(kinds, 2):
        _, optimizer = trained(build, bits)
        other = own_build(network(), **OPTIONS, state_bits=own_bits)
        with pytest.raises(Refused, match=UNUSABLE):
            other.load_state_dict(optimizer.state_dict())
