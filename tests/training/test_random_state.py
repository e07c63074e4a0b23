"""All random generators of the process are seeded together and restored together."""

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

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
    """One number of each generator, and a normal one where they are drawn in pairs."""
    uniform = [float(torch.rand(())), random.random(), float(np.random.rand())]
    return [*uniform, random.gauss(0, 1), float(np.random.randn())]


@pytest.mark.parametrize("pairs", [0, 1], ids=["", "half of a pair of normal numbers is left"])
def test_every_generator_continues_where_it_was(pairs: int) -> None:
    seed_everything(5)
    for _ in range(pairs):
        random.gauss(0, 1)
        np.random.randn()
    tensors = copied(random_tensors(CPU))
    drawn = [draws() for _ in range(3)]
    seed_everything(6)
    assert [draws() for _ in range(3)] != drawn
    restore_random(tensors, CPU)
    assert_same_bits(random_tensors(CPU), tensors)
    assert [draws() for _ in range(3)] == drawn


@pytest.mark.parametrize("seed", [0, 1337, 2**40])
def test_a_seed_gives_the_same_numbers_from_all_generators(seed: int) -> None:
    seed_everything(seed)
    once = draws()
    seed_everything(seed)
    assert draws() == once
    seed_everything(seed + 1)
    assert not set(draws()) & set(once)


def with_last(state: Tensor, value: int) -> Tensor:
    """The last number of a Mersenne Twister's state is its position among its 624 words."""
    return torch.cat((state[:-1], torch.tensor([value])))


MALFORMED: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("cpu", lambda state: state[:-1]),
    ("cpu", lambda state: torch.full_like(state, 255)),
    ("python", lambda state: state[1:]),
    ("python", lambda state: with_last(state, 625)),
    ("python", lambda state: -state),
    ("numpy", lambda state: state[:0]),
    ("numpy", lambda state: state[1:]),
    ("numpy", lambda state: state << 32),
    ("numpy", lambda state: with_last(state, 625)),  # numpy would read out of bounds
    ("numpy", lambda state: with_last(state, -(10**9))),
    ("gauss", lambda state: state[:3]),
    ("gauss", lambda state: torch.full_like(state, 1e300)),
]


@pytest.mark.parametrize(
    ("name", "change"), MALFORMED, ids=[f"{name}-{n}" for n, (name, _) in enumerate(MALFORMED)]
)
def test_a_malformed_state_is_refused(name: str, change: Callable[[Tensor], Tensor]) -> None:
    tensors = random_tensors(CPU)
    tensors[f"random/{name}"] = change(tensors[f"random/{name}"])
    with pytest.raises(Refused, match="the checkpoint holds no usable random state: ") as refusal:
        restore_random(tensors, CPU)
    assert "\n" not in str(refusal.value)


def test_a_missing_state_is_refused() -> None:
    with pytest.raises(Refused, match="no usable random state: 'random/gauss'"):
        restore_random({}, CPU)
