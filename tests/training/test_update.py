"""A step that is made in the middle of the backward pass is the same step."""

from typing import Any

import pytest
import torch
from torch import Tensor

from llm.model.gpt import GPT
from llm.training import optimizer as optimizers
from llm.training.precision import Precision, to_precision
from llm.training.update import Update, UpdateInBackward, choose_update

SHAPE: dict[str, Any] = {
    "n_layer": 2, "n_embed": 64, "head_size": 32, "block_size": 16, "vocab_size": 96,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_embeddings": False},
    "chunked": {"loss": "chunked"},
    "chunked and untied": {"loss": "chunked", "tie_embeddings": False},
    "with dropout": {"dropout": 0.2},
}
CPU = torch.device("cpu")


def trained(
    in_backward: bool, optimizer: str = "adamw", precision: str = "fp32", grad_clip: float = 0.1,
    checkpointed: int = 0, steps: int = 4, **shape: Any,
) -> tuple[GPT, list[float], Update]:  # fmt: skip
    """A small model after some steps, the norms it met, and what made the steps."""
    torch.manual_seed(1)
    kind = Precision(precision, CPU)
    model = to_precision(GPT(**{**SHAPE, **shape}), kind.weights)
    model.checkpoint_every = checkpointed
    build = {"adamw": optimizers.adamw, "muon": optimizers.muon}[optimizer]
    update = choose_update(
        model, build(model, 1e-2, 0.1, [0.9, 0.95]), kind, grad_clip, in_backward, False
    )
    norms = []
    for _ in range(steps):
        tokens = torch.randint(96, (4, 16))
        with kind.autocast:
            loss = model(tokens, tokens.roll(-1, 1))
        update.backward(loss)
        norms.append(float(update.norm()))
        update.step()
        update.end()
    return model, norms, update


def assert_alike(one: GPT, other: GPT, tolerance: float = 1e-5) -> None:
    for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("kind", KINDS)
def test_with_clipping_the_weights_and_norms_are_those_of_the_plain_step(
    kind: str, optimizer: str
) -> None:
    plain, norms, _ = trained(False, optimizer, **KINDS[kind])
    fused, same, update = trained(True, optimizer, **KINDS[kind])
    assert isinstance(update, UpdateInBackward) and update.first
    assert same == pytest.approx(norms, rel=1e-5)
    assert max(norms) > 0.1  # it was clipped
    assert_alike(fused, plain)


@pytest.mark.parametrize("checkpointed", [1, 2])
def test_so_they_are_when_blocks_are_computed_again(checkpointed: int) -> None:
    plain, norms, _ = trained(False, dropout=0.2)
    fused, same, _ = trained(True, checkpointed=checkpointed, dropout=0.2)
    assert same == pytest.approx(norms, rel=1e-5)
    assert_alike(fused, plain)


def test_so_they_are_without_clipping_in_a_single_backward_pass() -> None:
    plain, norms, _ = trained(False, grad_clip=0.0)
    fused, same, update = trained(True, grad_clip=0.0)
    assert isinstance(update, UpdateInBackward) and not update.first
    assert same == pytest.approx(norms, rel=1e-5)
    assert_alike(fused, plain)


@pytest.mark.parametrize("grad_clip", [0.1, 0.0])
def test_in_float16_the_loss_is_scaled_and_an_overflow_leaves_the_step_out(
    grad_clip: float,
) -> None:
    plain, norms, before = trained(False, precision="fp16", grad_clip=grad_clip, steps=6)
    fused, same, update = trained(True, precision="fp16", grad_clip=grad_clip, steps=6)
    assert same == pytest.approx(norms, rel=1e-4)
    scaler = update.precision.scaler
    assert scaler.is_enabled()
    assert scaler.get_scale() == before.precision.scaler.get_scale()
    assert_alike(fused, plain, tolerance=2e-3)
    weights = [parameter.clone() for parameter in fused.parameters()]
    scale = scaler.get_scale()
    finite = torch.stack([p.float().sum() for p in fused.parameters()]).sum()
    update.backward(finite + (fused.norm.weight.float() * torch.inf).sum())  # of one alone
    norm = update.norm()
    update.step()
    update.end()
    assert not norm.isfinite()
    assert scaler.get_scale() == scale / 2
    for parameter, weight in zip(fused.parameters(), weights, strict=True):
        assert torch.equal(parameter, weight)


def test_of_all_gradients_at_most_one_is_there_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    most = []
    arrived = UpdateInBackward.arrived

    def counted(self: UpdateInBackward, parameter: Tensor) -> None:
        most.append(sum(p.grad is not None for p in self.parameters))
        arrived(self, parameter)

    monkeypatch.setattr(UpdateInBackward, "arrived", counted)
    _, _, update = trained(True)
    assert max(most) == 1
    assert len(most) == 2 * 4 * len(update.parameters)  # passes, steps
    assert all(parameter.grad is None for parameter in update.parameters)


def test_without_clipping_a_gradient_that_is_not_finite_leaves_out_its_own_weight_only() -> None:
    model, _, update = trained(True, grad_clip=0.0)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    head = model.norm.weight
    loss = sum((p.square()).sum() for p in model.parameters() if p is not head)
    root = (head - head.detach()).sum().sqrt()  # a value of 0 whose slope is infinite
    update.backward(loss + root)
    assert not update.norm().isfinite()
    update.step()
    update.end()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name]) == (parameter is head), name


def test_a_backward_pass_of_somebody_else_changes_nothing() -> None:
    model, _, _ = trained(True)
    weights = [parameter.clone() for parameter in model.parameters()]
    model(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long)).backward()
    for parameter, weight in zip(model.parameters(), weights, strict=True):
        assert torch.equal(parameter, weight)
        assert parameter.grad is not None
