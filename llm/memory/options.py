"""How much memory a run may take, and what happens where it would take more, as plain values."""

import importlib.util
from dataclasses import dataclass

from llm.errors import require
from llm.options import option

ASSUMED_RESERVE_MIB = 600  # of a CUDA context and its workspaces, where there is no GPU to ask
FITS = ("off", "check", "auto")
# Keys whose largest fitting value can be asked for: memory.largest=...
SIZES = ("n_layer", "n_embed", "block_size", "trainer.micro_batch_size")
EIGHT_BIT_NEEDS = (
    "optimizer.state_bits=8 needs bitsandbytes: pip install -c constraints.txt bitsandbytes"
)


def has_eight_bit() -> bool:
    """Whether the library for optimizer.state_bits=8 is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None


@dataclass
class MemoryOptions:
    """``memory/``"""

    budget_gib: float = option(4.0, more_than=0, less_than=2**20)  # GiB for everything
    # MiB of it for everything but tensors; None: measured, or 600 assumed
    reserve_mib: int | None = option(None, at_least=0, less_than=2**30)
    fit: str = option("off", one_of=FITS)
    enforce: bool | None = None  # end a run that takes more; None: on a GPU, unless fit is off

    @property
    def matters(self) -> bool:
        """Whether a run is to keep to the budget."""
        return self.fit != "off" or bool(self.enforce)

    @property
    def no_room(self) -> str:
        """What to do where memory was not enough after all."""
        if self.fit == "auto":
            return (
                "memory.fit=auto is on and was not enough: try a smaller memory.budget_gib, for "
                "which it changes more, or a smaller model.block_size"
            )
        return "try memory.fit=auto, a smaller trainer.micro_batch_size or model.block_size"

    @property
    def budget(self) -> int:
        """Bytes for everything."""
        return int(self.budget_gib * 2**30)

    @property
    def assumed_reserve(self) -> int:
        """Bytes that are set aside for what is no tensor where nothing has been measured."""
        mib = ASSUMED_RESERVE_MIB if self.reserve_mib is None else self.reserve_mib
        return mib * 2**20

    def cross_check(self) -> None:
        """Raise :class:`llm.errors.Refused` where the reserve leaves nothing of the budget."""
        if self.matters and self.reserve_mib is not None:
            self.check_reserve(self.reserve_mib * 2**20, self.budget)

    def limit(self, budget: int) -> str:
        """What sets the ``budget`` (bytes) of a run: the key, or a GPU that has less."""
        if budget < self.budget:
            return f"the GPU's {budget / 2**30:.3g} GiB"
        return f"memory.budget_gib={self.budget_gib:g}"

    def check_reserve(self, reserve: int, budget: int) -> None:
        """Raise :class:`llm.errors.Refused` where ``reserve`` bytes leave nothing of ``budget``."""
        more = "" if budget < self.budget else "more, or "
        require(
            reserve < budget,
            f"{self.limit(budget)} leaves nothing beside the reserve of {reserve // 2**20} MiB: "
            f"take {more}a smaller memory.reserve_mib",
        )
