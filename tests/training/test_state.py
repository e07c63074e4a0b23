"""What training changes is named by parameter and comes back into any optimizer of its shape."""

import copy
import random

import numpy as np
import torch
from torch import Tensor

from llm.model.gpt import GPT
from llm.training.optimizer import adamw
from llm.training.random_state import seed_everything
from llm.training.state import Progress, restore_training, training_tensors
from tests.training.conftest import assert_same_bits, copied

GENERATORS = {"random/cpu", "random/python", "random/numpy", "random/gauss"}
CPU = torch.device("cpu")


def stepped(model: GPT, lr: float = 1e-2) -> torch.optim.AdamW:
    """An optimizer that has a state, after two steps."""
    optimizer = adamw(model, lr=lr, weight_decay=0.1, betas=[0.9, 0.95])
    tokens = torch.arange(16).view(1, 16)
    for _ in range(2):
        model(tokens, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def saved(model: GPT, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
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
