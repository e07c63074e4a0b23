"""The view of a sweep: on terminals of any size, in a pipe, and as summary.csv."""

import csv
import io
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len

from llm.commands import command_line
from llm.experiment import console, sweep_screen
from llm.experiment.cells import cut
from llm.experiment.console import Screen
from llm.experiment.rundir import METRICS, SUMMARY, write_summary
from llm.experiment.sweep_csv import BOM, SUMMARY_CSV, csv_text, rows_of, write_csv
from llm.experiment.sweep_screen import SweepScreen, longer
from llm.experiment.sweep_table import SweepTable, labels
from llm.experiment.watch import STATUSES, Watched
from llm.lock import LOCK
from tests.experiment.test_watch import FORECAST, row

HOSTILE = "\x1b]0;title\x07a\x1b[2Jb\rc\u202e[red]=1"
ENDED_BADLY = STATUSES[1:]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "multirun" / "width_depth"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the folders more often than on a user's screen."""
    monkeypatch.setattr(sweep_screen, "TERMINAL_SECONDS", 0.01)
    monkeypatch.setattr(sweep_screen, "PIPE_SECONDS", 0.01)


@pytest.fixture
def printed() -> Iterator[Callable[..., io.StringIO]]:
    """Print to a pipe, or to a terminal with these options of :class:`Screen`."""
    with pytest.MonkeyPatch.context() as patched:

        def use(**options: Any) -> io.StringIO:
            out = io.StringIO()
            options = {"force_terminal": False, "color_system": None} | options
            screen = Screen(file=out, highlight=False, soft_wrap=True, **options)
            patched.setattr(console, "console", screen)
            return out

        yield use


def job(sweep: Path, number: int, state: str = "waiting", **values: Any) -> Watched:
    """A job whose folder shows ``state``."""
    folder = sweep / f"job-{number}"
    folder.mkdir()
    one = Watched(folder, {"model.n_layer": str(number)}, FORECAST, will_run=state != "skipped")
    if state != "waiting":
        (folder / METRICS).write_text(row(number % 90, **{"val/loss": 2 + 1 / (1 + number)}))
    if state == "running":
        (folder / LOCK).write_text("1\n")
    if state in (*STATUSES, "skipped"):
        status = "finished" if state == "skipped" else state
        facts = {"step": 90, "best_val_loss": 2 + 1 / (1 + number), "wall_seconds": 130.0}
        facts |= {"train_seconds": 100.0, "tokens_per_second": 12345.6, "parameters": 1234567}
        # Without the sync to the disk of write_summary: some tests need two hundred.
        (folder / SUMMARY).write_text(json.dumps({"status": status} | facts | values))
    one.refresh()
    assert one.state == state
    return one


def many(sweep: Path) -> list[Watched]:
    """Two hundred jobs in all states."""
    states = ["skipped", "finished", "finished", "waiting", "diverged", "waiting"]
    jobs = [job(sweep, n, states[n % len(states)]) for n in range(198)]
    return [*jobs, job(sweep, 198, "running"), job(sweep, 199, "out_of_memory")]


def plain(table: SweepTable, width: int, height: int, encoding: str = "utf-8") -> list[str]:
    return [line.plain for line in table.live(width, height, encoding)]


def test_two_hundred_jobs_fit_any_terminal(sweep: Path) -> None:
    table = SweepTable("width_depth", many(sweep), 2)
    for width, height in product([20, 40, 80, 120, 200], [1, 2, 3, 5, 12, 24, 60, 300]):
        lines = plain(table, width, height)
        assert 0 < len(lines) <= height
        assert all(cell_len(line) <= width for line in lines)
        assert lines[0].startswith("sweep width_depth:")
        if height > 12:
            assert re.match(r"\.\.\. \d+ more", lines[-1]) or height > len(lines)
            assert "..." not in lines[-1][4:]


