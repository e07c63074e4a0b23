"""Save plans as a picture (parts of the memory, points that fit) and as a table."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from llm.disk import replaced
from llm.errors import Refused, as_stop, reason_for
from llm.planning.plan import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Distinct with any kind of colour vision: Paul Tol's "muted" scheme (personal.sron.nl/~pault).
COLOURS = (
    "#332288", "#88ccee", "#44aa99", "#117733", "#999933", "#ddcc77", "#cc6677", "#882255",
    "#aa4499",
)  # fmt: skip
GREY, RED = "#bbbbbb", "#cc3311"
BARS, BARS_BESIDE_MAP = 40, 12  # at most
NUMBERED = 150  # a map with more cells has no room for numbers
GIB = 2**30


@dataclass(frozen=True)
class Map:
    """The plans of a grid in which two numbers vary, sorted by both."""

    down: str  # the key that varies from row to row
    across: str  # from column to column
    rows: list[str]  # the values of ``down``
    columns: list[str]  # the values of ``across``
    cells: list[list[Plan]]


def as_map(plans: Sequence[Plan]) -> Map | None:
    """The map of a grid; None unless two numbers vary, in all combinations."""
    if len(plans[0].values) != 2:
        return None
    down, across = plans[0].values
    try:
        rows = sorted({plan.values[down] for plan in plans}, key=float)
        columns = sorted({plan.values[across] for plan in plans}, key=float)
    except ValueError:
        return None
    by_values = {(plan.values[down], plan.values[across]): plan for plan in plans}
    if len(by_values) < len(rows) * len(columns):  # the two keys advance together
        return None
    cells = [[by_values[row, column] for column in columns] for row in rows]
    return Map(down, across, rows, columns, cells)


def colours(plans: Sequence[Plan]) -> dict[str, str]:
    """A colour for each part of the memory, in the order of a bar; grey for the reserve."""
    kinds = dict.fromkeys(k for plan in plans for k, size in plan.taken.lines.items() if size)
    outside = [kind for kind in kinds if any(kind in plan.taken.reserve for plan in plans)]
    tensors = [kind for kind in kinds if kind not in outside]
    return dict(zip(tensors, cycle(COLOURS))) | dict.fromkeys(outside, GREY)


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def save(path: Path, plans: Sequence[Plan], is_grid: bool) -> list[Path]:
    """Write the picture if matplotlib is installed, and a table if it is a grid; returns the paths.

    Raises :class:`llm.errors.Refused` or :class:`llm.errors.DiskError` if the folder cannot be
    written.
    """
    written = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if can_draw():
            with replaced(path) as file:
                draw(file, plans)
            written.append(path)
        if is_grid:
            table = path.with_suffix(".csv")
            with replaced(table) as file:
                file.write(to_csv(plans).encode())
            written.append(table)
    except OSError as error:
        reason = f"picture: {path} cannot be written: {reason_for(path, error)}"
        raise as_stop(error) or Refused(reason) from None
    return written


def to_csv(plans: Sequence[Plan]) -> str:
    """A row for each point, with the bytes of each part of the memory."""
    out, kinds, asked = io.StringIO(), list(colours(plans)), plans[0].largest
    writer = csv.writer(out, lineterminator="\n")
    columns = ["parameters", "peak_bytes", "budget_bytes", "fits", "changes"]
    largest = [f"largest {asked.key}"] if asked else []
    writer.writerow([*plans[0].values, *columns, *largest, *kinds])
    for plan in plans:
        fits = "yes" if plan.started else "no"
        changes = " ".join(plan.started.changes) if plan.started else ""
        facts = [plan.parameters, plan.taken.total, plan.budget, fits, changes]
        largest = [str(plan.largest.value or "")] if plan.largest else []
        lines = plan.taken.lines
        sizes = [lines.get(kind, 0) for kind in kinds]
        writer.writerow([*plan.values.values(), *facts, *largest, *sizes])
    return out.getvalue()


def draw(file: BinaryIO, plans: Sequence[Plan]) -> None:
    """Draw a PNG: a map and some bars if two numbers vary, else only bars."""
    from matplotlib.figure import Figure

    grid = as_map(plans)
    if grid is not None:
        figure = Figure(figsize=(15, 7), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1.2, 1])
        _draw_map(left, grid)
        _draw_bars(right, _spread(plans, BARS_BESIDE_MAP))
    else:
        shown = _spread(plans, BARS)
        figure = Figure(figsize=(10, 2.2 + 0.32 * len(shown)), layout="constrained")
        _draw_bars(figure.subplots(), shown)
    figure.savefig(file, format="png")


def _spread(plans: Sequence[Plan], most: int) -> Sequence[Plan]:
    """All plans, or ``most`` of them, evenly spaced from the smallest to the largest peak."""
    if len(plans) <= most:
        return plans
    ordered = sorted(plans, key=lambda plan: plan.taken.total)
    return [ordered[round(n * (len(ordered) - 1) / (most - 1))] for n in range(most)]


def _draw_map(ax: "Axes", grid: Map) -> None:
    """The peaks in GiB by colour; points that do not fit are grey."""
    import numpy as np
    from matplotlib.patches import Patch

    peaks = np.array([[plan.taken.total / GIB for plan in row] for row in grid.cells])
    refused = np.array([[plan.started is None for plan in row] for row in grid.cells])
    image = ax.imshow(
        np.ma.masked_where(refused, peaks), cmap="cividis", origin="lower", aspect="auto"
    )
    if not refused.all():
        is_auto = grid.cells[0][0].memory.fit == "auto"
        label = "GiB at the peak" + " (*: as memory.fit=auto changes it)" * is_auto
        ax.figure.colorbar(image, ax=ax, label=label)
    if refused.any():
        ax.set_facecolor(GREY)
        grey = Patch(color=GREY, label="does not fit")
        ax.legend(handles=[grey], loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    if peaks.size <= NUMBERED:
        box = {"fc": "white", "alpha": 0.6, "lw": 0}
        for (row, column), peak in np.ndenumerate(peaks):
            started = grid.cells[row][column].started
            changed = "*" if started and started.changes else ""
            ax.text(column, row, f"{peak:.2f}{changed}", ha="center", va="center", size=8, bbox=box)
    _label(ax.set_xticks, grid.columns, most=90 // (2 + max(map(len, grid.columns))))
    _label(ax.set_yticks, grid.rows, most=24)
    ax.set_xlabel(grid.across)
    ax.set_ylabel(grid.down)


def _label(set_ticks: Callable[..., object], values: Sequence[str], most: int) -> None:
    every = -(-len(values) // most)  # more labels would overlap
    set_ticks(range(0, len(values), every), values[::every])


def _draw_bars(ax: "Axes", plans: Sequence[Plan]) -> None:
    """The parts of each plan side by side, with a line at the budget."""
    places, lefts = range(len(plans)), [0.0] * len(plans)
    for kind, colour in colours(plans).items():
        widths = [plan.taken.lines.get(kind, 0) / GIB for plan in plans]
        ax.barh(places, widths, left=lefts, color=colour, label=kind)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    budgets = {plan.budget / GIB for plan in plans}
    if len(budgets) == 1:
        (budget,) = budgets
        ax.axvline(budget, color=RED, lw=2, label=f"budget, {budget:g} GiB")
    for place, plan, left in zip(places, plans, lefts, strict=True):
        mark = "" if plan.started else "  does not fit"
        ax.text(left, place, f" {left:.2f}{mark}", va="center", size=8)
    ax.set_xlim(0, 1.3 * max(*lefts, *budgets))
    ax.set_yticks(places, [plan.label.replace("model.", "") for plan in plans])
    ax.invert_yaxis()
    ax.set_xlabel("GiB at the peak")
    ax.figure.legend(*ax.get_legend_handles_labels(), loc="outside lower right", ncols=5)
