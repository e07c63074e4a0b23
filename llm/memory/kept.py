"""What an optimizer of the user's own keeps for a weight, as measured from its class.

:mod:`llm.training.measure` lets the class take steps with a small network. Each dimension of what
it keeps is then told by the weight's own shape, so that it is known for a network of any size.
"""

import math
import re
from dataclasses import dataclass

NUMBERS = "numbers"  # a dimension as large as the weight has numbers


@dataclass(frozen=True)
class Entry:
    """One thing that is kept for a weight."""

    name: str
    dims: tuple[str | int, ...]  # "0", "1": as that dimension of the weight; NUMBERS; or a size
    kind: str  # a torch dtype, or int, float, bool or None of Python
    size: int  # bytes of a number
    on_cpu: bool = False  # wherever the weight is
    at_once: bool = True  # whether it is there after the first step

    def shape(self, weight: tuple[int, ...]) -> tuple[int, ...]:
        """Its shape for a weight of that shape."""
        return tuple(self._dim(dim, weight) for dim in self.dims)

    @staticmethod
    def _dim(dim: str | int, weight: tuple[int, ...]) -> int:
        if isinstance(dim, int):
            return dim
        return math.prod(weight) if dim == NUMBERS else weight[int(dim)]


@dataclass(frozen=True)
class Kept:
    """All that a class keeps, and what a step takes besides."""

    weights: tuple[tuple[str, tuple[Entry, ...]], ...]  # by the name of a weight, see alike()
    changing: tuple[str, ...] = ()  # keys of its param_groups that steps change
    of_largest: int = 0  # bytes of temporaries for each number of the largest weight
    of_all: int = 0  # likewise of all weights

    def entries(self, name: str) -> tuple[Entry, ...]:
        """What is kept for a weight of that name; of one not measured, the most there is."""
        known = dict(self.weights)
        most = max(known.values(), key=lambda entries: sum(entry.size for entry in entries))
        return known.get(alike(name), most)

    def bytes(self, name: str, shape: tuple[int, ...]) -> int:
        """Bytes that are kept for a weight."""
        return sum(math.prod(one.shape(shape)) * one.size for one in self.entries(name))

    def step_bytes(self, largest: int, total: int) -> int:
        """Temporaries of a step for weights of ``total`` numbers, the largest of ``largest``."""
        return self.of_largest * largest + self.of_all * total


def alike(name: str) -> str:
    """``blocks.3.mlp.up.weight`` -> ``blocks.mlp.up.weight``: the same weight of any layer."""
    return re.sub(r"^blocks\.\d+\.", "blocks.", name)