def test_80_columns_show_all_that_counts(sweep: Path) -> None:
    lines = plain(SweepTable("width_depth", many(sweep), 2), 80, 24)
    text = " ".join(lines)
    assert text.startswith(
        "sweep width_depth: 99 of 200 finished, 1 running, 33 diverged, 1 out of"
    )
    assert "best 2.0050 (n_layer=198)" in text
    titles = next(line for line in lines if line.startswith("job"))
    assert titles.split() == ["job", "state", "step", "loss", "best", "peak", "tok/s", "eta"]
    first = lines[lines.index(titles) + 1].split()
    assert first[:5] == ["n_layer=198", "running", "18/100", "4.8200", "*2.0050"]
    assert first[5:8] == ["0.00/4.0", "GiB", "50"]
    assert re.fullmatch(r"\.\.\. \d+ more: \d+ .*, \d+ waiting.*", lines[-1])
    shown = [line.split()[1] for line in lines[lines.index(titles) + 1 : -1]]
    assert shown[0] == "running" and "waiting" not in shown
    assert shown.index("diverged") < min(shown.index("finished"), shown.index("skipped"))


def test_numbers_are_never_cut_and_labels_in_their_middle(sweep: Path) -> None:
    one = job(sweep, 1, "running")
    one.values = {"model.n_layer": "12", "data.path": "/a/very/long/path" * 9}
    for width in range(10, 130):
        lines = plain(SweepTable("s", [one], 1), width, 24)
        assert all(cell_len(line) <= width for line in lines)
        title, shown = (line.split() for line in lines[-2:])
        numbers = {"step": "1/100", "loss": "4.9900", "best": "*2.5000", "tok/s": "50"}
        for name, number in numbers.items():
            assert (name in title) == (number in shown), (width, lines)
        assert ("peak" in title) == ("0.00/4.0" in shown)
        assert width < 25 or re.match(r"n_la?y?.*\.\.\..*th +running", lines[-1]), lines[-1]


def test_few_jobs_are_all_shown_in_the_order_of_their_states(sweep: Path) -> None:
    jobs = [job(sweep, 0), job(sweep, 1, "finished"), job(sweep, 2, "killed")]
    jobs += [job(sweep, 3, "running"), job(sweep, 4, "finished"), job(sweep, 5, "skipped")]
    lines = plain(SweepTable("s", jobs, 1), 80, 24)
    names = [line.split()[0] for line in lines if line.startswith("n_layer=")]
    assert [name.removeprefix("n_layer=") for name in names] == ["3", "2", "5", "4", "1", "0"]


@given(st.lists(st.sampled_from(["waiting", "finished", "killed", "running"]), max_size=40),
       st.integers(3, 40))  # fmt: skip
def test_the_lines_and_the_rest_count_every_job(
    tmp_path_factory: pytest.TempPathFactory, states: list[str], height: int
) -> None:
    sweep = tmp_path_factory.mktemp("sweep")
    jobs = [Watched(sweep / str(n), {"seed": str(n)}, FORECAST) for n in range(len(states))]
    for one, state in zip(jobs, states, strict=True):
        one.state = state
    lines = plain(SweepTable("s", jobs, 1), 200, height)
    more = re.fullmatch(r"\.\.\. (\d+) more: .*", lines[-1])
    rest = int(more[1]) if more else 0
    assert len(lines) - 2 - bool(more) + rest == len(jobs)
    assert rest == 0 or len(lines) == height
    if "running" in states and height > 3:
        assert any(" running" in line for line in lines[2:])


def test_a_peak_above_the_budget_is_red(sweep: Path) -> None:
    one = job(sweep, 1, "finished", peak_memory_bytes=5 * 2**30)
    small = job(sweep, 2, "finished", peak_memory_bytes=2**20)
    small.forecast = replace(FORECAST, budget=2**22)
    under, over = SweepTable("s", [one, small], 1).live(120, 24)[-2:]
    assert "5.00/4.0 GiB" in over.plain and "1/4 MiB" in under.plain
    assert [over.plain[span.start : span.end] for span in over.spans if span.style == "red"] == [
        "5.00"
    ]
    assert not [span for span in under.spans if span.style == "red"]


