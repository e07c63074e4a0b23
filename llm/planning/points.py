"""The plans of all points of a grid."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from llm.errors import Refused
from llm.planning.plan import BUDGET, Plan, find_largest, label, largest_line
from llm.planning.reserve import planned_device, planned_limits
from llm.planning.setup import setup_of, vocabulary
from llm.settings.identity import refuse_plan_of_another_run
from llm.settings.schema import PlanSettings, TrainSettings
from llm.units import format_bytes

S = TypeVar("S", bound=TrainSettings)


@dataclass(frozen=True)
class Point(Generic[S]):
    """One combination of the values of a grid."""

    settings: S
    values: dict[str, str]  # of the keys that vary over the grid, as typed
    overrides: tuple[str, ...] = ()  # of all keys, as Hydra reads them

    @property
    def label(self) -> str:
        """``model.n_layer=4 model.n_embed=384``"""
        return label(self.values)


def plan_points(points: Sequence[Point[PlanSettings]]) -> list[Plan]:
    """The plans of the points; points that differ only in keys without effect on memory, such as
    ``seed``, share one.
    """
    plans = []
    for point in points:
        try:
            plans.append(_plan(point.settings))
        except Refused as refusal:
            which = f"job {point.label} cannot run: " if point.values else ""
            raise Refused(f"{which}{refusal}") from None
    keys = [key for key in points[0].values if _changes_memory(key, points, plans)]
    distinct: dict[str, Plan] = {}
    for point, plan in zip(points, plans, strict=True):
        values = {key: point.values[key] for key in keys}
        if label(values) in distinct:
            continue
        plan = replace(plan, values=values)
        if key := point.settings.memory.largest:
            plan = replace(plan, largest=find_largest(plan, key))
        distinct[plan.label] = plan
    return list(distinct.values())


def _plan(settings: PlanSettings) -> Plan:
    device = settings.trainer.device
    setup = setup_of(settings, planned_device(device))
    if settings.resume is not None:
        refuse_plan_of_another_run(settings, vocabulary(settings) or 0)
    reserve, budget = planned_limits(settings.memory, device)
    return Plan(
        setup, reserve, budget, settings.memory,
        is_resumed=settings.resume is not None, device=device,
    )  # fmt: skip


def _changes_memory(
    key: str, points: Sequence[Point[PlanSettings]], plans: Sequence[Plan]
) -> bool:  # fmt: skip
    """Whether two points that differ only in ``key`` have different plans.

    Also True if no two points differ only in ``key``, because other keys advance with it.
    """
    first: dict[str, Plan] = {}
    for point, plan in zip(points, plans, strict=True):
        others = label({name: value for name, value in point.values.items() if name != key})
        if first.setdefault(others, plan) != plan:
            return True
    return len(first) == len(points)


def refusal(plans: Sequence[Plan], points: int) -> Refused | None:
    """The error with which ``run_plan.py`` refuses; None if it does not.

    It refuses a single run that ``run_train.py`` would refuse, and a grid in which nothing fits.
    """
    asked = plans[0].largest
    if asked and all(plan.largest and plan.largest.value is None for plan in plans):
        where = f"at any of {points:,} points" if points > 1 else plans[0].limit
        return Refused(f"no {asked.key} fits {where}, not even the smallest", key=BUDGET)
    if any(plan.started for plan in plans) or (points == 1 and plans[0].memory.fit == "off"):
        return None
    if points == 1:
        return plans[0].refusal
    least = min(plans, key=lambda plan: plan.prediction.total - plan.budget)
    peak, which = least.prediction, f"the smallest, {least.label}," if least.label else "each"
    return Refused(
        f"none of {points:,} points fits {least.limit}: {which} takes {format_bytes(peak.total)}; "
        f"the largest part is {largest_line(peak.lines)}: take a smaller model or batch",
        key=BUDGET,
    )
