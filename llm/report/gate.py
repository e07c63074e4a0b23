"""``gate=true``: an exit status that says whether the second of two points is better."""

from collections.abc import Sequence

from llm.errors import NotShown, require
from llm.experiment.watch import words
from llm.report.numbers import BETTER
from llm.report.record import RunRecord
from llm.sealed import Plain
from llm.units import plural

MOST_NAMES = 4  # points in a message


def require_two_points(document: Plain) -> None:
    """Raise :class:`llm.errors.Refused`, naming the points, unless there are two."""
    points, found = document["points"], []
    if len(points) == 1:
        found.append(f"1: {plural(points[0]['n'], 'run')} with the same settings")
    else:
        names = ", ".join(point["label"] for point in points[:MOST_NAMES])
        more = ", ..." * (len(points) > MOST_NAMES)
        found.append(f"{len(points):,}" + f" ({names}{more})" * bool(points))
    for one in document["left_out"]:
        found.append(f"{plural(len(one['runs']), 'run')} left out: {one['reason']}")
    for run in [run for run in document["runs"] if run["status"] != "finished"][:MOST_NAMES]:
        found.append(f"{run['folder']} is {words(run['status'])}")
    require(
        len(points) == 2,
        f"gate=true compares two points (runs that differ in their settings) and found "
        f"{'; '.join(found)}",
        key="gate",
    )


def check_gate(document: Plain, records: Sequence[RunRecord]) -> None:
    """Raise :class:`llm.errors.NotShown` unless the second point is shown to be better.

    A run of the second point that did not finish, such as a seed that diverged, speaks against it.
    """
    one, points = document["verdict"], document["points"]
    second = records[points[one["point"]]["runs"][0]].point
    for record in records:
        if record.point == second and not record.is_finished:
            label, end = points[one["point"]]["label"], words(record.status)
            raise NotShown(f"{label} is not shown to be better: {record.folder} is {end}")
    if one["verdict"] == BETTER:
        return
    names = points[one["point"]]["label"], points[one["with"]]["label"]
    more = one["more_seeds"]
    hint = f"; about {plural(more, 'more seed')} each would show it" if more is not None else ""
    if one["verdict"] == "worse":
        raise NotShown(
            f"{names[0]} is worse than {names[1]}, by {one['difference']:.4f}", status="worse"
        )
    raise NotShown(
        f"{names[0]} is not shown to be better than {names[1]}: the difference is "
        f"{one['difference']:+.4f}, {_test(one)}{hint}"
    )


def _test(one: Plain) -> str:
    return one["test"] if one["p"] is None else f"p = {one['p']:.2g}"
