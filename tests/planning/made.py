"""Plans of small networks, made without a configuration."""

from collections.abc import Sequence
from typing import Any

from llm.memory.options import MemoryOptions
from llm.memory.predict import Setup
from llm.model.config import GPTConfig
from llm.planning.plan import Plan

GIB, MIB = 2**30, 2**20
RESERVE = {"reserve (assumed)": 600 * MIB}


def plan(
    budget_gib: float = 4, fit: str = "off", values: dict[str, str] | None = None, **shape: Any
) -> Plan:
    """The plan of 8 sequences on a CPU, 0.79 GiB unless ``shape`` is larger."""
    model = GPTConfig(**{"n_layer": 2, "n_embed": 512, "n_head": 8} | shape).resolve(5000)
    memory = MemoryOptions(budget_gib=budget_gib, fit=fit)
    return Plan(Setup(model), RESERVE, memory.budget, memory, device="cpu", values=values or {})


def grid(layers: Sequence[int], widths: Sequence[int], **more: Any) -> list[Plan]:
    """A plan for each combination of the two sizes."""
    return [
        plan(
            n_layer=n_layer, n_embed=n_embed, **more,
            values={"model.n_layer": str(n_layer), "model.n_embed": str(n_embed)},
        )
        for n_layer in layers
        for n_embed in widths
    ]  # fmt: skip
