"""The page in headless Chromium: what a reader does with it, and what hostile names cannot do."""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm.report.curves import MOST_RUNS
from llm.report.page import PLOTLY, write_page
from llm.units import format_count
from tests.report.documents import Plain, document, extra

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    # Playwright leaves its event loop's sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
HOSTILE = (
    "</script><script>window.ran=1</script><img src=x onerror='window.ran=1'>$x$ %{y} &lt;b&gt;"
)
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any, tmp_path: Path) -> Iterator[Open]:
    """Writes the page of a document and opens it; at the end, nothing may have gone wrong in it."""
    faults: list[str] = []
    contexts = []

    def open_it(report: Plain, more: Plain | None = None, view: str = "", **options: Any) -> Any:
        path = write_page(tmp_path, report, extra(report) if more is None else more)
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        contexts.append(context)
        context.set_default_timeout(20_000)
        tab = context.new_page()
        tab.on("console", lambda message: faults.append(message.text))
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("request", lambda request: faults.extend(_not_local(request.url)))
        tab.clock.install()
        tab.goto(path.resolve().as_uri() + view)
        wait_for(tab, "document.querySelector('.plot svg') !== null")
        return tab

    yield open_it
    for context in contexts:
        context.close()
    assert not faults


def _not_local(url: str) -> list[str]:
    return [] if url.startswith(("file:", "data:", "blob:")) else [url]


def first_cells(tab: Any) -> list[str]:
    cells = tab.locator(".results tbody td:nth-child(2)").all_inner_texts()
    return [cell.strip() for cell in cells]


def wait_for(tab: Any, condition: str) -> None:
    """Wait until a condition in JavaScript is true; the page itself may not evaluate text."""
    for _ in range(200):
        with contextlib.suppress(playwright.Error):  # the page is just being loaded again
            if tab.evaluate(condition):
                return
        tab.wait_for_timeout(50)
    raise AssertionError(f"it never came true: {condition}")


def draw_everything(tab: Any) -> None:
    for frame in tab.locator(".plot").all():
        frame.scroll_into_view_if_needed()
        wait_for(tab, "pictures.filter((one) => one.near).every((one) => !one.stale)")
    wait_for(tab, "[...document.querySelectorAll('.plot')].every((e) => e.querySelector('svg'))")


def test_all_sections_are_drawn_and_have_a_text_alternative(open_page: Open) -> None:
    tab = open_page(document())
    titles = tab.locator("h2").all_inner_texts()
    assert titles == [
        "Results", "Curves", "All settings at once", "Two settings", "Loss and its cost",
        "Importance", "Scaling law", "Does the best rate transfer?", "Samples",
        "Memory", "Runs that did not finish",
    ]  # fmt: skip
    draw_everything(tab)
    for frame in tab.locator(".plot").all():
        assert frame.get_attribute("role") == "img" and len(frame.get_attribute("aria-label")) > 10
    assert "1.6333" in tab.locator("#answer").inner_text()


def test_sections_without_data_are_left_out(open_page: Open, tmp_path: Path) -> None:
    report = document(
        points=[], runs=[], counts={}, comparisons=[], importance=[], keys=[], noise=None,
        scaling={"why_not": "the points have one size"}, transfer=None,
        answer={"sentences": [], "best": None, "default": None, "command": None},
    )  # fmt: skip
    path = write_page(tmp_path, report, {})
    tab = open_page(document())
    tab.goto(path.resolve().as_uri())
    write_page(tmp_path, report, {})
    tab.reload()
    assert tab.locator("h2").all_inner_texts() == ["Results", "Scaling law"]
    assert "one size" in tab.locator("#scaling").inner_text()


def test_the_table_sorts_by_a_column_both_ways(open_page: Open) -> None:
    tab = open_page(document())
    assert first_cells(tab) == ["6"] * 3 + ["4"] * 3 + ["2"] * 3
    header = tab.locator(".results th", has_text="lr")
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    lr = ".results tbody td:nth-child(3)"
    assert tab.locator(lr).all_inner_texts() == ["0.001"] * 3 + ["0.003"] * 3 + ["0.009"] * 3
    tab.keyboard.press("Enter")  # the button keeps the focus
    assert header.get_attribute("aria-sort") == "descending"
    assert tab.locator(lr).first.inner_text() == "0.009"


