"""LoRA: training two thin matrices beside each large one, which stays as it is.

Beside a matrix W are A, of ``rank`` rows, and B: the output is x W^T + s (x A^T) B^T for a number
s, and only A and B are trained (Hu et al. 2021, arXiv:2106.09685).
"""

from dataclasses import dataclass

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")  # the matrices of a layer


@dataclass(frozen=True)
class LoRA:
    """The rank of A and B, and the matrices of each layer that have them."""

    rank: int
    targets: tuple[str, ...] = TARGETS

    def is_beside(self, matrix: str) -> bool:
        """Whether the matrix of that name (``blocks.0.attention.q``) has A and B."""
        return matrix.rpartition(".")[2] in self.targets
