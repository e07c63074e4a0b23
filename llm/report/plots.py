"""``plots=true``: the main pictures of a report as PNG and SVG, each with a caption."""

import logging
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.disk import cannot_use, replaced
from llm.experiment.rundir import replace_text
from llm.report.points import number_of
from llm.sealed import Plain
from llm.units import plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MISSING = "plots=true needs matplotlib: pip install -c constraints.txt matplotlib"
FOLDER, CAPTIONS = "plots", "captions.md"
# Okabe and Ito (2008), for any kind of colour vision. Line styles and markers tell them apart in
# grey print, too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
LINES, MARKERS = ("-", "--", "-.", ":"), "osD^vPX"
GREY = "#aaaaaa"
CHINESE = (
    "Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
    "PingFang SC", "Hiragino Sans GB", "Heiti SC", "Microsoft YaHei", "SimHei", "Arial Unicode MS",
)  # fmt: skip
MOST_CURVES, MOST_KEYS, MOST_VALUES, NUMBERED = 7, 6, 24, 150
Draw = Callable[["Figure", Plain, Plain], str | None]


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def save(folder: Path, document: Plain, extra: Plain) -> list[Path]:
    """Draw into ``folder/plots``; returns the paths of the pictures and of captions.md.

    ``document`` and ``extra`` are the data of the page. Raises :class:`llm.errors.Refused` or
    :class:`llm.errors.DiskError` if a file cannot be written.
    """
    from matplotlib.figure import Figure

    place, written, captions = folder / FOLDER, [], []
    try:
        place.mkdir(parents=True, exist_ok=True)
        with _style():
            for name, draw in PICTURES.items():
                figure = Figure(figsize=(8, 5.4), layout="constrained")
                caption = draw(figure, document, extra)
                if caption is None:
                    continue
                lines = textwrap.fill(escaped(caption), 105)
                figure.supxlabel(lines, fontsize=9, x=0.01, ha="left")
                captions.append(f"- `{name}`: {caption}\n")
                for ending in ("png", "svg"):
                    with replaced(place / f"{name}.{ending}") as file:
                        figure.savefig(file, format=ending, dpi=150)
                    written.append(place / f"{name}.{ending}")
        replace_text(place / CAPTIONS, "".join(captions))
    except OSError as error:
        raise cannot_use(place, error, "folder of the plots ") from None
    return [*written, place / CAPTIONS]


@contextmanager
def _style() -> Iterator[None]:
    """While inside, draw with the installed Chinese fonts; letters without a font are boxes."""
    import matplotlib
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    fonts = ["DejaVu Sans", *(name for name in CHINESE if name in installed)]
    settings: Any = {"font.family": fonts, "svg.fonttype": "none", "axes.grid": True}
    settings |= {"grid.color": "#dddddd", "axes.axisbelow": True}
    level = logging.getLogger("matplotlib").level
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
        try:
            yield
        finally:
            logging.getLogger("matplotlib").setLevel(level)