def test_counts_have_three_digits_as_on_the_terminal(open_page: Open) -> None:
    tab = open_page(document())
    for value in (0, 950, 999.7, 32_768, 999_949, 999_950, 108_900_000, 2.46e9, 1.2e12):
        assert tab.evaluate(f"count({value})") == format_count(value)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("n_layer>4", 3), ("n_layer>=4 lr=0.003", 2), ("model.n_layer!=2", 6), ("lr=3e-3", 3),
        ("measure<1.7", 3), ("n_layer=4 n=3", 3), ("n=2", 0), ("n_layer=6", 3), ("nothing", 0),
        ("unknown>3", 0), ("(", 0),
    ],
)  # fmt: skip
def test_the_filter_compares_values_and_finds_words(open_page: Open, text: str, rows: int) -> None:
    tab = open_page(document())
    tab.get_by_label("Filter").fill(text)
    wait_for(tab, f"state.filter === {text!r}")
    assert tab.locator(".results tbody tr").count() == rows
    assert f"{rows} point" in tab.locator("#table").inner_text()


def test_failed_runs_are_shown_only_if_the_reader_asks(open_page: Open) -> None:
    tab = open_page(document())
    curves = "document.querySelectorAll('#curves .scatterlayer .trace').length"
    assert tab.evaluate(curves) == 27
    tab.get_by_label("Rows").select_option("runs")
    assert tab.locator(".results tbody tr").count() == 27
    tab.get_by_label("State of runs").select_option("all")
    assert tab.locator(".results tbody tr").count() == 28
    tab.locator("#curves .plot").scroll_into_view_if_needed()
    wait_for(tab, f"{curves} === 28")
    tab.get_by_label("State of runs").select_option("diverged")
    assert first_cells(tab) == ["n_layer=2,lr=1,seed=1"]
    tab.get_by_text("End of the log").click()
    assert "loss nan" in tab.locator(".failed pre").inner_text()


def test_a_point_opens_to_its_runs_and_columns_can_be_chosen(open_page: Open) -> None:
    tab = open_page(document())
    tab.get_by_role("button", name="Runs of n_layer=6 lr=0.003").click()
    assert tab.locator(".results tr.run").count() == 3
    assert "seed 2" in tab.locator(".results tr.run").nth(1).inner_text()
    tab.get_by_text("Columns", exact=True).click()
    tab.get_by_role("checkbox", name="memory").uncheck()
    tab.get_by_role("checkbox", name="bits per byte").check()
    headers = " ".join(tab.locator(".results th").all_inner_texts())
    assert "bits per byte" in headers and "memory" not in headers


def test_hover_names_the_overrides_of_a_curve(open_page: Open) -> None:
    tab = open_page(document())
    hover_curve(tab)
    text = tab.locator("#curves .hoverlayer").text_content()
    assert "n_layer=" in text and "lr=" in text and "seed" in text


def hover_curve(tab: Any) -> None:
    """Move the mouse to the last point of the first curve."""
    tab.locator("#curves .plot").scroll_into_view_if_needed()
    box = tab.locator("#curves .scatterlayer .trace .point").nth(10).bounding_box()
    tab.mouse.move(box["x"] - 20, box["y"])
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
    wait_for(tab, "document.querySelector('#curves .hoverlayer .hovertext') !== null")


def test_a_click_shows_the_settings_of_a_curve_and_a_second_compares(open_page: Open) -> None:
    tab = open_page(document())
    hover_curve(tab)
    tab.mouse.down()
    tab.mouse.up()
    wait_for(tab, "state.picked.length === 1")
    beside = tab.locator("aside")
    assert "Settings that are not shared" in beside.inner_text()
    tab.locator(".legend button", has_text="n_layer=2 lr=0.009").click()
    text = beside.inner_text()
    assert "Settings that differ" in text and "n_layer" in text and "0.009" in text
    beside.get_by_role("button", name="Clear").click()
    assert "Click on a curve" in beside.inner_text()


