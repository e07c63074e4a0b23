"""The state of a custom optimizer, as :mod:`llm.training.measure` finds it on small networks.

Each dimension is described by the shape of its weight, so it is known for networks of any size.
"""

import math
from dataclasses import dataclass

from llm.memory.weights import without_layer

NUMBERS = "numbers"  # a dimension of as many elements as the whole weight


@dataclass(frozen=True)
class StateEntry:
    """One value in the state of a weight."""

    name: str
    dims: tuple[str | int, ...]  # "0" or "1": a dimension of the weight; NUMBERS; or a fixed size
    kind: str  # a torch dtype, or Python's int, float, bool or NoneType
    width: int  # bytes per element
    on_cpu: bool = False  # on the CPU even if the weight is on a GPU
    from_first_step: bool = True

    def shape(self, weight: tuple[int, ...]) -> tuple[int, ...]:
        """Its shape for a weight of shape ``weight``."""
        numbers = {NUMBERS: math.prod(weight)} | {str(n): size for n, size in enumerate(weight)}
        return tuple(dim if isinstance(dim, int) else numbers[dim] for dim in self.dims)


@dataclass(frozen=True)
class CustomState:
    """The whole state of a custom optimizer, and the temporaries of a step."""

    weights: dict[str, tuple[StateEntry, ...]]  # by the name of a weight, without its layer
    changing: tuple[str, ...] = ()  # keys of its param_groups that steps change
    of_largest: float = 0  # bytes of temporaries per element of the largest weight
    of_all: float = 0  # and per element of all weights together

    def entries(self, name: str) -> tuple[StateEntry, ...]:
        """The state of the weight ``name``; for an unknown weight (LoRA's), the largest state."""
        most = max(self.weights.values(), key=lambda entries: sum(one.width for one in entries))
        return self.weights.get(without_layer(name), most)

    def bytes(self, name: str, shape: tuple[int, ...]) -> int:
        """Size of the state of one weight."""
        return sum(math.prod(one.shape(shape)) * one.width for one in self.entries(name))

    def step_bytes(self, largest: int, total: int) -> int:
        """Size of a step's temporaries; ``largest`` and ``total`` count elements of weights."""
        return int(self.of_largest * largest + self.of_all * total)
