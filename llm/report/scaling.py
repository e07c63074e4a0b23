"""A scaling law L = E + A N^-alpha of the loss in the number of parameters."""

from collections.abc import Sequence
from dataclasses import dataclass

from llm.report.measure import Measure
from llm.report.points import Point
from llm.report.record import RunRecord
from llm.sealed import Plain


@dataclass(frozen=True)
class Scaling:
    """The fitted law; ``low`` and ``high``: the 95 % interval of each number."""

    a: float
    e: float
    alpha: float
    low: dict[str, float]
    high: dict[str, float]
    points: list[tuple[float, float]]
    sentence: str


def of_points(
    points: Sequence[Point], records: Sequence[RunRecord], measure: Measure
) -> Scaling | str | None:
    """The law, or why the points do not allow one; None if they have one size."""
    return None


def as_plain(scaling: Scaling | str | None) -> Plain | None:
    """The law for ``report.json``."""
    if isinstance(scaling, str):
        return {"why_not": scaling}
    return None if scaling is None else dict(vars(scaling))
