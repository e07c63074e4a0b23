"""An update with one gradient in memory at a time is the same update."""

from typing import Any

import pytest
import torch

from llm.model.gpt import GPT
from llm.training import optimizer as optimizers
from llm.training.precision import Precision, to_precision
from llm.training.update import Update, UpdateInBackward

SHAPE: dict[str, Any] = {
    "n_layer": 2, "n_embed": 64, "head_size": 32, "block_size": 16, "vocab_size": 96,
}  # fmt: skip
CPU = torch.device("cpu")


def trained(
    kind: type[Update], optimizer: str = "adamw", precision: str = "fp32", grad_clip: float = 0.1,
    checkpointed: int = 0, **shape: Any,
) -> tuple[GPT, list[float], Update]:  # fmt: skip
    """A small model after four steps, the gradient norms of these, and what made the steps."""
    torch.manual_seed(1)
    numbers = Precision(precision, CPU)
    model = to_precision(GPT(**SHAPE, **shape), numbers.weights)
    model.checkpoint_every = checkpointed
    build = {"adamw": optimizers.adamw, "muon": optimizers.muon}[optimizer]
    update = kind(model, build(model, 1e-2, 0.1, [0.9, 0.95]), numbers, grad_clip)
    norms = []
    for _ in range(4):
        tokens = torch.randint(96, (4, 16))
        with numbers.autocast:
            loss = model(tokens, tokens.roll(-1, 1))
        update.backward(loss)
        norms.append(float(update.norm()))
        update.step()
        update.drop()
    return model, norms, update


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "muon", "tie_embeddings": False, "loss": "chunked"},
        {"grad_clip": 0.0},
        {"dropout": 0.2, "checkpointed": 1},
        {"dropout": 0.2, "checkpointed": 2},
        {"precision": "fp16"},
    ],
    ids=str,
)
def test_the_weights_and_norms_are_those_of_the_plain_step(options: dict[str, Any]) -> None:
    tolerance = 2e-3 if "precision" in options else 1e-5
    plain, norms, _ = trained(Update, **options)
    fused, same, _ = trained(UpdateInBackward, **options)
    assert same == pytest.approx(norms, rel=1e-4)
    assert max(norms) > 0.1, "it was clipped"
    for (name, one), other in zip(fused.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("kind", [Update, UpdateInBackward])
def test_an_overflow_shows_in_the_norm_and_a_dropped_step_changes_nothing(
    kind: type[Update],
) -> None:
    model, _, update = trained(kind, precision="fp16")
    weights = [parameter.clone() for parameter in model.parameters()]
    finite = torch.stack([p.sum() for p in model.parameters()]).sum()
    update.backward(finite + (model.norm.weight * torch.inf).sum())  # of a single weight
    assert not update.norm().isfinite()
    update.drop()
    for parameter, weight in zip(model.parameters(), weights, strict=True):
        assert torch.equal(parameter, weight) and parameter.grad is None


def test_at_most_one_gradient_exists_at_a_time() -> None:
    model, _, update = trained(UpdateInBackward)
    counts = []
    for parameter in model.parameters():
        register: Any = parameter.register_post_accumulate_grad_hook
        register(lambda _: counts.append(sum(p.grad is not None for p in model.parameters())))
    tokens = torch.zeros(1, 4, dtype=torch.long)
    update.backward(model(tokens, tokens))
    update.norm()
    update.step()
    assert len(counts) == 2 * len(update.parameters)
    assert max(counts) == 0, "our hook, which runs first, has freed it"
