"""What training changes is named by parameter and comes back into any optimizer of its shape."""

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llm.errors import Refused
from llm.model.gpt import GPT
from llm.training.optimizer import Optimizer, adamw, muon
from llm.training.precision import to_precision
from llm.training.random_state import seed_everything
from llm.training.state import Progress, restore_training, training_bytes, training_tensors
from tests.training.conftest import assert_same_bits, copied

GENERATORS = {"random/cpu", "random/python", "random/numpy", "random/gauss"}
CPU = torch.device("cpu")


def stepped(model: GPT, lr: float = 1e-2) -> Optimizer:
    """An optimizer that has a state, after two steps."""
    optimizer = adamw(model, lr=lr, weight_decay=0.1, betas=[0.9, 0.95])
    tokens = torch.arange(16).view(1, 16)
    for _ in range(2):
        model(tokens, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def saved(model: GPT, optimizer: Optimizer) -> dict[str, Tensor]:
    return copied(training_tensors(model, optimizer, CPU))


def test_the_state_is_named_by_parameter_and_holds_the_random_state(tiny_model: GPT) -> None:
    tensors = training_tensors(tiny_model, stepped(tiny_model), CPU)
    kinds = ("step", "exp_avg", "exp_avg_sq")
    names = [name for name, _ in tiny_model.named_parameters()]
    assert set(tensors) == GENERATORS | {f"optimizer/{n}/{k}" for n in names for k in kinds}
    assert tensors["optimizer/norm.weight/step"].item() == 2
    assert tensors["optimizer/embed.weight/exp_avg"].shape == tiny_model.embed.weight.shape


def test_an_optimizer_that_has_not_stepped_has_only_the_random_state(tiny_model: GPT) -> None:
    optimizer = adamw(tiny_model, lr=1e-2, weight_decay=0.1, betas=[0.9, 0.95])
    assert set(training_tensors(tiny_model, optimizer, CPU)) == GENERATORS


def test_it_comes_back_into_another_optimizer_and_goes_on_the_same(tiny_model: GPT) -> None:
    optimizer = stepped(tiny_model)
    tensors = saved(tiny_model, optimizer)
    other = copy.deepcopy(tiny_model)
    restored = stepped(other, lr=0.5)
    other.load_state_dict(tiny_model.state_dict())
    restore_training(tensors, other, restored, CPU)
    assert_same_bits(saved(other, restored), tensors)
    for group in restored.param_groups:
        assert (group["lr"], group["base_lr"]) == (0.5, 0.5)  # hyperparameters are its own
        group["lr"] = 1e-2
    tokens = torch.arange(16).view(1, 16)
    for model, of_model in ((tiny_model, optimizer), (other, restored)):
        model(tokens, tokens).backward()
        of_model.step()
    assert_same_bits(other.state_dict(), tiny_model.state_dict())


def test_the_random_state_comes_back(tiny_model: GPT) -> None:
    optimizer = stepped(tiny_model)
    tensors = saved(tiny_model, optimizer)
    drawn = torch.rand(5), random.random(), np.random.rand()
    seed_everything(99)
    restore_training(tensors, tiny_model, optimizer, CPU)
    assert torch.equal(torch.rand(5), drawn[0])
    assert (random.random(), np.random.rand()) == drawn[1:]


def test_the_seconds_of_the_loop_are_the_sum_of_its_parts() -> None:
    progress = Progress(train_seconds=5.0, eval_seconds=3.0, checkpoint_seconds=1.5)
    assert progress.seconds == 9.5


OPTIONS: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "betas": [0.9, 0.95]}
of_each_kind = pytest.mark.parametrize(
    ("build", "bits", "dtype"),
    [
        (build, bits, dtype)
        for build in (adamw, muon)
        for bits in (32, 8)
        for dtype in (torch.float32, torch.bfloat16)
    ],
)


def trained(build: Any, bits: int, dtype: torch.dtype, seed: int = 0) -> tuple[GPT, Optimizer]:
    """A network with parameters of every kind, after two steps."""
    torch.manual_seed(seed)
    model = GPT(
        n_layer=1, n_embed=64, head_size=32, block_size=16, vocab_size=70, bias=True, smear=2,
        tie_embeddings=False, residual_scalars=True,
    )  # fmt: skip
    to_precision(model, dtype)
    optimizer = build(model, **OPTIONS, state_bits=bits)
    for _ in range(2):
        step(model, optimizer)
    return model, optimizer


def step(model: GPT, optimizer: Optimizer) -> None:
    tokens = torch.arange(16).view(1, 16)
    model(tokens, tokens).backward()
    optimizer.step()
    optimizer.zero_grad()


