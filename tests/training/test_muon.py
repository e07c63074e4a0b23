"""Muon orthogonalises the matrices of the layers and leaves the rest to AdamW."""

import pytest
import torch

from llm.model.gpt import GPT
from llm.training import muon as rule
from llm.training.muon import orthogonalise, split
from llm.training.optimizer import Optimizer, muon

FAST = {"qk_norm": True, "tie_embeddings": False, "residual_scalars": True, "smear": 2}


def network(**options: object) -> GPT:
    torch.manual_seed(3)
    shape = {"n_layer": 2, "n_embed": 32, "head_size": 16, "block_size": 16, "vocab_size": 40}
    return GPT(**shape | FAST | options)


def with_gradients(model: GPT, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def fast_muon(model: GPT, **options: object) -> Optimizer:
    settings = {"lr": 0.1, "weight_decay": 0.0, "betas": [0.8, 0.95]} | options
    return muon(model, **settings)


def step_both(*sides: tuple[GPT, Optimizer]) -> None:
    """Three steps on each side, from the same gradients."""
    for seed in range(3):
        for model, optimizer in sides:
            with_gradients(model, seed)
            optimizer.step()


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 16, 64), (2, 64, 16)], ids=str)
def test_all_singular_values_come_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    singular = torch.linalg.svdvals(orthogonalise(matrices, 5))
    assert singular.min() > 0.3
    assert singular.max() < 1.3


def test_matrices_step_as_torchs_own_muon_does_up_to_its_bfloat16() -> None:
    ours, theirs = network(), network()
    matrices = [n for n, p in ours.named_parameters() if n.startswith("blocks") and p.dim() == 2]
    by_name = dict(theirs.named_parameters())
    reference = torch.optim.Muon(
        [by_name[name] for name in matrices], lr=0.1, weight_decay=0.1, adjust_lr_fn="original"
    )
    optimizer = fast_muon(ours, momentum=0.95, weight_decay=0.1)
    before = {name: parameter.detach().clone() for name, parameter in ours.named_parameters()}
    step_both((ours, optimizer), (theirs, reference))
    for name in matrices:
        step = dict(ours.named_parameters())[name].detach() - before[name]
        wanted = by_name[name].detach() - before[name]
        assert torch.cosine_similarity(step.flatten(), wanted.flatten(), dim=0) > 0.995, name
        assert step.norm() == pytest.approx(float(wanted.norm()), rel=0.05), name


def test_stacked_matrices_step_as_each_would_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for stacked in (1, 5000, 2**22):  # numbers
        monkeypatch.setattr(rule, "STACKED", stacked)
        model = network()
        step_both((model, fast_muon(model, weight_decay=0.1)))
        results.append(torch.cat([matrix.flatten() for matrix in split(model)[0]]))
    for found in results[1:]:
        assert torch.allclose(found, results[0], rtol=0, atol=1e-5)


def test_everything_else_steps_as_torchs_adamw_does() -> None:
    ours, theirs = network(), network()
    optimizer = fast_muon(ours, weight_decay=0.1)
    rates = {"embed.weight": 0.05, "head.weight": 0.1 * 64 / 32, "smear": 0.15, "norm.weight": 0.15,
             "blocks.0.mix": 0.15}  # fmt: skip
    by_name = dict(theirs.named_parameters())
    decays = [0.1 if "weight" in n and "norm" not in n else 0.0 for n in rates]
    reference = torch.optim.AdamW(
        [{"params": [by_name[name]], "lr": rate, "weight_decay": decay}
         for (name, rate), decay in zip(rates.items(), decays, strict=True)],
        betas=(0.8, 0.95), eps=1e-10,
    )  # fmt: skip
    step_both((ours, optimizer), (theirs, reference))
    for name in rates:
        found = dict(ours.named_parameters())[name]
        assert torch.allclose(found, by_name[name], atol=1e-6), name


def test_every_parameter_is_in_exactly_one_group() -> None:
    model = network(bias=True)
    optimizer = fast_muon(model)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held)) == len(list(model.parameters()))
    assert optimizer.param_groups[0]["base_lr"] == 0.1  # what the log shows as lr
    for group in optimizer.param_groups:
        assert group["lr"] == group["base_lr"]
        assert len({p.shape for p in group["params"]}) == 1 or group["rule"] == "adamw"
