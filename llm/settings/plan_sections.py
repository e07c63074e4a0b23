"""The sections that only ``run_plan.py`` has, or has more of."""

from dataclasses import dataclass, field
from typing import Any

from llm.errors import require
from llm.memory.lora import TARGETS, LoRA
from llm.memory.options import MemoryOptions


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


@dataclass
class PlanMemory(MemoryOptions):
    """``memory/`` for ``run_plan.py``"""

    largest: str | None = None  # a size whose largest fitting value is asked for

    def check(self) -> None:
        """Raise :class:`llm.errors.Refused` naming the first value that makes no sense."""
        from llm.memory.fit import SIZES

        super().check()
        self.largest = self.largest and self.largest.removeprefix("model.")
        largest, known = self.largest, ", ".join(SIZES)
        require(
            largest is None or largest in SIZES,
            f"memory.largest={largest} is no size: take one of {known}",
        )