def test_labels_leave_out_the_group_unless_two_keys_would_be_equal() -> None:
    values = [{"model.n_layer": "4", "optimizer.lr": "0.1"}, {"model.n_layer": "6"}]
    assert labels(values) == ["n_layer=4 lr=0.1", "n_layer=6"]
    assert labels([{"a.lr": "1", "b.lr": "2", "+c.x": "3"}]) == ["a.lr=1 b.lr=2 x=3"]
    assert labels([{}]) == ["(no overrides)"]
    assert labels([{"data.path": HOSTILE}]) == [
        "path=\\x1b]0;title\\x07a\\x1b[2Jb\\rc\\u202e[red]=1"
    ]


@given(st.text(max_size=60), st.integers(0, 40))
def test_a_label_is_cut_to_cells(text: str, width: int) -> None:
    assert cell_len(cut(text, width)) <= width
    assert cut(text, 999) == text


def test_chinese_takes_two_cells_and_is_escaped_where_a_terminal_cannot_show_it(
    sweep: Path,
) -> None:
    jobs = [job(sweep, 1, "running"), job(sweep, 2, "finished")]
    jobs[0].values = {"data.name": "红楼梦" * 20}
    table = SweepTable("深度", jobs, 1)
    for width in (40, 79, 80, 120):
        lines = plain(table, width, 24)
        assert all(cell_len(line) <= width for line in lines)
        assert "深度" in lines[0] and "楼梦" in lines[-2]
        ascii_lines = plain(table, width, 24, "ascii")
        assert all(line.isascii() and len(line) <= width for line in ascii_lines)


# --- the screen ---


def finish(one: Watched, **values: Any) -> None:
    (one.folder / LOCK).unlink(missing_ok=True)
    write_summary(one.folder, **{"status": "finished", "step": 100, "wall_seconds": 130.0} | values)


def until(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.005)


def test_a_pipe_gets_a_line_for_each_change(
    sweep: Path, printed: Callable[..., io.StringIO]
) -> None:
    out = printed()
    jobs = [job(sweep, 0, "skipped"), *(job(sweep, n) for n in range(1, 5))]
    screen = SweepScreen(jobs, 1, sweep)
    with screen:
        jobs[1].started()
        until(lambda: "n_layer=1: running" in out.getvalue())
        (jobs[1].folder / LOCK).write_text("1\n")
        finish(jobs[1], best_val_loss=1.93121)
        until(lambda: "n_layer=1: finished" in out.getvalue())
        finish(jobs[2], status="killed", reason="killed by SIGKILL", wall_seconds=5.0)
        jobs[2].started()  # not before: the screen might show it running
        jobs[3].started()
    assert screen.error is None
    lines = out.getvalue().splitlines()
    assert lines[:4] == [
        "1 of 5 jobs are skipped: 1 finished",
        "job 2 of 5  n_layer=1: running",
        "job 2 of 5  n_layer=1: finished, val loss 1.9312, 2m 10s",
        "job 3 of 5  n_layer=2: killed, killed by SIGKILL, 5s",
    ]
    assert "job 4 of 5  n_layer=3: killed, it left no summary.json" in lines
    table = lines[lines.index(next(line for line in lines if line.startswith("job  "))) :]
    assert [line.split()[:3] for line in table[1:3]] == [
        ["n_layer=1", "finished", "*1.9312"], ["n_layer=0", "skipped", "3.0000"]
    ]  # fmt: skip
    assert table[6:9] == [
        "n_layer=2: killed: killed by SIGKILL",
        "n_layer=3: killed: it left no summary.json",
        "1 job did not start",
    ]
    assert table[9:] == [f"csv:  {sweep / SUMMARY_CSV}"]  # and a job that waits may be the best


def test_the_end_says_where_the_results_are_and_how_to_train_the_best_job_longer(
    sweep: Path, printed: Callable[..., io.StringIO]
) -> None:
    out = printed()
    (sweep / "wandb").mkdir()
    one, two = job(sweep, 1), job(sweep, 2)
    with SweepScreen([one, two], 1, sweep):
        finish(one, best_val_loss=2.0)
        finish(two, status="killed", reason="killed by SIGKILL")
    longer = command_line("run_train.py", f"resume={one.folder}", "trainer.max_steps=200")
    assert out.getvalue().splitlines()[-3:] == [
        f"csv:  {sweep / SUMMARY_CSV}",
        f"W&B:  wandb sync {sweep}/wandb",
        f"to train the best one twice as long: {longer}",
    ]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 12), (10, 3)])
