"""From the points of a grid to what each of them takes, and whether it fits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from llm.errors import Refused, require
from llm.memory.fit import fit, following, largest, with_size
from llm.memory.options import has_eight_bit
from llm.memory.predict import Lines, Setup, predict
from llm.memory.weights import n_parameters, n_trained
from llm.planning.plan import Largest, Plan
from llm.planning.probe import ask_ahead
from llm.planning.setup import limits_of, planned_device, setup_of, vocabulary
from llm.settings.identity import refuse_plan_of_another_run
from llm.settings.schema import PlanSettings, TrainSettings

S = TypeVar("S", bound=TrainSettings)


@dataclass(frozen=True)
class Point(Generic[S]):
    """The settings of one combination, and what gives them."""

    settings: S
    values: dict[str, str]  # of the keys that vary over the grid, as one would type them
    overrides: tuple[str, ...] = ()  # of all keys, as Hydra reads them

    @property
    def label(self) -> str:
        """``model.n_layer=4 model.n_embed=384``"""
        return label(self.values)


def label(values: dict[str, str]) -> str:
    """The overrides that give ``values``."""
    return " ".join(f"{key}={value}" for key, value in values.items())


def plan_all(points: Sequence[Point[PlanSettings]]) -> list[Plan]:
    """A plan for each point whose memory is its own.

    Where a key varies without any effect on memory, as a seed does, only its first value is kept.
    """
    ask_ahead([(one.settings, planned_device(one.settings.trainer.device)) for one in points])
    setups, limits = [], []
    for point in points:
        device = point.settings.trainer.device
        try:
            setup = setup_of(point.settings, planned_device(device))
            if point.settings.resume is not None:
                refuse_plan_of_another_run(point.settings, vocabulary(point.settings) or 0)
            if (lora := point.settings.finetune.lora) is not None:
                names = ", ".join(lora.targets)
                trained = n_trained(setup.model, lora)
                require(trained, f"finetune.targets={names}: the network has none of these")
            setups.append(replace(setup, lora=lora))
            limits.append(limits_of(point.settings.memory, device))
        except Refused as refusal:
            which = f"job {point.label} cannot run: " if point.values else ""
            raise Refused(f"{which}{refusal}") from None
    memories = [point.settings.memory for point in points]
    wanted = list(zip(setups, limits, memories, strict=True))
    keys = [key for key in points[0].values if _matters(key, points, wanted)]
    found: dict[tuple[str, ...], Plan] = {}
    for setup, limit, point in zip(setups, limits, points, strict=True):
        values = {key: point.values[key] for key in keys}
        if tuple(values.values()) not in found:
            found[tuple(values.values())] = plan(setup, *limit, point.settings, values)
    return list(found.values())


def _matters(key: str, points: Sequence[Point[PlanSettings]], wanted: Sequence[object]) -> bool:
    """Whether two points that differ in ``key`` only need different memory."""
    first: dict[tuple[str, ...], object] = {}
    for point, needs in zip(points, wanted, strict=True):
        others = tuple(value for name, value in point.values.items() if name != key)
        if first.setdefault(others, needs) != needs:
            return True
    return False


def plan(
    setup: Setup, reserve: Lines, budget: int, settings: PlanSettings, values: dict[str, str]
) -> Plan:
    """What one run takes, whether it fits ``budget`` bytes, and what would make it fit."""
    memory = settings.memory
    is_auto = memory.fit == "auto"
    begun = settings.resume is not None
    # What auto would do here; else what one could do.
    eight_bit = not begun and (not is_auto or has_eight_bit())
    return Plan(
        label=label(values),
        values=values,
        setup=setup,
        parameters=n_parameters(setup.model),
        prediction=predict(setup, reserve),
        reserve=reserve,
        budget=budget,
        limit=memory.limit(budget),
        mode=memory.fit,
        eight_bit=eight_bit,
        device=settings.trainer.device,
        begun=begun,
        largest=_largest(setup, memory.largest, budget, reserve, is_auto, eight_bit),
    )


def _largest(
    setup: Setup, key: str | None, budget: int, reserve: Lines, levers: bool, eight_bit: bool
) -> Largest | None:
    if key is None:
        return None

    def peak(changed: Setup) -> int | None:
        if not levers:
            return predict(changed, reserve).total
        fitted = fit(changed, budget, reserve, eight_bit)
        sized = key == "trainer.micro_batch_size"  # which must not be cut further
        if fitted is None or (sized and fitted.setup.micro_batch != changed.micro_batch):
            return None
        return fitted.prediction.total

    found = largest(setup, key, budget, reserve, levers, eight_bit)
    larger = following(setup, key, found)
    further = None if larger is None else peak(with_size(setup, key, larger))
    if found is None:
        return Largest(key, None, None, None, larger, further)
    best = with_size(setup, key, found)
    return Largest(key, found, n_parameters(best.model), peak(best), larger, further)