def test_axes_and_smoothing_switch(open_page: Open) -> None:
    tab = open_page(document())
    title = "document.querySelector('#curves .xtitle').textContent"
    for value, name in (
        ("tokens", "tokens"),
        ("seconds", "seconds of training"),
        ("flops", "FLOPs"),
    ):
        tab.get_by_label("Over").select_option(value)
        wait_for(tab, f"{title} === {name!r}")
    layout = "document.querySelector('#curves .plot')"
    last = tab.evaluate(f"{layout}.data[0].x.at(-1)")
    assert last == pytest.approx(2_048_000 * 6 * 196_608 * 6)
    tab.get_by_label("log x").check()
    wait_for(tab, f"{layout}.layout.xaxis.type === 'log'")
    before = tab.evaluate(f"{layout}.data[0].y[5]")
    tab.get_by_label("Smoothing").fill("0.9")
    wait_for(tab, f"{layout}.data[0].y[5] > {before} + 0.1")
    tab.get_by_role("combobox", name="Loss").select_option("train")
    wait_for(tab, f"{layout}.data[0].y.length === 100")


def test_the_view_lives_in_the_url(open_page: Open) -> None:
    tab = open_page(document())
    tab.get_by_label("Filter").fill("n_layer>2")
    wait_for(tab, "state.filter !== ''")
    tab.locator(".results th", has_text="lr").get_by_role("button").click()
    tab.get_by_label("Over").select_option("tokens")
    tab.locator(".legend button").first.click()
    url = tab.url
    tab.reload()
    assert tab.url == url
    assert tab.get_by_label("Filter").input_value() == "n_layer>2"
    assert first_cells(tab) == ["4", "6"] * 3
    wait_for(tab, "document.querySelector('#curves .xtitle')?.textContent === 'tokens'")
    assert tab.locator(".legend button[aria-pressed=true]").count() == 1


@pytest.mark.parametrize(
    "view",
    [
        "#x=nonsense&sort=nothing&picked=99,a&colour=__proto__",
        "#columns=zzz&smooth=NaN",
        "#%",
        "#=",
    ],
)
def test_a_damaged_url_still_opens(open_page: Open, view: str) -> None:
    tab = open_page(document(), view=view)
    assert tab.locator(".results tbody tr").count() == 9


def test_the_page_refreshes_itself_while_runs_are_running(open_page: Open, tmp_path: Path) -> None:
    report = document(is_running=True)
    tab = open_page(report, view="#filter=n_layer%3E2")
    tab.evaluate("window.scrollTo(0, 600)")
    changed = document(is_running=True, title="after the refresh")
    write_page(tmp_path, changed, extra(changed))
    tab.evaluate("getSelection().selectAllChildren(document.querySelector('h1'))")
    tab.clock.run_for(16_000)
    assert tab.locator("h1").inner_text() == "width_depth"  # text is selected
    tab.evaluate("getSelection().removeAllRanges()")
    tab.clock.run_for(16_000)
    wait_for(tab, "document.querySelector('h1')?.textContent === 'after the refresh'")
    assert tab.locator(".results tbody tr").count() == 6
    wait_for(tab, "Math.abs(window.scrollY - 600) < 5")


def test_a_finished_report_does_not_refresh(open_page: Open) -> None:
    tab = open_page(document())
    tab.evaluate("window.stayed = true")
    tab.clock.run_for(60_000)
    assert tab.evaluate("window.stayed")


def hostile_document() -> Plain:
    report = document(title=HOSTILE, question=HOSTILE)
    report["answer"]["sentences"] = report["notes"] = [HOSTILE, "\u202etxt.exe", "长" * 10_000]
    report["answer"]["command"] = HOSTILE
    report["measure"]["name"] = HOSTILE
    report["keys"].append(HOSTILE)
    for point in report["points"]:
        point["values"][HOSTILE] = f"{HOSTILE}{point['index'] % 2}"
        point["label"] = f"{HOSTILE} {'x' * 10_000}"
    for run in report["runs"]:
        run["changes"][HOSTILE] = HOSTILE
        for key in ("name", "folder", "note", "reason", "log", "status"):
            run[key] = f"{HOSTILE}{'y' * 10_000}" if key != "status" else run[key]
    report["counts"][HOSTILE] = 1
    report["importance"].append({"key": HOSTILE, "n": 9, "correlation": 0.5, "share": 0.1})
    report["left_out"] = [{"runs": [0], "reason": HOSTILE}]
    report["scaling"]["sentence"] = report["transfer"]["sentence"] = HOSTILE
    report["transfer"]["rate_key"] = report["transfer"]["rows"][0]["size"] = HOSTILE
    return report


