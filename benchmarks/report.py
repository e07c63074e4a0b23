"""The time and the size of a report: python -m benchmarks.report [--only ID] [--repeats N]

The runs have invented numbers (:mod:`benchmarks.made_runs`). ``other`` is the figure to
compare with.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.made_runs import make_sweep
from benchmarks.rows import Pair, Parser, Row, alternate, report, row
from benchmarks.significance import rows as significance_rows
from benchmarks.sweep import ROOT, run
from llm.experiment.names import folder_name
from llm.experiment.rundir import CONFIG, METRICS, SAMPLES, SUMMARY
from llm.experiment.sweep_file import SWEEP, SweepFile

LIBRARIES = ["-c", "import hydra, omegaconf, scipy.stats"]
LAYERS, RATES = [1, 2, 3, 4, 5], [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0]
OVER: dict[str, list[Any]] = {"model.n_layer": LAYERS, "optimizer.lr": RATES}
EVALUATIONS, BETWEEN = 101, 20  # 2,000 rows
SEEDS_OF_10000 = 250  # of 40 points
CHROMIUM = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu"]
WIDTH, HEIGHT = 1280, 900  # pixels
# Milliseconds from the start of the page until the browser has drawn the frame with a picture.
WATCH = """
const watch = () => document.querySelector(".main-svg .trace, .main-svg .point, .gl-canvas")
  ? requestAnimationFrame(() => { window.firstPicture = performance.now() })
  : requestAnimationFrame(watch);
requestAnimationFrame(watch);
"""


def command(folder: Path) -> tuple[float, float]:
    """Seconds of ``run_report.py`` for the sweep in ``folder``, and its largest memory in MiB."""
    return run([str(ROOT / "run_report.py"), str(folder)], folder.parent)


def libraries(folder: Path) -> tuple[float, float]:
    """The same of the imports that the command needs."""
    return run(LIBRARIES, folder.parent)


def sweep_of_200(folder: Path) -> Path:
    """200 runs of 2,000 rows: 40 points of 5 seeds."""
    return make_sweep(folder / "sweep", OVER, range(5), 0.01, EVALUATIONS, BETWEEN)


def sweep_of_10000(folder: Path) -> Path:
    """10,000 runs of 2 rows: 40 points of 250 seeds."""
    sweep = make_sweep(folder / "sweep", OVER, [0], evaluations=2, rows=1)
    path = sweep / SWEEP
    file = SweepFile(**json.loads(path.read_text(encoding="utf-8")))
    for name, values in list(file.jobs.items()):
        config = (sweep / name / CONFIG).read_text(encoding="utf-8")
        rest = {one: (sweep / name / one).read_bytes() for one in (METRICS, SAMPLES)}
        summary = json.loads((sweep / name / SUMMARY).read_text(encoding="utf-8"))
        for seed in range(1, SEEDS_OF_10000):
            new = values | {"seed": str(seed)}
            job = sweep / folder_name(new)
            job.mkdir()
            text = config.replace("\nseed: 0\n", f"\nseed: {seed}\n")
            (job / CONFIG).write_text(text, encoding="utf-8")
            loss = summary["best_val_loss"] + 0.01 * ((seed * 0.618034) % 1 - 0.5)
            changed = json.dumps(summary | {"best_val_loss": loss, "val_loss": loss})
            (job / SUMMARY).write_text(changed, encoding="utf-8")
            for one, contents in rest.items():
                (job / one).write_bytes(contents)
            file.jobs[job.name] = new
    path.write_text(file.text(), encoding="utf-8")
    return sweep


def report_200(folder: Path, repeats: int) -> Iterator[Row]:
    """Seconds of the whole command."""
    sweep = sweep_of_200(folder)
    pairs = alternate(lambda _: command(sweep)[0], lambda _: libraries(sweep)[0], repeats)
    what = "seconds to report 200 runs of 2,000 rows; to import its libraries; ratio: the first"
    yield row("report_200", what, pairs, lambda ours, other: ours)


def report_page(folder: Path, repeats: int) -> Iterator[Row]:
    """The size of the page of 200 runs, and the time until Chromium shows its first picture."""
    sweep = sweep_of_200(folder)
    command(sweep)
    page, plotly = sweep / "report.html", sweep / "plotly.min.js"
    sizes: list[Pair] = [(page.stat().st_size, plotly.stat().st_size)]
    what = "bytes of the page of 200 runs; of plotly.min.js beside it; ratio: MB of the page"
    yield row("report_page", what, sizes, lambda ours, other: ours / 1e6)
    chromium = next((path for path in CHROMIUM if Path(path).exists()), None)
    if chromium is None:
        print(f"no Chromium among {', '.join(CHROMIUM)}: the first picture is not timed")
        return
    times = first_pictures(chromium, page, repeats)
    what = "ms until Chromium shows the first picture; until it has read the page; ratio: s of both"
    yield row("report_first_picture", what, times, lambda ours, other: ours / 1e3)


def first_pictures(chromium: str, page: Path, repeats: int) -> list[Pair]:
    """Milliseconds until the first picture, and until the page has been read, in a new browser."""
    from playwright.sync_api import sync_playwright

    times: list[Pair] = []
    with sync_playwright() as playwright:
        for _ in range(repeats):
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
            tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            tab.add_init_script(WATCH)
            tab.goto(page.resolve().as_uri())
            picture = tab.wait_for_function("window.firstPicture").json_value()
            read = tab.evaluate("performance.getEntriesByType('navigation')[0].responseEnd")
            times.append((float(picture), float(read)))
            browser.close()
    return times


def report_10000(folder: Path, repeats: int) -> Iterator[Row]:
    """Seconds and memory of the command for 10,000 runs."""
    sweep = sweep_of_10000(folder)
    done: list[tuple[float, float]] = []

    def ours(_: int) -> float:
        done.append(command(sweep))
        return done[-1][0]

    pairs = alternate(ours, lambda _: libraries(sweep)[0], repeats)
    what = "seconds to report 10,000 runs; to import its libraries; ratio: the first"
    yield row("report_10000", what, pairs, lambda ours, other: ours)
    memory: list[Pair] = [(mib, libraries(sweep)[1]) for _, mib in done]
    what = "MiB of that command at its peak; after the imports; ratio: the first"
    yield row("report_10000_mib", what, memory, lambda ours, other: ours)


def significance(folder: Path, repeats: int) -> Iterator[Row]:
    """How often noise is called a difference, and the power: :mod:`benchmarks.significance`."""
    yield from significance_rows()


ROWS: dict[str, Callable[[Path, int], Iterator[Row]]] = {
    "report_200": report_200,
    "report_page": report_page,
    "report_10000": report_10000,
    "significance": significance,
}


def rows(only: list[str], repeats: int) -> Iterator[Row]:
    """The chosen rows, each in a new folder."""
    for id in only:
        with tempfile.TemporaryDirectory() as folder:
            yield from ROWS[id](Path(folder), repeats)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print a table."""
    typed = Parser("The time and the size of a report", list(ROWS)).parse_args(arguments)
    report(rows(typed.only, typed.repeats), typed.json)


if __name__ == "__main__":
    main()