@of_each_kind
def test_the_bytes_of_the_state_are_told_before_the_first_step(
    build: Any, bits: int, dtype: torch.dtype
) -> None:
    model, optimizer = trained(build, bits, dtype)
    told = training_bytes(build(copy.deepcopy(model), **OPTIONS, state_bits=bits))
    tensors = saved(model, optimizer)
    assert told == sum(t.nbytes for name, t in tensors.items() if name not in GENERATORS)
    assert told == training_bytes(optimizer)


@of_each_kind
def test_each_kind_of_state_comes_back_and_goes_on_to_the_same_bits(
    build: Any, bits: int, dtype: torch.dtype
) -> None:
    model, optimizer = trained(build, bits, dtype)
    tensors, weights = saved(model, optimizer), copied(model.state_dict())
    step(model, optimizer)
    other, restored = trained(build, bits, dtype, seed=9)
    other.load_state_dict(weights)
    restore_training(tensors, other, restored, CPU)
    found = saved(other, restored)
    assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in tensors.items()}
    assert_same_bits(found, tensors)
    step(other, restored)
    assert_same_bits(other.state_dict(), model.state_dict())
    assert_same_bits(saved(other, restored), saved(model, optimizer))


def test_the_state_of_torchs_adamw_as_earlier_versions_saved_it_still_loads(
    tiny_model: GPT,
) -> None:
    theirs = torch.optim.AdamW(tiny_model.parameters(), lr=1e-2, weight_decay=0.0, fused=True)
    names = {parameter: name for name, parameter in tiny_model.named_parameters()}
    tokens = torch.arange(16).view(1, 16)
    for _ in range(2):
        tiny_model(tokens, tokens).backward()
        theirs.step()
        theirs.zero_grad()
    tensors = saved(tiny_model, adamw(tiny_model, **OPTIONS)) | {
        f"optimizer/{names[p]}/{key}": value.clone()
        for p, state in theirs.state.items()
        for key, value in state.items()
    }
    other = copy.deepcopy(tiny_model)
    restored = adamw(other, lr=1e-2, weight_decay=0.0, betas=[0.9, 0.999])
    restore_training(tensors, other, restored, CPU)
    tiny_model(tokens, tokens).backward()
    theirs.step()
    other(tokens, tokens).backward()
    restored.step()
    assert_same_bits(other.state_dict(), tiny_model.state_dict())


EMBED = "optimizer/embed.weight"
Change = Callable[[dict[str, Tensor]], object]
UNUSABLE = "the checkpoint holds no usable state of this optimizer"
# What is done to the state of AdamW in 8 bits.
WRONG: dict[str, Change] = {
    "a mean without its scale": lambda t: t.pop(f"{EMBED}/exp_avg_scale"),
    "a scale without its mean": lambda t: t.pop(f"{EMBED}/exp_avg_sq"),
    "no count": lambda t: t.pop(f"{EMBED}/step"),
    "nothing of one parameter": lambda t: [t.pop(n) for n in list(t) if n.startswith(EMBED)],
    "one more": lambda t: t.update({f"{EMBED}/momentum": torch.zeros(70, 64)}),
    "a mean in 32 bits": lambda t: t.update({f"{EMBED}/exp_avg": torch.zeros(70, 64)}),
    "another shape": lambda t: t.update(
        {f"{EMBED}/exp_avg": torch.zeros((64, 70), dtype=torch.uint8)}
    ),
    "too few scales": lambda t: t.update({f"{EMBED}/exp_avg_scale": torch.zeros(1)}),
    "a parameter that is not trained": lambda t: t.update({"optimizer/x/step": torch.tensor(1.0)}),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=list(WRONG))
def test_a_part_of_a_state_is_refused_and_changes_nothing(change: Change) -> None:
    model, optimizer = trained(adamw, 8, torch.float32)
    tensors = saved(model, optimizer)
    before = dict(tensors)
    change(tensors)
    with pytest.raises(Refused, match=UNUSABLE):
        restore_training(tensors, model, optimizer, CPU)
    assert_same_bits(saved(model, optimizer), before)


@pytest.mark.parametrize(("own", "other"), [(8, 32), (32, 8)])
@pytest.mark.parametrize("build", [adamw, muon])
def test_state_of_other_bits_is_refused_by_name(build: Any, own: int, other: int) -> None:
    model, optimizer = trained(build, other, torch.float32)
    tensors = saved(model, optimizer)
    with pytest.raises(Refused) as refusal:
        restore_training(tensors, model, build(model, **OPTIONS, state_bits=own), CPU)
    assert str(refusal.value) == (
        f"optimizer.state_bits={own}, and the checkpoint's state has {other} bits: "
        f"set optimizer.state_bits={other}"
    )


def test_the_state_of_another_optimizer_is_refused() -> None:
    model, optimizer = trained(adamw, 32, torch.float32)
    with pytest.raises(Refused, match=UNUSABLE):
        restore_training(saved(model, optimizer), model, muon(model, **OPTIONS), CPU)
