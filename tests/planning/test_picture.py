"""The files of a plan: a picture (PNG), and the table of a grid beside it."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llm.errors import Refused
from llm.planning import picture
from llm.planning.picture import BARS_BESIDE_MAP, as_map, colours, draw, save
from llm.planning.plan import Plan
from tests.planning.made import GIB, grid, plan

pytest.importorskip("matplotlib")
PRESETS = [
    plan(n_layer=n_layer, values={"model": name})
    for name, n_layer in (("nano", 1), ("small", 2), ("large", 64))
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Draws plans and returns the axes of the figure."""
    from matplotlib.figure import Figure

    figures: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))

    def inner(plans: Sequence[Plan]) -> Any:
        draw(io.BytesIO(), plans)
        return figures[-1].axes

    return inner


def texts(labels: Any) -> list[str]:
    return [label.get_text() for label in labels]


def test_a_grid_of_two_numbers_is_a_map_beside_bars(drawn: Any) -> None:
    plans = grid([16, 2], [512, 1024], budget_gib=3)
    chart, bars, _ = drawn(plans)
    assert (chart.get_xlabel(), chart.get_ylabel()) == ("model.n_embed", "model.n_layer")
    assert texts(chart.get_yticklabels()) == ["2", "16"], "in order, whatever was typed first"
    peaks = chart.images[0].get_array()
    assert peaks.mask.tolist() == [[False, False], [False, True]], "16 x 1024 does not fit"
    assert peaks[1, 0] * GIB == plans[0].taken.total
    assert texts(chart.get_legend().get_texts()) == ["does not fit"]
    assert len(texts(chart.texts)) == len(bars.get_yticklabels()) == 4
    assert bars.texts[1].get_text().endswith("does not fit")
    all_fit, *_ = drawn(grid([1, 2], [512, 1024]))
    assert all_fit.get_legend() is None


def test_a_large_map_has_some_bars_and_no_numbers(drawn: Any) -> None:
    chart, bars, _ = drawn(grid(range(1, 15), range(64, 512, 32)))
    labels = texts(bars.get_yticklabels())
    assert len(labels) == BARS_BESIDE_MAP
    assert (labels[0], labels[-1]) == ("n_layer=1 n_embed=64", "n_layer=14 n_embed=480")
    assert not chart.texts


def test_presets_are_bars_with_a_line_at_the_budget(drawn: Any) -> None:
    (bars,) = drawn(PRESETS)
    assert texts(bars.get_yticklabels()) == ["model=nano", "model=small", "model=large"]
    lengths = [sum(bar.patches[n].get_width() for bar in bars.containers) for n in range(3)]
    assert lengths == pytest.approx([each.taken.total / GIB for each in PRESETS])
    assert list(bars.lines[0].get_xdata()) == [4, 4]


@pytest.mark.parametrize(
    "plans",
    [[plan()], PRESETS, grid([1, 2], [512]), grid(range(1, 50), [512]), grid([8, 9], [512, 1024],
     budget_gib=0.7)],
    ids=["one", "presets", "one column", "long", "nothing fits"],
)  # fmt: skip
def test_every_plan_can_be_drawn(plans: list[Plan], tmp_path: Path) -> None:
    path = tmp_path / "a" / "plan.png"
    written = save(path, plans, is_grid=len(plans) > 1)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert written == [path, *[path.with_suffix(".csv")] * (len(plans) > 1)]
    assert sorted(path.parent.iterdir()) == sorted(written)


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        Refused, match=r"picture: \S+/plan.png cannot be written: \S+/file is not a"
    ):
        save(tmp_path / "file" / "plan.png", PRESETS, is_grid=True)
    with pytest.raises(Refused, match="is too long: most systems take 255 bytes"):
        save(tmp_path / ("x" * 300 + ".png"), [plan()], is_grid=False)


def test_a_picture_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture, "draw", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(tmp_path / "plan.png", [plan()], is_grid=False)
    assert not list(tmp_path.iterdir())


def test_only_two_keys_with_numbers_make_a_map() -> None:
    found = as_map([plan(values={"a": a, "b": b}) for a in ("10", "9") for b in ("1e1", "0.5")])
    assert found is not None and (found.rows, found.columns) == (["9", "10"], ["0.5", "1e1"])
    for values in ({"a": "1"}, {"a": "1", "b": "null"}, {"a": "1", "b": "2", "c": "3"}, {}):
        assert as_map([plan(values=values)]) is None
    assert as_map([plan(values={"a": one, "b": one}) for one in "12"]) is None, "zipped keys"


def test_each_part_has_a_colour_of_its_own_and_the_reserve_is_grey() -> None:
    found = colours([plan(64), plan()])
    assert len(set(found.values())) == len(found)
    assert list(found.items())[-1] == ("reserve (assumed)", picture.GREY)
