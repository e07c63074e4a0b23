"""How much memory a run may take, and what happens where it would take more, as plain values."""

from dataclasses import dataclass

from llm.errors import require

ASSUMED_RESERVE_MIB = 600  # of a CUDA context and its workspaces, where there is no GPU to ask
FITS = ("off", "check", "auto")


@dataclass
class MemoryOptions:
    """``memory/``"""

    budget_gib: float = 4.0  # GiB for everything
    reserve_mib: int | None = None  # of it for what is no tensor; None: measured, or 600 assumed
    fit: str = "off"
    enforce: bool | None = None  # end a run that takes more; None: on a GPU, unless fit is off

    @property
    def matters(self) -> bool:
        """Whether a run is to keep to the budget."""
        return self.fit != "off" or bool(self.enforce)

    @property
    def budget(self) -> int:
        """Bytes for everything."""
        return int(self.budget_gib * 2**30)

    @property
    def assumed_reserve(self) -> int:
        """Bytes that are set aside for what is no tensor where nothing has been measured."""
        mib = ASSUMED_RESERVE_MIB if self.reserve_mib is None else self.reserve_mib
        return mib * 2**20

    def check(self) -> None:
        """Raise :class:`llm.errors.Refused` naming the first value that makes no sense."""
        budget, reserve = self.budget_gib, self.reserve_mib
        require(0 < budget < 2**20, f"memory.budget_gib={budget} must be more than 0 and finite")
        require(reserve is None or reserve >= 0, f"memory.reserve_mib={reserve} must be 0 or more")
        if self.matters and reserve is not None:
            self.check_reserve(reserve * 2**20)
        known = ", ".join(FITS)
        require(self.fit in FITS, f"memory.fit={self.fit} is unknown: take one of {known}")

    def check_reserve(self, reserve: int) -> None:
        """Raise :class:`llm.errors.Refused` where ``reserve`` bytes leave nothing of the budget."""
        require(
            reserve < self.budget,
            f"memory.budget_gib={self.budget_gib:g} leaves nothing beside the reserve of "
            f"{reserve // 2**20} MiB: take more, or a smaller memory.reserve_mib",
        )
