"""What a plan of a fine-tune is told."""

from dataclasses import dataclass, field
from typing import Any

from llm.memory.lora import TARGETS, LoRA


@dataclass
class FinetuneSection:
    """``finetune``, which so far can only be planned."""

    rank: int | None = None
    targets: Any = field(default_factory=lambda: [*TARGETS])  # a name or a list of them

    @property
    def lora(self) -> LoRA | None:
        """What is trained instead of the network's own weights; None: these are."""
        return None if self.rank is None else self._with_rank(self.rank)

    def check(self) -> None:
        """Raise :class:`llm.errors.Refused` naming the first value that makes no sense."""
        self._with_rank(1 if self.rank is None else self.rank).check()

    def _with_rank(self, rank: int) -> LoRA:
        names = self.targets if isinstance(self.targets, list) else [self.targets]
        return LoRA(rank, tuple(map(str, names)))
