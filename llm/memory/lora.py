"""LoRA (Hu et al. 2021, arXiv:2106.09685): each target matrix W gets two thin matrices A and B.

The output is x W^T + s (x A^T) B^T. A has ``rank`` rows, s is a constant; only A and B are trained.
"""

from dataclasses import dataclass

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")  # the matrices of a layer


@dataclass(frozen=True)
class LoRA:
    """The rank of A and B, and the target matrices of each layer."""

    rank: int
    targets: tuple[str, ...] = TARGETS

    def adapts(self, matrix: str) -> bool:
        """Whether ``matrix`` (such as ``blocks.0.attention.q``) is a target."""
        return matrix.rpartition(".")[2] in self.targets