def escaped(text: str) -> str:
    """``text`` in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


def _curves(figure: "Figure", document: Plain, extra: Plain) -> str | None:
    """The validation loss of each run by training tokens; the best points have colours."""
    points = sorted(document["points"], key=lambda point: point["mean"])
    runs = document["runs"]
    style = {point["index"]: number for number, point in enumerate(points[:MOST_CURVES])}
    drawn = [
        (runs[one["run"]]["point"], one["val"]) for one in extra["curves"]
        if runs[one["run"]]["point"] is not None and len(one["val"]["step"]) > 1
    ]  # fmt: skip
    if not drawn:
        return None
    ax, seen = figure.subplots(), set()
    drawn.sort(key=lambda one: style.get(one[0], -1))  # the grey ones lie below
    for index, curve in drawn:
        if index not in style:
            _line(ax, curve, color=GREY, lw=0.8)
            continue
        n = style[index]
        label = escaped(document["points"][index]["label"]) if index not in seen else None
        seen.add(index)
        _line(
            ax, curve, color=COLOURS[n], ls=LINES[n % len(LINES)], lw=1.4, label=label,
            marker=MARKERS[n], ms=4, markevery=0.2,
        )  # fmt: skip
    ax.set_xlabel("training tokens")
    ax.set_ylabel("validation loss (nats per token)")
    ax.legend(fontsize=8)
    shown = f" The {len(style)} best points have colours." if len(points) > len(style) else ""
    return f"Validation loss of {plural(len(drawn), 'run')} while they train.{shown}"


def _line(ax: "Axes", curve: Plain, **style: Any) -> None:
    pairs = zip(curve["tokens"], curve["loss"], strict=True)
    known = [(x, y) for x, y in pairs if x is not None and y is not None]
    ax.plot([x for x, _ in known], [y for _, y in known], **style)


def _keys(figure: "Figure", document: Plain, extra: Plain) -> str | None:
    """The mean of each point by each swept key."""
    keys = [key for key in document["keys"] if 1 < len(_values(document, key)) <= MOST_VALUES]
    keys = keys[:MOST_KEYS]
    if not keys:
        return None
    columns = min(len(keys), 3)
    rows = -(-len(keys) // columns)
    figure.set_size_inches(max(8, 4.2 * columns), 1.6 + 3.8 * rows)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
    for ax, key in zip(axes, keys, strict=False):
        _draw_key(ax, document, key)
    for ax in list(axes)[len(keys) :]:
        ax.remove()
    figure.supylabel(_measure(document))
    return (
        f"{_measure(document)} by {', '.join(map(_short, keys))}. Each dot is a point with its "
        "95 % interval, the line joins the best point of each value, n counts the runs."
    )


def _draw_key(ax: "Axes", document: Plain, key: str) -> None:
    values = _values(document, key)
    points = [point for point in document["points"] if key in point["values"]]
    best = []
    for place, value in enumerate(values):
        here = [point for point in points if point["values"][key] == value]
        best.append(min(point["mean"] for point in here))
        for point in here:
            ax.errorbar(
                place, point["mean"], yerr=_error(point), fmt="o", ms=4, color=COLOURS[0],
                ecolor=GREY, capsize=2,
            )  # fmt: skip
    ax.plot(range(len(values)), best, color=COLOURS[1], lw=1.2)
    count = [sum(p["n"] for p in points if p["values"][key] == value) for value in values]
    names = [f"{escaped(v)}\nn={n}" for v, n in zip(values, count, strict=True)]
    every = -(-len(values) // 8)  # more labels would overlap
    ax.set_xticks(range(0, len(values), every), names[::every], fontsize=8)
    ax.set_xlabel(escaped(_short(key)))


def _error(point: Plain) -> Any:
    if point["low"] is None or point["high"] is None:
        return None
    return [[point["mean"] - point["low"]], [point["high"] - point["mean"]]]


def _heat_map(figure: "Figure", document: Plain, extra: Plain) -> str | None:
    """The best mean for each pair of values of two keys."""
    import numpy as np

    strength = {one["key"]: one["share"] or 0.0 for one in document["importance"]}
    keys = [key for key in document["keys"] if 1 < len(_values(document, key)) <= MOST_VALUES]
    if len(keys) < 2:
        return None
    down, across = sorted(keys, key=lambda key: -strength.get(key, 0.0))[:2]
    rows, columns = _values(document, down), _values(document, across)
    means = np.full((len(rows), len(columns)), np.nan)
    for point in document["points"]:
        if down in point["values"] and across in point["values"]:
            cell = rows.index(point["values"][down]), columns.index(point["values"][across])
            means[cell] = np.fmin(means[cell], point["mean"])
    ax = figure.subplots()
    ax.grid(False)
    ax.set_facecolor(GREY)
    image = ax.imshow(np.ma.masked_invalid(means), cmap="cividis", origin="lower", aspect="auto")
    figure.colorbar(image, ax=ax, label=_measure(document))
    if means.size <= NUMBERED:
        box = {"fc": "white", "alpha": 0.7, "lw": 0}
        for (row, column), mean in np.ndenumerate(means):
            if np.isfinite(mean):
                text = f"{mean:.3f}"
                ax.text(column, row, text, ha="center", va="center", size=8, bbox=box)
    ax.set_xticks(range(len(columns)), map(escaped, columns))
    ax.set_yticks(range(len(rows)), map(escaped, rows))
    ax.set_xlabel(escaped(_short(across)))
    ax.set_ylabel(escaped(_short(down)))
    others = ", the best over the other keys" if len(keys) > 2 else ""
    return f"{_measure(document)} by {_short(down)} and {_short(across)}{others}. Grey: not run."


def _sizes(figure: "Figure", document: Plain, extra: Plain) -> str | None:
    """The means by the number of parameters, with the Pareto front and the scaling law."""
    points = [point for point in document["points"] if point["parameters"]]
    if len({point["parameters"] for point in points}) < 2:
        return None
    ax = figure.subplots()
    for point in points:
        is_front = "parameters" in point["front"]
        ax.errorbar(
            point["parameters"], point["mean"], yerr=_error(point), fmt="D" if is_front else "o",
            ms=7 if is_front else 4, color=COLOURS[1 if is_front else 0], ecolor=GREY, capsize=2,
        )  # fmt: skip
    front = sorted((p["parameters"], p["mean"]) for p in points if "parameters" in p["front"])
    ax.plot(
        [x for x, _ in front], [y for _, y in front], color=COLOURS[1], lw=1.2,
        drawstyle="steps-post", label="Pareto front: no smaller network has a lower loss",
    )  # fmt: skip
    sentence = _draw_law(ax, document["scaling"], [point["parameters"] for point in points])
    ax.set_xscale("log")
    ax.set_xlabel("parameters")
    ax.set_ylabel(_measure(document))
    ax.legend(fontsize=8)
    return f"{_measure(document)} by number of parameters, with 95 % intervals.{sentence}"


def _draw_law(ax: "Axes", law: Plain | None, sizes: Sequence[float]) -> str:
    """Draw the scaling law, and return the sentence about it; empty without a law."""
    import numpy as np

    if law is None or "why_not" in law:
        return ""
    x = np.geomspace(min(sizes), max(sizes), 100)
    y = law["e"] + law["a"] * x ** -law["alpha"]
    ax.plot(x, y, color=COLOURS[6], ls="--", lw=1.2, label="fitted scaling law")
    return f" {law['sentence']}"


def _values(document: Plain, key: str) -> list[str]:
    """The values of a key, numbers in their order."""
    found = {point["values"][key] for point in document["points"] if key in point["values"]}
    numbers = {value: number_of(value) for value in found}
    return sorted(found, key=lambda one: (numbers[one] is None, numbers[one] or 0.0, one))


def _short(key: str) -> str:
    return key.rpartition(".")[2]


def _measure(document: Plain) -> str:
    name, unit = document["measure"]["name"], document["measure"]["unit"]
    text = str(name if unit == name else f"{name} ({unit})")
    return text[:1].upper() + text[1:]


PICTURES: dict[str, Draw] = {
    "curves": _curves, "keys": _keys, "heat_map": _heat_map, "parameters": _sizes,
}  # fmt: skip
