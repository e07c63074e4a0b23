"""The sections that only ``run_plan.py`` has, or has more of."""

from dataclasses import dataclass, field
from typing import Any

from llm.errors import require
from llm.memory.lora import TARGETS, LoRA
from llm.memory.options import SIZES, MemoryOptions
from llm.options import option


@dataclass
class FinetuneSection:
    """``finetune``, which so far can only be planned."""

    rank: int | None = option(None, at_least=1, at_most=1024)
    targets: Any = field(default_factory=lambda: [*TARGETS])  # a name or a list of them

    @property
    def lora(self) -> LoRA | None:
        """The matrices to train instead of all weights; None: all weights are trained."""
        return None if self.rank is None else LoRA(self.rank, tuple(map(str, self._names())))

    def cross_check(self) -> None:
        """Raise :class:`llm.errors.Refused` for targets that no layer has."""
        known = ", ".join(TARGETS)
        require(self._names(), f"finetune.targets is empty: take some of {known}")
        for name in self._names():
            require(name in TARGETS, f"finetune.targets={name} must be some of {known}")

    def _names(self) -> list[Any]:
        return self.targets if isinstance(self.targets, list) else [self.targets]


@dataclass
class PlanMemory(MemoryOptions):
    """``memory/`` for ``run_plan.py``"""

    largest: str | None = None  # a size whose largest fitting value is asked for

    def cross_check(self) -> None:
        """Raise :class:`llm.errors.Refused` for a size that cannot be asked for."""
        super().cross_check()
        self.largest = self.largest and self.largest.removeprefix("model.")
        require(
            self.largest is None or self.largest in SIZES,
            f"memory.largest={self.largest} must be one of {', '.join(SIZES)}",
        )
