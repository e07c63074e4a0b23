"""All random generators of the process are seeded together and come back together."""

import random
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from llm.checkpoint.tensors import LONGEST_RANDOM, RANDOM
from llm.errors import Refused
from llm.training.random_state import random_tensors, restore_random, seed_everything
from tests.conftest import ROOT
from tests.training.conftest import assert_same_bits, copied

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = random_tensors(CPU)
    yield
    restore_random(before, CPU)


def draws() -> list[float]:
    """One number of each generator, and a normal one where those are drawn in pairs."""
    uniform = [float(torch.rand(())), random.random(), float(np.random.rand())]
    return [*uniform, random.gauss(0, 1), float(np.random.randn())]


def altered(name: str, place: int, value: float) -> Callable[[dict[str, Tensor]], Tensor]:
    """A state with one other value in it."""

    def inner(tensors: dict[str, Tensor]) -> Tensor:
        tensor = tensors[name].clone()
        tensor[place] = value
        return tensor

    return inner


@pytest.mark.parametrize("ahead", [0, 1], ids=["", "a normal number was drawn ahead"])
def test_every_generator_goes_on_where_it_was(ahead: int) -> None:
    seed_everything(5)
    for _ in range(ahead):  # the second of the pair waits to be given out
        random.gauss(0, 1)
        np.random.randn()
    tensors = copied(random_tensors(CPU))
    drawn = [draws() for _ in range(3)]
    seed_everything(6)
    assert [draws() for _ in range(3)] != drawn
    restore_random(tensors, CPU)
    assert_same_bits(random_tensors(CPU), tensors)
    assert [draws() for _ in range(3)] == drawn


def test_a_normal_number_drawn_ahead_after_the_checkpoint_is_forgotten() -> None:
    tensors = copied(random_tensors(CPU))
    drawn = draws()  # leaves the second of each pair
    restore_random(tensors, CPU)
    assert draws() == drawn


@pytest.mark.parametrize("seed", [0, 1337, 2**40])
def test_a_seed_gives_the_same_numbers_from_all_generators(seed: int) -> None:
    seed_everything(seed)
    once = draws()
    seed_everything(seed)
    assert draws() == once
    seed_everything(seed + 1)
    assert not set(draws()) & set(once)


def test_a_checkpoint_takes_the_states_as_they_are() -> None:
    kinds = {"U8": torch.uint8, "I64": torch.int64, "F64": torch.float64}
    for name, tensor in random_tensors(CPU).items():
        assert tensor.dtype == kinds[RANDOM[name]]
        assert tensor.dim() == 1 and len(tensor) <= LONGEST_RANDOM


def test_a_generator_that_has_no_state_stays_as_it_is() -> None:
    seed_everything(5)
    cpu = torch.get_rng_state()
    drawn = draws()
    seed_everything(5)
    restore_random({}, CPU)
    assert draws() == drawn
    restore_random({"random/cpu": cpu}, CPU)  # of a checkpoint that has no others
    assert draws()[0] == drawn[0] != draws()[0]


@pytest.mark.parametrize(
    ("name", "malformed"),
    [
        *((name, lambda _: torch.zeros(0)) for name in sorted(RANDOM) if "a/" not in name),
        ("random/cpu", lambda t: t["random/cpu"][:-1]),
        ("random/cpu", lambda t: torch.zeros_like(t["random/cpu"])),
        ("random/cpu", lambda t: torch.full_like(t["random/cpu"], 255)),
        ("random/python", lambda t: t["random/python"][1:]),
        ("random/python", altered("random/python", 0, -1)),
        ("random/python", altered("random/python", -1, 625)),
        ("random/numpy", lambda t: t["random/numpy"][1:]),
        ("random/numpy", lambda t: torch.cat((t["random/numpy"], torch.ones(1).long()))),
        ("random/numpy", lambda t: t["random/numpy"][:2]),
        ("random/numpy", altered("random/numpy", 0, 2**40)),
        ("random/numpy", altered("random/numpy", 0, -1)),
        ("random/gauss", lambda t: t["random/gauss"][:3]),
        ("random/gauss", lambda _: torch.full((4,), 1e300)),
    ],
)
def test_what_is_no_state_of_a_generator_is_refused(
    name: str, malformed: Callable[[dict[str, Tensor]], Tensor]
) -> None:
    tensors = random_tensors(CPU)
    if name in tensors:  # those of other devices are left alone here
        tensors[name] = malformed(tensors)
        with pytest.raises(Refused, match="the checkpoint holds no usable random state: ") as end:
            restore_random(tensors, CPU)
        assert "\n" not in str(end.value)


@pytest.mark.parametrize("position", [-1, 625, 10**9])
def test_a_place_outside_of_numpys_state_is_refused_and_not_read(position: int) -> None:
    tensors = random_tensors(CPU)
    tensors["random/numpy"] = altered("random/numpy", -1, position)(tensors)
    with pytest.raises(Refused, match="no usable random state"):
        restore_random(tensors, CPU)


def test_one_of_the_states_that_belong_together_is_not_enough() -> None:
    tensors = random_tensors(CPU)
    del tensors["random/numpy"]
    with pytest.raises(Refused, match="no usable random state: 'random/numpy'"):
        restore_random(tensors, CPU)
