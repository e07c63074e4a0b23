"""All random generators of the process are seeded together and come back together."""

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from llm.checkpoint.tensors import LONGEST_RANDOM, RANDOM
from llm.errors import Refused
from llm.training.random_state import random_tensors, restore_random, seed_everything
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


def with_last(state: Tensor, value: int) -> Tensor:
    """Where a Mersenne twister is in its 624 words is the last number of its state."""
    return torch.cat((state[:-1], torch.tensor([value])))


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


EMPTY = torch.zeros(0)
MALFORMED: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("cpu", lambda state: EMPTY.byte()),
    ("cpu", lambda state: state[:-1]),
    ("cpu", lambda state: torch.zeros_like(state)),
    ("cpu", lambda state: torch.full_like(state, 255)),
    ("python", lambda state: EMPTY.long()),
    ("python", lambda state: state[1:]),
    ("python", lambda state: torch.cat((state, state))),
    ("python", lambda state: with_last(state, 625)),
    ("python", lambda state: -state),
    ("numpy", lambda state: EMPTY.long()),
    ("numpy", lambda state: state[:2]),
    ("numpy", lambda state: state[1:]),
    ("numpy", lambda state: torch.cat((state, state))),
    ("numpy", lambda state: -state),
    ("numpy", lambda state: state << 32),
    # numpy would read and write where it points to.
    ("numpy", lambda state: with_last(state, 625)),
    ("numpy", lambda state: with_last(state, 10**9)),
    ("numpy", lambda state: with_last(state, -(10**9))),
    ("gauss", lambda state: EMPTY.double()),
    ("gauss", lambda state: state[:3]),
    ("gauss", lambda state: torch.cat((state, state))),
    ("gauss", lambda state: torch.full_like(state, 1e300)),
]


@pytest.mark.parametrize(
    ("whose", "malformed"),
    MALFORMED,
    ids=[f"{whose}-{n}" for n, (whose, _) in enumerate(MALFORMED)],
)
def test_what_is_no_state_of_a_generator_is_refused(
    whose: str, malformed: Callable[[Tensor], Tensor]
) -> None:
    tensors = random_tensors(CPU)
    tensors[f"random/{whose}"] = malformed(tensors[f"random/{whose}"])
    with pytest.raises(Refused, match="the checkpoint holds no usable random state: ") as refusal:
        restore_random(tensors, CPU)
    assert "\n" not in str(refusal.value)


def test_one_of_the_states_that_belong_together_is_not_enough() -> None:
    tensors = random_tensors(CPU)
    del tensors["random/numpy"]
    with pytest.raises(Refused, match="no usable random state: 'random/numpy'"):
        restore_random(tensors, CPU)