def test_hostile_names_are_text_and_run_nothing(open_page: Open) -> None:
    report = hostile_document()
    more = extra(report)
    more["samples"][0] |= {"text": HOSTILE, "prompt": HOSTILE, "scores": {HOSTILE: 0.5}}
    tab = open_page(report, more, view="#state=all&rows=runs&picked=0,4&heatx=" + "model.n_layer")
    draw_everything(tab)
    hover_curve(tab)
    assert tab.evaluate("window.ran") is None
    assert tab.evaluate("document.querySelectorAll('img, main script, iframe').length") == 0
    assert tab.locator("h1").inner_text() == HOSTILE
    hover = tab.locator("#curves .hoverlayer").text_content()
    assert "</script><script>window.ran=1</script><img src=x" in hover and "$x$ %{y}" in hover
    assert tab.title() == HOSTILE
    assert "\\u202etxt.exe" in tab.locator("#answer").inner_text()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1280


@pytest.mark.parametrize("report", [document(), hostile_document()], ids=["plain", "hostile"])
def test_a_phone_does_not_scroll_sideways(open_page: Open, report: Plain) -> None:
    tab = open_page(report, viewport={"width": 390, "height": 800})
    draw_everything(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


def test_pictures_follow_the_colour_scheme(open_page: Open) -> None:
    tab = open_page(document(), color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    colour = "document.querySelector('#curves .plot')._fullLayout.font.color"
    assert tab.evaluate(background) == "rgb(21, 23, 27)"
    assert tab.evaluate(colour) == "#e6e8eb"
    tab.emulate_media(color_scheme="light")
    wait_for(tab, f"{colour} === '#1b1d21'")
    assert tab.evaluate(background) == "rgb(255, 255, 255)"


def test_print_is_white_has_no_controls_and_all_pictures(open_page: Open) -> None:
    tab = open_page(document(), color_scheme="dark")
    tab.emulate_media(media="print")
    wait_for(tab, "[...document.querySelectorAll('.plot')].every((e) => e.querySelector('svg'))")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for part in (".controls", ".tools", ".copy"):
        assert not tab.locator(part).first.is_visible()
    assert tab.locator(".failed pre").is_visible()
    wait_for(tab, "document.querySelector('#curves .plot')._fullLayout.font.color === '#1b1d21'")


def test_the_command_is_copied(open_page: Open) -> None:
    tab = open_page(document(), permissions=["clipboard-read", "clipboard-write"])
    tab.get_by_role("button", name="Copy").click()
    wait_for(tab, "document.querySelector('button.copy').textContent !== 'Copy'")
    assert tab.evaluate("navigator.clipboard.readText()").startswith("python run_train.py resume=")


def test_without_plotly_the_words_and_the_table_are_shown(chromium: Any, tmp_path: Path) -> None:
    report = document()
    path = write_page(tmp_path, report, extra(report))
    (tmp_path / PLOTLY).unlink()
    tab = chromium.new_page()
    tab.goto(path.resolve().as_uri())
    assert tab.locator(".results tbody tr").count() == 9
    wait_for(tab, "document.body.textContent.includes('plotly.min.js is missing beside this')")
    tab.close()


def test_ten_thousand_runs_open(open_page: Open) -> None:
    report = document(depths=60, rates=56, seeds=3)
    assert len(report["runs"]) > 10_000
    more = extra(report | {"runs": report["runs"][:MOST_RUNS]}, rows=20)
    tab = open_page(report, more, view="#rows=runs")
    assert tab.locator(".results tbody tr").count() == 200
    draw_everything(tab)
    tab.get_by_role("button", name="Show all 10,080").click()
    assert tab.locator(".results tbody tr").count() == 10_080
    curves = "document.querySelectorAll('#curves .scatterlayer .trace').length"
    assert tab.evaluate(curves) == MOST_RUNS


def test_the_pictures_for_the_readme_have_the_widths_of_their_names(tmp_path: Path) -> None:
    report = document()
    write_page(tmp_path, report, extra(report))
    command = [sys.executable, "-m", "benchmarks.report_pictures", tmp_path, "--into", tmp_path]
    subprocess.run(command, check=True, cwd=ROOT)
    # The header of a PNG has its width in bytes 16 to 19.
    for width in (1280, 390):
        picture = (tmp_path / f"report_{width}.png").read_bytes()
        assert int.from_bytes(picture[16:20]) == width
