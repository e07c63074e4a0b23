"""What is printed: short, complete, and plain where nobody watches."""

import io
import logging
import os
import re
import threading
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
from rich.console import Console
from rich.progress import Task

from llm.experiment import console as module
from llm.experiment.console import (
    Screen,
    TrainingScreen,
    byte_progress,
    describe_row,
    duration,
    jobs_table,
    panel,
    say,
    status,
    title,
    warn,
)

ROW = {
    "step": 5, "tokens": 100, "train/loss": 2.10344, "lr": 3e-4, "grad_norm": 1.0,
    "tokens_per_second": 12345.4, "mfu": 0.4102, "peak_memory_bytes": 3 * 2**29,
}  # fmt: skip
VALIDATION = {"val/loss": 2.5, "val/perplexity": 12.2, "val/bits_per_byte": 3.6067}


@pytest.fixture(params=[False, True], ids=["pipe", "terminal"])
def terminal(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def printed(terminal: bool) -> Iterator[io.StringIO]:
    """What is printed to a pipe or a terminal of 120 columns."""
    out = io.StringIO()
    small = Console(
        file=out, force_terminal=terminal, width=120, highlight=False, soft_wrap=True,
        color_system=None,
    )  # fmt: skip
    with patch.object(module, "console", small):
        yield out


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Lines in the run's log."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    module.log.addHandler(handler)
    module.log.setLevel(logging.INFO)
    yield lines
    module.log.removeHandler(handler)


def test_a_row_is_described_in_one_line_of_what_it_holds() -> None:
    shown = "loss 2.1034  lr 3.00e-04  12,345 tok/s  mfu 41.0%  mem 1.50 GiB"
    assert describe_row(ROW) == shown
    assert describe_row(VALIDATION) == "val loss 2.5000  3.607 bits/byte"
    assert describe_row(ROW | {"mfu": None, "lr": None}) == (
        "loss 2.1034  12,345 tok/s  mem 1.50 GiB"
    )
    assert describe_row({"step": 1, "tokens": 2}) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (42.4, "42s"),
        (59.6, "1m 00s"),
        (192, "3m 12s"),
        (3599.7, "1h 00m"),
        (18420, "5h 07m"),
    ],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_run_is_lines_in_a_pipe_and_a_bar_on_a_terminal(
    printed: io.StringIO, terminal: bool, logged: list[str]
) -> None:
    with TrainingScreen(max_steps=10) as screen:
        for step in range(1, 11):
            screen.tick(step)
            screen.log(ROW | {"step": step} | (VALIDATION if step == 10 else {}))
    text = printed.getvalue()
    lines = [re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", line).strip() for line in text.splitlines()]
    assert any(line.startswith("step 10") and "val loss 2.5000" in line for line in lines)
    assert ("\x1b[" in text) is terminal
    if terminal:
        assert "10/10" in text
        assert "step  1/10" not in text
    else:
        assert len(lines) == 10
        assert lines[0].startswith("step  1/10  loss 2.1034")
    assert len(logged) == 10
    assert logged[4] == f"step  5/10  {describe_row(ROW)}"


def drawn(screen: TrainingScreen, width: int) -> str:
    """The live line as it is now on a terminal of ``width`` columns."""
    out = io.StringIO()
    small = Console(file=out, force_terminal=True, width=width, color_system=None)
    screen.bar.live.console = small
    small.print(*screen.bar.get_renderables())
    return out.getvalue()


@pytest.mark.parametrize("width", [25, 40, 60, 80, 100, 200])
def test_a_narrow_line_keeps_step_and_time_left_and_leaves_out_whole_numbers(width: int) -> None:
    screen = TrainingScreen(max_steps=1000)
    for step in (1, 512):
        screen.tick(step)
        screen.log(ROW | {"step": step})
    with patch.object(Task, "time_remaining", 192.0):
        screen.live = True
        screen.log(ROW | {"step": 512})
        line = drawn(screen, width)
    assert line.count("\n") == 1
    assert "step 512/1000" in line
    words = re.findall(
        r"eta 3m 12s|loss 2\.1034|lr 3\.00e-04|12,345 tok/s|mfu 41\.0%|mem .*GiB", line
    )
    assert len(words) == {25: 1, 40: 2, 60: 2, 80: 4, 100: 5, 200: 6}[width]
    left = re.sub(r"[━╸╺\s]|step 512/1000", "", line)
    assert left == re.sub(r"\s", "", "".join(words)), "numbers are whole, or not there"


def test_the_line_says_what_goes_on_besides_training() -> None:
    screen = TrainingScreen(max_steps=3)
    screen.doing("evaluating", 12, 40)
    assert "step 0/3  evaluating 12/40" in drawn(screen, 80)
    screen.doing("saving a checkpoint")
    assert "saving a checkpoint" in drawn(screen, 80)
    screen.tick(1)
    assert "saving" not in drawn(screen, 80)


def test_a_pipe_is_told_what_goes_on_where_that_takes_long(
    printed: io.StringIO, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TrainingScreen(max_steps=3) as screen:
        screen.doing("evaluating", 1, 40)
        assert "evaluating 1/40\n" not in printed.getvalue()
        monkeypatch.setattr(module, "QUIET", 0.0)
        screen.doing("evaluating", 2, 40)
    if not terminal:
        assert printed.getvalue() == "step 0/3  evaluating 2/40\n"


def test_waiting_is_shown_on_a_terminal_and_in_a_pipe_where_it_is_long(
    printed: io.StringIO, terminal: bool, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with status("loading torch"):
        pass
    assert ("loading torch" in printed.getvalue()) is terminal
    told = threading.Event()
    monkeypatch.setattr(module, "QUIET", 0.0)
    monkeypatch.setattr("builtins.print", lambda *_, **__: told.set())
    if not terminal:
        with status("loading torch"):
            assert told.wait(60)
    assert capsys.readouterr().out == ""


def test_a_warning_that_repeats_itself_is_one_line_and_a_count_and_all_of_them_are_in_the_log(
    printed: io.StringIO, terminal: bool, logged: list[str]
) -> None:
    with TrainingScreen(max_steps=400) as screen:
        for step in range(1, 21):
            screen.warn(f"step {step}: loss nan: not finite, left out", "not finite, left out")
            screen.tick(step)
        screen.warn("back to step 0")
        screen.warn("step 21: a spike", "a spike")
        for step in range(21, 400):
            screen.tick(step)
        screen.warn("step 399: a spike", "a spike")
    assert len(logged) == 23
    lines = [line for line in printed.getvalue().splitlines() if "warning: " in line]
    assert [re.sub(r".*warning: ", "", line).rstrip() for line in lines] == [
        "step 1: loss nan: not finite, left out",
        "not finite, left out: 19 more until step 20 (all are in the log)",
        "back to step 0",
        "step 21: a spike",
        "step 399: a spike",
    ]


def test_samples_panels_and_warnings_are_printed_as_they_are_and_logged(
    printed: io.StringIO, logged: list[str]
) -> None:
    TrainingScreen(10).sample(5, "\n[bold]O, [to] be[/]\n")
    panel("training", {"run folder": "outputs/[red]x", "model": "y"})
    warn("W&B [cannot] be reached")
    say("betas=[a,b]")
    title("job 1 of 2: logger.tags=[a,b]")
    for text in ("[bold]O, [to] be[/]", "sample at step 5", "outputs/[red]x", "betas=[a,b]"):
        assert text in printed.getvalue()
    assert "warning: W&B [cannot] be reached" in printed.getvalue()
    assert "logger.tags=[a,b]" in printed.getvalue()
    assert "run folder: outputs/[red]x" in logged
    assert "W&B [cannot] be reached" in logged
    assert any("sample at step 5" in line for line in logged)


def test_a_run_goes_on_when_its_reader_has_gone(logged: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with (
        os.fdopen(writing, "w", encoding="utf-8") as pipe,
        patch.object(module, "console", Screen(file=pipe, width=80)),
        TrainingScreen(max_steps=3) as screen,
    ):
        for step in range(1, 4):
            screen.log(ROW | {"step": step})
        panel("finished", {"run folder": "x"})
    assert len(logged) == 4


def test_progress_over_bytes_is_silent_in_a_pipe(printed: io.StringIO, terminal: bool) -> None:
    with byte_progress("preparing") as on_progress:
        on_progress(1, 2)
        on_progress(2, 2)
    assert ("preparing" in printed.getvalue()) is terminal


def test_jobs_are_listed_with_the_lowest_loss_first(printed: io.StringIO) -> None:
    jobs: list[tuple[str, dict[str, Any]]] = [
        ("seed=[a]", {"status": "finished", "best_val_loss": 2.5, "parameters": 1234567}),
        ("seed=2", {"status": "killed", "wall_seconds": 61.0}),
        (
            "seed=3",
            {
                "status": "finished", "best_val_loss": 1.25, "tokens_per_second": 999.6,
                "peak_memory_bytes": 2**30, "wall_seconds": 5,
            },
        ),
        ("seed=4", {"status": "not started"}),
    ]  # fmt: skip
    jobs_table(jobs)
    rows = [line for line in printed.getvalue().splitlines() if "seed=" in line]
    order = [next(n for n in ("3", "[a]", "2", "4") if f"seed={n}" in row) for row in rows]
    assert order == ["3", "[a]", "2", "4"]
    cells = [[cell.strip() for cell in row.strip("│| ").split("│")] for row in rows]
    assert cells[0] == ["seed=3", "finished", "1.2500", "-", "1,000", "1.00 GiB", "5s"]
    assert cells[1] == ["seed=[a]", "finished", "2.5000", "1,234,567", "-", "-", "-"]
    assert cells[2] == ["seed=2", "killed", "-", "-", "-", "-", "1m 01s"]
    assert cells[3][:2] == ["seed=4", "not started"]


def test_a_loss_of_zero_is_listed_first_and_one_that_is_not_shown_last(
    printed: io.StringIO,
) -> None:
    jobs_table(
        [
            ("seed=1", {"status": "diverged", "best_val_loss": -1.0}),
            ("seed=2", {"status": "finished", "best_val_loss": 0.5}),
            ("seed=3", {"status": "finished", "best_val_loss": 0.0}),
        ]
    )
    rows = [line for line in printed.getvalue().splitlines() if "seed=" in line]
    assert ["seed=3" in rows[0], "seed=2" in rows[1], "seed=1" in rows[2]] == [True] * 3