def test_a_terminal_gets_a_table_in_place(
    sweep: Path, printed: Callable[..., io.StringIO], width: int, height: int
) -> None:
    out = printed(force_terminal=True, width=width, height=height)
    jobs = [*many(sweep)]
    jobs[3].values = {"data.path": HOSTILE}
    with SweepScreen(jobs, 2, sweep) as screen:
        assert screen.is_live
        start = len(out.getvalue())
        until(lambda: out.getvalue()[start:].count("sweep") > 3)
        console.warn("above the table")
        until(lambda: "above the table" in out.getvalue())
    assert screen.error is None
    text = out.getvalue()
    assert "\x1b]" not in text and "\x07" not in text and "\u202e" not in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is shown again
    lines = re.split(r"(?:\x1b\[[0-9;?]*[a-zA-Z]|[\r\n])+", text[start : text.rindex("warning")])
    assert max(map(cell_len, lines)) <= width


def test_a_dumb_terminal_gets_lines(
    sweep: Path, printed: Callable[..., io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    out = printed(force_terminal=True, width=80, height=24)
    one = job(sweep, 1)
    with SweepScreen([one], 1, sweep) as screen:
        finish(one, best_val_loss=2.0)
    assert not screen.is_live and "\x1b" not in out.getvalue()
    assert "job 1 of 1  n_layer=1: finished, val loss 2.0000, 2m 10s\n" in out.getvalue()


def test_an_error_of_the_view_ends_no_sweep(
    sweep: Path, printed: Callable[..., io.StringIO]
) -> None:
    out = printed(force_terminal=True, width=80, height=24)
    one = job(sweep, 1)
    with (
        patch.object(SweepTable, "heading", side_effect=ZeroDivisionError("broken")),
        SweepScreen([one], 1, sweep) as screen,
    ):
        until(lambda: screen.error is not None)
        console.say("printed all the same")
        finish(one)
    assert "printed all the same" in out.getvalue()
    assert "warning: the view of the sweep failed: ZeroDivisionError: broken" in out.getvalue()
    assert "1 of 1" not in out.getvalue() and (sweep / SUMMARY_CSV).exists()


def test_a_sweep_survives_that_its_folder_is_deleted(
    sweep: Path, printed: Callable[..., io.StringIO]
) -> None:
    out = printed()
    one = job(sweep, 1)
    with SweepScreen([one], 1, sweep):
        one.folder.rmdir()
        (sweep / SUMMARY_CSV).unlink(missing_ok=True)
        sweep.rmdir()
    assert "warning: the view of the sweep failed: " in out.getvalue()


def test_an_interrupted_sweep_shows_its_table_and_passes_the_signal_on(
    sweep: Path, printed: Callable[..., io.StringIO]
) -> None:
    out = printed(force_terminal=True, width=80, height=24)
    one = job(sweep, 1)
    with pytest.raises(KeyboardInterrupt), SweepScreen([one], 1, sweep):
        finish(one, status="interrupted", reason="stopped by SIGINT", best_val_loss=2.0)
        raise KeyboardInterrupt
    assert "n_layer=1: interrupted: stopped by SIGINT" in out.getvalue()
    assert "twice as long" not in out.getvalue()  # nothing has finished


def test_the_best_job_is_trained_longer_by_the_budget_it_had(sweep: Path) -> None:
    one = job(sweep, 1, "finished")
    for forecast, ends in [
        (FORECAST, ["trainer.max_steps=200"]),
        (replace(FORECAST, max_steps=4_000_000), ["trainer.max_steps=8000000"]),
        (replace(FORECAST, max_steps=None, minutes=2.5), ["trainer.max_minutes=5"]),
        (replace(FORECAST, minutes=0.1), ["trainer.max_steps=200", "trainer.max_minutes=0.2"]),
        (None, ["trainer.max_steps=180"]),
    ]:
        one.forecast = forecast
        assert longer(one) == command_line("run_train.py", f"resume={one.folder}", *ends)


def test_a_job_that_was_trained_longer_than_the_others_is_not_the_best(sweep: Path) -> None:
    longer_one = job(sweep, 1, "skipped", step=FORECAST.max_steps + 1, best_val_loss=1.0)
    jobs = [longer_one, job(sweep, 2, "finished", best_val_loss=1.5)]
    assert SweepTable("s", jobs, 1).best(finished=True) is jobs[1]
    rows = list(csv.DictReader(io.StringIO(csv_text(rows_of(jobs)))))
    assert [(one["job"], one["best"]) for one in rows] == [("job-1", ""), ("job-2", "*")]


def test_a_hundred_jobs_end_in_a_table_of_bounded_length(
    sweep: Path, printed: Callable[..., io.StringIO]
) -> None:
    out = printed()
    with SweepScreen(many(sweep), 2, sweep):
        pass
    lines = out.getvalue().splitlines()
    assert len(lines) < 90
    assert any(line.startswith("... 150 more: ") for line in lines)
    assert f"15 more did not finish: see {sweep / SUMMARY_CSV}" in lines


# --- summary.csv ---


def test_summary_csv_has_every_job_of_the_folder_by_loss(
    sweep: Path, printed: Callable[..., io.StringIO]
) -> None:
    printed()
    jobs = [
        job(sweep, 1, "finished"),
        job(sweep, 2, "killed", reason='by, "SIGKILL"'),
        job(sweep, 3),
    ]
    other = Watched(sweep / "earlier", {"model.n_layer": "9", "seed": "宽"}, None, will_run=False)
    other.folder.mkdir()
    write_summary(other.folder, status="finished", best_val_loss=0.5, tokens=7)
    with SweepScreen(jobs, 1, sweep, [other]):
        until((sweep / SUMMARY_CSV).exists)
        finish(jobs[2], best_val_loss=4.0)
    with (sweep / SUMMARY_CSV).open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [one["job"] for one in rows] == ["earlier", "job-2", "job-1", "job-3"]
    assert [one["status"] for one in rows] == ["finished", "killed", "finished", "finished"]
    assert [one["best"] for one in rows] == ["*", "", "", ""]
    assert (rows[0]["seed"], rows[1]["seed"], rows[0]["tokens"]) == ("宽", "", "7")
    assert rows[1]["reason"] == 'by, "SIGKILL"'
    assert (rows[2]["best_val_loss"], rows[2]["tokens_per_second"]) == ("2.5", "12345.6")
    assert (rows[2]["predicted_memory_bytes"], rows[2]["parameters"]) == (str(2**30), "1234567")


@given(st.text(), st.text())
@example("", "-INFINITY")
def test_no_cell_becomes_a_formula_or_two_lines(key: str, value: str) -> None:
    one = Watched(Path("nowhere/x"), {"k" + key: value, key: "1"}, None)
    one.state, one.reason = "killed", value
    rows = list(csv.reader(io.StringIO(csv_text(rows_of([one])))))
    assert len(rows) == 2 and len(rows[0]) == len(rows[1])
    for cell in (*rows[0], *rows[1]):
        assert not re.match(r"[=+@\t\r\n-](?![\d.])", cell)


@pytest.mark.parametrize(
    ("value", "cell"),
    [("-0.1", "-0.1"), ("-1e-3", "-1e-3"), ("=1+1", "'=1+1"),
     ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
     ("@x", "'@x"), ("-x", "'-x"), ("[1,2]", "[1,2]"), ("a\nb", "a\\nb"), ("红楼梦", "红楼梦")],
)  # fmt: skip
def test_numbers_stay_numbers_and_formulas_become_text(value: str, cell: str) -> None:
    one = Watched(Path("nowhere/x"), {"key": value}, None)
    assert next(csv.DictReader(io.StringIO(csv_text(rows_of([one])))))["key"] == cell


def test_summary_csv_is_utf_8_that_excel_recognizes(sweep: Path) -> None:
    write_csv(sweep, rows_of([job(sweep, 1, "finished")]))
    assert (sweep / SUMMARY_CSV).read_bytes().startswith(BOM.encode() + b"best,job,model.n_layer,")
