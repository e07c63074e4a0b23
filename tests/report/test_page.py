"""The page as text: what it embeds parses back, and no name in it becomes HTML or script."""

import base64
import hashlib
import html
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.errors import Refused
from llm.experiment.sweep_answer import REPORT
from llm.report import page as module
from llm.report.page import PLOTLY, page, write_page
from tests.report.documents import document, extra

HOSTILE = [
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<!--<script>", "]]>",
    "\"'`${alert(1)}{{data}}", "a\u2028b\u2029c", "\u202egnp.exe", "\ud800 half", "层数=4", "\0",
]  # fmt: skip


def embedded(text: str) -> Any:
    """The data of a page, found as a browser finds it: up to the first end of a script."""
    start = text.index('<script type="application/json" id="data">')
    return json.loads(text[text.index(">", start) + 1 : text.index("</script", start)])


def test_the_embedded_data_is_the_document() -> None:
    report = document()
    found = embedded(page(report, extra(report)))
    assert found["document"]["points"][0]["label"] == report["points"][0]["label"]
    assert found["document"]["runs"] == module._short(report["runs"])
    assert len(found["extra"]["curves"]) == len(report["runs"])


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_leaves_its_place(name: str) -> None:
    report = document(title=name, question=name)
    report["points"][0]["label"] = report["runs"][0]["reason"] = name
    text = page(report, {"notes": [name], name: {name: name}})
    plain = page(document(title="plain"), {})
    assert embedded(text)["document"]["question"] == name
    assert embedded(text)["extra"][name] == {name: name}
    for tag in ("<script", "</script", "<!--", "<img", "<title", "<style"):
        assert text.count(tag) == plain.count(tag)
    text.encode()


@settings(deadline=None, max_examples=25)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=8))
def test_any_text_parses_back_and_holds_no_markup(value: Any) -> None:
    text = module._as_json(value)
    assert json.loads(text) == value
    assert not set(text) & set("<>&\u2028\u2029")
    text.encode()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_cannot_express_becomes_null(number: float) -> None:
    assert json.loads(module._as_json({"loss": [number, 1.0]})) == {"loss": [None, 1.0]}


def test_numbers_keep_six_digits_and_integers_all() -> None:
    assert json.loads(module._as_json([1.23456789, 123456789])) == [1.23457, 123456789]


def test_the_title_is_text() -> None:
    name = "</title><script>1 & 2"
    found = re.search("<title>(.*?)</title>", page(document(title=name), {}))
    assert found is not None and html.unescape(found[1]) == name


def test_nothing_is_loaded_but_plotly() -> None:
    text = page(document(), {})
    assert re.findall(r'(?:src|href)="([^"]*)"', text) == [PLOTLY]
    assert not re.findall(r"https?://", text)


def test_the_policy_allows_exactly_the_script_of_the_page() -> None:
    text = page(document(), {})
    [script] = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None and f"'sha256-{digest}'" in policy[1]
    assert policy[1].startswith("default-src 'none'")
    assert "script-src 'self' file: 'sha256-" in policy[1] and "unsafe-eval" not in policy[1]


def test_scripts_never_write_html() -> None:
    for name in module.SCRIPTS:
        script = (Path(module.__file__).parent / name).read_text()
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert word not in script, (name, word)
        assert "</script" not in script and "<!--" not in script


def test_a_page_is_written_with_plotly_beside_it(tmp_path: Path) -> None:
    assert write_page(tmp_path, document(), {}) == tmp_path / REPORT
    assert (tmp_path / REPORT).read_text().startswith("<!DOCTYPE html>")
    assert (tmp_path / PLOTLY).stat().st_size > 1 << 20
    before = (tmp_path / PLOTLY).stat().st_mtime_ns
    write_page(tmp_path, document(title="again"), {})
    assert (tmp_path / PLOTLY).stat().st_mtime_ns == before  # it is not copied again
    assert "again" in (tmp_path / REPORT).read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == [PLOTLY, REPORT]


def test_a_damaged_copy_of_plotly_is_replaced(tmp_path: Path) -> None:
    (tmp_path / PLOTLY).write_text("half")
    write_page(tmp_path, document(), {})
    assert (tmp_path / PLOTLY).stat().st_size > 1 << 20


def test_without_plotly_the_page_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(Refused, match="needs plotly: pip install"):
        write_page(tmp_path, document(), {})
    assert not list(tmp_path.iterdir())


def test_two_hundred_runs_fit_in_one_and_a_half_megabytes() -> None:
    report = document(depths=8, rates=8)
    assert len(report["runs"]) == 193
    assert len(page(report, extra(report, rows=100)).encode()) < 1.5e6
