"""A plan of memory as a picture: where the bytes go, and which points of a grid fit."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from llm.disk import could_not_write, replaced
from llm.errors import CANNOT_WRITE, Refused
from llm.planning.plan import Plan, kinds, numeric_axes, ticks, to_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BARS, BESIDE_A_MAP = 40, 12  # most bars of a picture
NUMBERED = 150  # most cells of a map with their number in them
GIB = 2**30


def save(path: Path, plans: Sequence[Plan], is_grid: bool) -> list[Path]:
    """Write the picture and, of a grid, a table beside it; returns what was written.

    Without matplotlib only the table. Raises :class:`llm.errors.Refused` or
    :class:`llm.errors.DiskError` where the folder cannot be written.
    """
    table = path.with_suffix(".csv")
    with _writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        written = []
        if is_grid:
            with replaced(table) as file:
                file.write(to_csv(plans).encode())
            written.append(table)
        if can_draw():
            with replaced(path) as file:
                draw(file, plans)
            written.insert(0, path)
    return written


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401  (only whether it can be)
    except ImportError:
        return False
    return True


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in CANNOT_WRITE:
            raise could_not_write(folder, error) from None
        raise Refused(f"picture: {folder} cannot be written: {error.strerror}") from None


def draw(file: BinaryIO, plans: Sequence[Plan]) -> None:
    """A map with some bars where two numbers vary, else only bars, as PNG."""
    from matplotlib.figure import Figure

    axes = numeric_axes(plans)
    if len(axes) == 2:
        shown = _spread(plans, BESIDE_A_MAP)
        figure = Figure(figsize=(15, 7), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1.2, 1])
        _draw_map(left, plans, *axes)
        _draw_bars(right, shown)
    else:
        shown = _spread(plans, BARS)
        figure = Figure(figsize=(10, 2.2 + 0.32 * len(shown)), layout="constrained")
        _draw_bars(figure.subplots(), shown)
    figure.savefig(file, format="png")


def _spread(plans: Sequence[Plan], most: int) -> Sequence[Plan]:
    """All plans, or some from the smallest to the largest peak."""
    if len(plans) <= most:
        return plans
    ordered = sorted(plans, key=lambda plan: plan.taken.total)
    return [ordered[round(n * (len(ordered) - 1) / (most - 1))] for n in range(most)]


def _draw_map(ax: "Axes", plans: Sequence[Plan], down: str, across: str) -> None:
    """GiB at the peak by colour; hatched where it does not fit, with a line at the budget."""
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Patch, PathPatch
    from matplotlib.path import Path as Outline

    rows, columns = ticks(plans, down), ticks(plans, across)
    found = {(plan.values[down], plan.values[across]): plan for plan in plans}
    cells = [[found[row, column] for column in columns] for row in rows]
    peaks = [[plan.taken.total / GIB for plan in line] for line in cells]
    least, most = min(map(min, peaks)), max(map(max, peaks))
    top = min(most, 2 * max(plan.budget / GIB for plan in plans))  # or what fits is one colour
    image = ax.imshow(peaks, cmap="cividis", origin="lower", aspect="auto", vmin=least, vmax=top)
    extend = "max" if top < most else "neither"
    ax.figure.colorbar(image, ax=ax, label="GiB at the peak", extend=extend)
    middle = (least + top) / 2
    hatched: dict[str, list[list[tuple[float, float]]]] = {"black": [], "white": []}
    for y, line in enumerate(cells):
        for x, plan in enumerate(line):
            ink = "black" if peaks[y][x] > middle else "white"
            if plan.started is None:
                left, low = x - 0.5, y - 0.5
                right, high = left + 1, low + 1
                corners = [(left, low), (right, low), (right, high), (left, high), (left, low)]
                hatched[ink].append(corners)
            if len(plans) <= NUMBERED:
                box = {"fc": "white" if ink == "black" else "black", "alpha": 0.4, "lw": 0}
                number = f"{peaks[y][x]:.2f}{'' if plan.fits or not plan.started else '*'}"
                ax.text(x, y, number, ha="center", va="center", color=ink, size=8, bbox=box)
    for ink, squares in hatched.items():
        if squares:
            outline = Outline.make_compound_path(*(Outline(one, closed=True) for one in squares))
            ax.add_patch(PathPatch(outline, fc="none", ec=ink, hatch="///", lw=0))
    budgets = {plan.budget / GIB for plan in plans}
    legend: list[Any] = []
    if not all(plan.started for plan in plans):
        legend.append(Patch(fc="grey", hatch="///", ec="white", label="does not fit"))
    if edges := _edges([[plan.taken.total <= plan.budget for plan in line] for line in cells]):
        label = f"budget, {min(budgets):g} GiB" if len(budgets) == 1 else "budget"
        legend.append(ax.add_collection(LineCollection(edges, color="#cc3311", lw=3, label=label)))
    if any(plan.started and not plan.fits for plan in plans):
        legend.append(Patch(fc="none", ec="none", label="* as memory.fit=auto would run it"))
    if legend:
        ax.legend(handles=legend, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    width = 2 + max(map(len, columns))
    _label(ax.set_xticks, columns, most=90 // width)
    _label(ax.set_yticks, rows, most=24)
    ax.set_xlabel(across)
    ax.set_ylabel(down)


def _edges(fits: list[list[bool]]) -> list[list[tuple[float, float]]]:
    """The sides between cells that fit and cells that do not."""
    found = []
    for y, line in enumerate(fits):
        for x, fit in enumerate(line):
            if x + 1 < len(line) and fit != line[x + 1]:
                found.append([(x + 0.5, y - 0.5), (x + 0.5, y + 0.5)])
            if y + 1 < len(fits) and fit != fits[y + 1][x]:
                found.append([(x - 0.5, y + 0.5), (x + 0.5, y + 0.5)])
    return found


def _label(set_ticks: Any, values: Sequence[str], most: int) -> None:
    every = -(-len(values) // most)  # with more of them the labels would run into each other
    set_ticks(range(0, len(values), every), values[::every])


def _draw_bars(ax: "Axes", plans: Sequence[Plan]) -> None:
    """Where the bytes of each plan go, with a line at its budget."""
    colours = kinds(plans)
    places = range(len(plans))
    lefts = [0.0] * len(plans)
    for kind, colour in colours.items():
        widths = [plan.taken.lines.get(kind, 0) / GIB for plan in plans]
        ax.barh(places, widths, left=lefts, color=colour, label=kind)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    budgets = sorted({plan.budget / GIB for plan in plans})
    if len(budgets) == 1:
        ax.axvline(budgets[0], color="#cc3311", lw=2, label=f"budget, {budgets[0]:g} GiB")
    for place, plan in zip(places, plans, strict=True):
        mark = "" if plan.started else "  does not fit"
        ax.text(lefts[place], place, f" {lefts[place]:.2f}{mark}", va="center", size=8)
    ax.set_xlim(0, 1.3 * max([*lefts, *budgets]))
    names = [" ".join(f"{k.rpartition('.')[2]}={v}" for k, v in p.values.items()) for p in plans]
    ax.set_yticks(places, names)
    ax.invert_yaxis()
    ax.set_xlabel("GiB at the peak")
    ax.figure.legend(*ax.get_legend_handles_labels(), loc="outside lower right", ncols=5)
