"""The weights that low-rank adaptation (LoRA) adds to a network, whose own then stay as they are.

Beside a matrix W stand A, of ``rank`` rows, and B: the output is x W^T + s (x A^T) B^T, for some
number s, and only A and B are trained (Hu et al. 2021, arXiv:2106.09685).
"""

from dataclasses import dataclass

from llm.checkpoint.shapes import Shapes, weight_shapes
from llm.errors import require
from llm.model.config import GPTConfig

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")  # the matrices of a layer


@dataclass(frozen=True)
class LoRA:
    """Which matrices of each layer have A and B beside them, and of what rank."""

    rank: int
    targets: tuple[str, ...] = TARGETS

    def check_with(self, config: GPTConfig) -> None:
        """Raise :class:`llm.errors.Refused` where nothing of the network would be trained."""
        names = ", ".join(self.targets)
        require(self.shapes(config), f"finetune.targets={names}: the network has none of these")

    def shapes(self, config: GPTConfig) -> Shapes:
        """Name and shape of every A and B; a network without a gate has none beside it."""
        found: Shapes = {}
        for name, shape in weight_shapes(config).items():
            matrix = name.removesuffix(".weight")
            if name.startswith("blocks.") and self.is_beside(matrix) and matrix != name:
                found[f"{matrix}.lora_A.weight"] = (self.rank, shape[1])
                found[f"{matrix}.lora_B.weight"] = (shape[0], self.rank)
        return found

    def is_beside(self, matrix: str) -> bool:
        """Whether the matrix of that name (``blocks.0.attention.q``) has A and B."""
        return matrix.rpartition(".")[2] in self.targets
