"""The picture of a plan: a PNG, and the table beside it."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from llm.errors import Refused
from llm.planning import picture as plan_picture
from llm.planning.picture import can_draw, draw, save
from llm.planning.plan import Plan
from tests.planning.test_tables import grid, made

pytest.importorskip("matplotlib")
PNG = b"\x89PNG\r\n\x1a\n"
NUMBERS = [str(n) for n in range(1, 6)]
NAMES = [made(n, values={"model": f"m{n}"}, label=f"model=m{n}") for n in range(1, 4)]


def figure_of(plans: list[Plan], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What :func:`draw` has drawn."""
    from matplotlib.figure import Figure

    kept: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: kept.append(self))
    draw(io.BytesIO(), plans)
    return kept[0]


def hatched(chart: Any) -> int:
    """How many cells of a map are drawn as those that do not fit."""
    return sum(len(p.get_path().to_polygons()) for p in chart.patches if p.get_hatch())


def test_a_grid_of_two_numbers_is_a_map_beside_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = figure_of(grid(NUMBERS, ["1", "0.5"]), monkeypatch)
    chart, bars, scale = figure.axes
    (image,) = chart.images
    assert image.get_array().shape == (5, 2)
    assert image.get_array()[4].tolist() == [3.0, 5.5], "ticks are in order, whatever was typed"
    assert (chart.get_xlabel(), chart.get_ylabel()) == ("b", "model.a")
    assert scale.get_ylabel() == "GiB at the peak"
    said = [text.get_text() for text in chart.get_legend().get_texts()]
    assert said == ["does not fit", "budget, 4 GiB"]
    assert hatched(chart) == 2, "4 and 5, each with half a GiB more"
    assert len(bars.get_yticklabels()) == 10
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        "weights", "reserve (assumed)", "budget, 4 GiB",
    }  # fmt: skip


def test_where_all_fit_there_is_nothing_to_explain(monkeypatch: pytest.MonkeyPatch) -> None:
    chart, *_ = figure_of(grid(["1", "2"], ["1", "0.5"]), monkeypatch).axes
    assert chart.get_legend() is None
    assert hatched(chart) == 0


def test_of_a_large_map_some_bars_are_drawn_and_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    every = [str(n / 10) for n in range(1, 15)]
    chart, bars, _ = figure_of(grid(every, every), monkeypatch).axes
    labels = [label.get_text() for label in bars.get_yticklabels()]
    assert len(labels) == plan_picture.BESIDE_A_MAP
    assert (labels[0], labels[-1]) == ("a=0.1 b=0.1", "a=1.4 b=1.4")
    assert not chart.texts


@pytest.mark.parametrize(
    "plans",
    [[made(1)], NAMES, grid(NUMBERS, ["1"]), grid(NUMBERS * 10, ["1"], budget=0.9)],
    ids=["one", "names", "one row", "many"],
)
def test_every_other_plan_is_drawn_too(plans: list[Plan], tmp_path: Path) -> None:
    path = tmp_path / "a" / "plan.png"
    written = save(path, plans, is_grid=len(plans) > 1)
    assert path.read_bytes().startswith(PNG)
    table = [path.with_suffix(".csv")] if len(plans) > 1 else []
    assert written == [path, *table]
    assert sorted(path.parent.iterdir()) == sorted(written)


def test_names_make_bars_with_the_budget_as_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    (bars,) = figure_of([*NAMES, made(9, values={"model": "m9"})], monkeypatch).axes
    assert [label.get_text() for label in bars.get_yticklabels()] == [
        "model=m1", "model=m2", "model=m3", "model=m9",
    ]  # fmt: skip
    assert [text.get_text().strip() for text in bars.texts][-1] == "9.50  does not fit"
    (line,) = bars.lines
    assert list(line.get_xdata()) == [4, 4]


def test_without_matplotlib_there_is_still_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not can_draw()
    assert save(tmp_path / "plan.png", NAMES, is_grid=True) == [tmp_path / "plan.csv"]


def test_a_place_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match=r"picture: \S+/file cannot be written: \w"):
        save(tmp_path / "file" / "plan.png", NAMES, is_grid=True)
    with pytest.raises(Refused, match="cannot be written"):
        save(tmp_path / ("x" * 300 + ".png"), [made(1)], is_grid=False)


def test_a_picture_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(plan_picture, "draw", fail)
    with pytest.raises(ZeroDivisionError):
        save(tmp_path / "plan.png", [made(1)], is_grid=False)
    assert not list(tmp_path.iterdir())
