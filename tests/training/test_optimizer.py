"""AdamW over the right parameters; it computes what torch's plain AdamW computes."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from llm.model.gpt import GPT
from llm.training.optimizer import Optimizer, adamw, muon
from llm.training.precision import to_precision

OPTIONS: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.3, "betas": [0.8, 0.9]}


@pytest.mark.parametrize("build", [adamw, muon])
def test_matrices_and_embeddings_decay_norms_biases_and_scalars_do_not(build: Any) -> None:
    model = GPT(
        n_layer=2, n_embed=32, vocab_size=40, bias=True, norm="layernorm", position="learned",
        smear=3, residual_scalars=True, tie_embeddings=False,
    )  # fmt: skip
    optimizer = build(model, lr=1e-3, weight_decay=0.2, betas=[0.9, 0.95])
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert set(decay) == set(model.parameters())
    for name, parameter in model.named_parameters():
        undecayed = name.endswith(("bias", "mix", "smear")) or "norm" in name
        assert decay[parameter] == (0.0 if undecayed else 0.2), name


def set_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


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
        for name in ("step", "exp_avg", "exp_avg_sq"):
            found, wanted = optimizer.state[ours][name], theirs.state[other][name]
            assert torch.allclose(found, wanted, rtol=0, atol=0 if fused else 1e-6)


def test_every_group_knows_the_rate_that_the_schedule_scales(tiny_model: GPT) -> None:
    optimizer = adamw(tiny_model, lr=3e-4, weight_decay=0.1, betas=[0.9, 0.95])
    assert [group["base_lr"] for group in optimizer.param_groups] == [3e-4, 3e-4]
    assert [group["betas"] for group in optimizer.param_groups] == [(0.9, 0.95)] * 2


def test_frozen_parameters_are_left_out(tiny_model: GPT) -> None:
    tiny_model.embed.weight.requires_grad_(False)
    optimizer = adamw(tiny_model, lr=1e-3, weight_decay=0.1, betas=[0.9, 0.95])
    held = {p for group in optimizer.param_groups for p in group["params"]}
    assert held == set(tiny_model.parameters()) - {tiny_model.embed.weight}


@pytest.mark.parametrize("model", [nn.LayerNorm(4), nn.Linear(4, 4, bias=False)], ids=repr)
def test_a_kind_of_parameter_may_be_absent(model: nn.Module) -> None:
    optimizer = adamw(model, lr=1e-3, weight_decay=0.1, betas=[0.9, 0.95])
    assert len(optimizer.param_groups) == 1


def network() -> GPT:
    """One whose embedding is large enough for 8 bits."""
    torch.manual_seed(0)
    return GPT(n_layer=2, n_embed=64, head_size=32, vocab_size=70)


KINDS = [
    (adamw, 32, torch.float32), (adamw, 8, torch.float32), (adamw, 32, torch.bfloat16),
    (adamw, 8, torch.bfloat16), (muon, 32, torch.float32), (muon, 8, torch.float32),
    (muon, 8, torch.bfloat16),
]  # fmt: skip
of_each_kind = pytest.mark.parametrize(("build", "bits", "dtype"), KINDS)


@of_each_kind
def test_one_parameter_after_the_other_is_what_a_step_does(
    build: Any, bits: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The nearest instead of a random one, which would be another in another order.
    monkeypatch.setattr("llm.training.rounding.round_at_random_", lambda values: values)
    sides = []
    for _ in range(2):
        model = network()
        to_precision(model, dtype)
        sides.append((model, build(model, **OPTIONS, state_bits=bits)))
    (whole, of_whole), (single, of_single) = sides
    for seed in range(3):
        set_gradients(whole, seed)
        set_gradients(single, seed)
        of_whole.step()
        for parameter in reversed(list(single.parameters())):
            of_single.update([parameter])
            parameter.grad = None
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5  # of Muon: a product with other shapes
    for one, other in zip(whole.parameters(), single.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=0 if build is adamw else tolerance)


def test_an_update_changes_the_named_parameters_only_and_counts_their_steps(
    tiny_model: GPT,
) -> None:
    optimizer = adamw(tiny_model, **OPTIONS)
    set_gradients(tiny_model, 0)
    before = copy.deepcopy(tiny_model)
    named = [tiny_model.embed.weight, tiny_model.blocks[1].mlp.up.weight]
    optimizer.update(named)
    optimizer.update(named[:1])
    for (name, new), old in zip(tiny_model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(new, old) is not any(new is p for p in named), name
    optimizer.step()
    counts = {int(optimizer.kept(p)["step"]) for p in tiny_model.blocks[0].parameters()}
    assert (counts, [int(optimizer.kept(p)["step"]) for p in named]) == ({1}, [3, 2])


@of_each_kind
def test_its_state_comes_back_in_its_own_type_bit_for_bit(
    build: Any, bits: int, dtype: torch.dtype
) -> None:
    model = network()
    to_precision(model, dtype)
    optimizer: Optimizer = build(model, **OPTIONS, state_bits=bits)
    for seed in range(2):
        set_gradients(model, seed)
        optimizer.step()
    other = copy.deepcopy(model)
    continued: Optimizer = build(other, **OPTIONS, state_bits=bits)
    continued.restore(copy.deepcopy([optimizer.kept(p) for p in optimizer.group_of]))
    for one, its in zip(model.parameters(), other.parameters(), strict=True):
        kept, found = optimizer.kept(one), continued.kept(its)
        assert set(kept) == set(found) == set(continued.layout(its))
        for name, tensor in kept.items():
            assert tensor.dtype == found[name].dtype
            assert torch.equal(tensor, found[name]), name
    for each, of_each in ((model, optimizer), (other, continued)):
        torch.manual_seed(5)
        set_gradients(each, 2)
        of_each.step()
    for one, its in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, its)
