"""``plots=true``: pictures for a paper, from the data of the page."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from llm.report import plots
from llm.report.plots import PICTURES, save
from llm.sealed import Plain
from tests.report.documents import document, extra

pytest.importorskip("matplotlib")
HOSTILE = "a$b_c$\\frac{1}{<script>&莎士比亚"


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "plots").iterdir()}


def text_of(path: Path) -> str:
    return " ".join("".join(part.itertext()) for part in ElementTree.parse(path).iter())


def test_each_picture_is_a_png_and_an_svg_with_its_caption(tmp_path: Path) -> None:
    report = document()
    written = save(tmp_path, report, extra(report, rows=20))
    pictures = {f"{name}.{ending}" for name in PICTURES for ending in ("png", "svg")}
    assert names(tmp_path) == pictures | {"captions.md"} == {path.name for path in written}
    captions = (tmp_path / "plots/captions.md").read_text(encoding="utf-8").splitlines()
    assert [line.partition("`: ")[0] for line in captions] == [f"- `{name}" for name in PICTURES]
    for line, name in zip(captions, PICTURES, strict=True):
        first_words = line.partition("`: ")[2][:30]
        assert first_words in text_of(tmp_path / f"plots/{name}.svg")
        assert (tmp_path / f"plots/{name}.png").read_bytes().startswith(b"\x89PNG")


def test_names_are_drawn_as_they_are_and_without_warnings(tmp_path: Path) -> None:
    report = document()
    key = report["keys"][0]
    for point in report["points"]:
        point["label"] = f"{HOSTILE}{point['index']}"
        point["values"][key] = f"{HOSTILE}{point['values'][key]}"
    save(tmp_path, report, extra(report, rows=5))
    for name in ("curves", "keys"):
        assert HOSTILE in text_of(tmp_path / f"plots/{name}.svg")


def test_pictures_without_data_are_left_out(tmp_path: Path) -> None:
    report = document()
    report |= {"keys": report["keys"][:1], "points": report["points"][:1]}
    save(tmp_path, report, {"curves": [], "samples": [], "notes": []})
    assert names(tmp_path) == {"captions.md"}


def test_a_sweep_with_many_values_and_unknown_numbers_is_drawn(tmp_path: Path) -> None:
    report: Plain = document()
    point = report["points"][0]
    key, other = report["keys"][:2]
    report["points"] = [
        point | {
            "index": n, "mean": 2 + n / 50, "low": None, "high": None, "front": [],
            "parameters": 1000 * (n + 1), "values": {key: str(n), other: str(n % 3)},
        }
        for n in range(20)
    ]  # fmt: skip
    report["scaling"] = {"why_not": "too few sizes"}
    report["importance"] = [{"key": key, "share": None}, {"key": other, "share": 0.5}]
    save(tmp_path, report, {"curves": [], "samples": [], "notes": []})
    assert {"keys.png", "heat_map.svg", "parameters.png"} <= names(tmp_path)
    assert "curves.png" not in names(tmp_path)


def test_colours_have_different_greys_or_markers() -> None:
    assert len(set(plots.COLOURS)) == len(set(plots.MARKERS)) == plots.MOST_CURVES
