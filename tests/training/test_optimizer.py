"""AdamW over the right parameters; it computes what torch's plain AdamW computes."""

import copy

import pytest
import torch
from torch import nn

from llm.model.gpt import GPT
from llm.training.optimizer import adamw


def test_matrices_and_embeddings_decay_norms_and_biases_do_not() -> None:
    model = GPT(
        n_layer=1, n_embed=32, vocab_size=40, bias=True, norm="layernorm", position="learned"
    )
    optimizer = adamw(model, lr=1e-3, weight_decay=0.2, betas=[0.9, 0.95])
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert set(decay) == set(model.parameters())
    for name, parameter in model.named_parameters():
        undecayed = name.endswith("bias") or "norm" in name
        assert decay[parameter] == (0.0 if undecayed else 0.2), name


def test_it_equals_torchs_plain_adamw(tiny_model: GPT) -> None:
    model, reference = tiny_model, copy.deepcopy(tiny_model)
    optimizer = adamw(model, lr=1e-2, weight_decay=0.3, betas=[0.8, 0.9])
    groups = [
        {"params": [p for p in reference.parameters() if p.dim() >= 2], "weight_decay": 0.3},
        {"params": [p for p in reference.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    plain = torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.9), fused=False, foreach=False)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
            ours.grad = torch.randn(ours.shape, generator=generator)
            theirs.grad = ours.grad.clone()
        optimizer.step()
        plain.step()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)


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
