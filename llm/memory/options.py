"""The options ``memory/``: the budget of a run, and how to make it fit."""

import importlib.util
from dataclasses import dataclass

from llm.errors import require
from llm.options import option

ASSUMED_RESERVE_MIB = 600  # for a CUDA context and its workspaces, without a GPU to measure
FITS = ("off", "check", "auto")
# The keys that memory.largest= may name.
SIZES = ("n_layer", "n_embed", "block_size", "trainer.micro_batch_size")
EIGHT_BIT_NEEDS = (
    "optimizer.state_bits=8 needs bitsandbytes: pip install -c constraints.txt bitsandbytes"
)


def has_eight_bit() -> bool:
    """Whether the library for optimizer.state_bits=8 is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None


@dataclass
class MemoryOptions:
    """conf/memory/default.yaml explains each key."""

    budget_gib: float = option(4.0, more_than=0, less_than=2**20)
    reserve_mib: int | None = option(None, at_least=0, less_than=2**30)
    fit: str = option("off", one_of=FITS)
    enforce: bool | None = None

    @property
    def is_enforced(self) -> bool:
        """Whether a run must stay within the budget."""
        return self.fit != "off" or bool(self.enforce)

    @property
    def advice(self) -> str:
        """Advice for a run that ran out of memory."""
        if self.fit == "auto":
            return (
                "memory.fit=auto is on and was not enough: try a smaller model.block_size, or a "
                "smaller memory.budget_gib, so that it changes more"
            )
        return "try memory.fit=auto, a smaller trainer.micro_batch_size or model.block_size"

    @property
    def budget(self) -> int:
        """Bytes for the whole process."""
        return int(self.budget_gib * 2**30)

    @property
    def assumed_reserve(self) -> int:
        """Bytes for everything but tensors, unless they are measured."""
        mib = ASSUMED_RESERVE_MIB if self.reserve_mib is None else self.reserve_mib
        return mib * 2**20

    def cross_check(self) -> None:
        """Raise :class:`llm.errors.Refused` if ``reserve_mib`` takes the whole budget."""
        if self.is_enforced and self.reserve_mib is not None:
            self.check_reserve(self.reserve_mib * 2**20, self.budget)

    def limit(self, budget: int) -> str:
        """What limits a run to ``budget`` bytes: the key, or a GPU with less memory."""
        if budget < self.budget:
            return f"the GPU's {budget / 2**30:.3g} GiB"
        return f"memory.budget_gib={self.budget_gib:g}"

    def check_reserve(self, reserve: int, budget: int) -> None:
        """Raise :class:`llm.errors.Refused` if ``reserve`` bytes take the whole ``budget``."""
        more = "" if budget < self.budget else "more, or "
        require(
            reserve < budget,
            f"{self.limit(budget)} leaves nothing beside the reserve of {reserve // 2**20} MiB: "
            f"take {more}a smaller memory.reserve_mib",
        )
