"""The state that a custom optimizer keeps, as measured on small networks.

:mod:`llm.training.measure` lets the optimizer update small networks. Each dimension of its state is
then described by the shape of the weight, so that it is known for a network of any size.
"""

import math
from dataclasses import dataclass

from llm.memory.weights import without_layer

NUMBERS = "numbers"  # a dimension as large as the weight has numbers


@dataclass(frozen=True)
class StateEntry:
    """One value in the state of a weight."""

    name: str
    dims: tuple[str | int, ...]  # "0", "1": that dimension of the weight; NUMBERS; or a fixed size
    kind: str  # a torch dtype, or Python's int, float, bool or NoneType
    width: int  # bytes of a number
    on_cpu: bool = False  # even if the weight is on a GPU
    from_first_step: bool = True

    def shape(self, weight: tuple[int, ...]) -> tuple[int, ...]:
        """Its shape for a weight of that shape."""
        numbers = {NUMBERS: math.prod(weight)} | {str(n): size for n, size in enumerate(weight)}
        return tuple(dim if isinstance(dim, int) else numbers[dim] for dim in self.dims)


@dataclass(frozen=True)
class CustomState:
    """All that a custom optimizer keeps, and the memory that a step takes besides."""

    weights: dict[str, tuple[StateEntry, ...]]  # by the name of a weight, without its layer
    changing: tuple[str, ...] = ()  # keys of its param_groups that steps change
    of_largest: float = 0  # bytes of temporaries for each number of the largest weight
    of_all: float = 0  # and for each number of all weights

    def entries(self, name: str) -> tuple[StateEntry, ...]:
        """The state of the weight ``name``; the largest state for a weight not measured."""
        most = max(self.weights.values(), key=lambda entries: sum(one.width for one in entries))
        return self.weights.get(without_layer(name), most)

    def bytes(self, name: str, shape: tuple[int, ...]) -> int:
        """The bytes of the state of a weight."""
        return sum(math.prod(one.shape(shape)) * one.width for one in self.entries(name))

    def step_bytes(self, largest: int, total: int) -> int:
        """Temporaries of a step for weights of ``total`` numbers, the largest of ``largest``."""
        return int(self.of_largest * largest + self.of_all * total)
