"""The output on a terminal and in a pipe."""

import io
import logging
import re
import threading
from collections.abc import Iterator
from unittest.mock import patch

import pytest

from llm.experiment import console as module
from llm.experiment.console import (
    Screen,
    TrainingScreen,
    byte_progress,
    describe_row,
    duration,
    panel,
    say,
    status,
    title,
    warn,
)
from tests.command_line import wait_until

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
    """The output on a pipe or on a terminal of 120 columns."""
    out = io.StringIO()
    screen = Screen(
        file=out, force_terminal=terminal, width=120, highlight=False, soft_wrap=True,
        color_system=None,
    )  # fmt: skip
    with patch.object(module, "console", screen):
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


def test_a_row_is_described_in_one_line() -> None:
    shown = "loss 2.1034  lr 3.00e-04  12,345 tok/s  mfu 41.0%  mem 1.50 GiB"
    assert describe_row(ROW) == shown
    assert describe_row(VALIDATION) == "val loss 2.5000  3.607 bits/byte"
    assert describe_row(ROW | {"mfu": None, "lr": None}) == (
        "loss 2.1034  12,345 tok/s  mem 1.50 GiB"
    )
    assert describe_row({"step": 1, "tokens": 2}) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (42.4, "42s"), (59.6, "1m 00s"), (192, "3m 12s"), (3599.7, "1h 00m"),
     (18420, "5h 07m")],
)  # fmt: skip
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


def test_a_budget_in_minutes_is_shown_until_the_number_of_steps_is_known(
    printed: io.StringIO, terminal: bool, logged: list[str]
) -> None:
    with TrainingScreen(max_steps=None) as screen:
        screen.log(ROW | {"step": 0})
        screen.timed(72, 300)
        screen.tick(120)
        screen.log(ROW | {"step": 120})
        screen.bar.refresh()
        screen.ends_at(500, "the schedule ends at step 500")
        screen.tick(125)
        screen.log(ROW | {"step": 125})
        screen.bar.refresh()
    row = describe_row(ROW)
    assert logged == [
        f"step 0  {row}", f"step 120  1m 12s of 5m 00s  {row}", "the schedule ends at step 500",
        f"step 125/500  {row}",
    ]  # fmt: skip
    text = printed.getvalue()
    assert "step 120  1m 12s of 5m 00s" in text and "125/500" in text
    assert text.count("the schedule ends at step 500") == 1


@pytest.mark.parametrize("width", [25, 40, 80, 200])
def test_the_live_line_is_one_line_on_a_narrow_terminal(width: int) -> None:
    out = io.StringIO()
    screen = Screen(file=out, force_terminal=True, width=width, color_system=None)
    with patch.object(module, "console", screen):
        training = TrainingScreen(max_steps=1000)
        for step in (1, 512):
            training.tick(step)
            training.log(ROW | {"step": step})
        batches = training.each("evaluating", range(40), 40)
        assert [next(batches) for _ in range(13)] == list(range(13))
        screen.print(training.bar)
    assert out.getvalue().count("\n") == 1
    assert "512/1000" in out.getvalue()
    if width == 200:
        assert f"evaluating 12/40  {describe_row(ROW)}" in out.getvalue()


def test_a_line_in_a_pipe_says_what_takes_long(
    printed: io.StringIO, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TrainingScreen(max_steps=3) as screen:
        with screen.doing("saving"):
            pass
        assert "saving\n" not in printed.getvalue()
        monkeypatch.setattr(module, "QUIET", 0.0)
        assert list(screen.each("evaluating", "ab", 2)) == ["a", "b"]
    if not terminal:
        assert printed.getvalue() == "step 0/3  evaluating 0/2\nstep 0/3  evaluating 1/2\n"


def test_waiting_is_shown_on_a_terminal_and_in_a_pipe_if_it_takes_long(
    printed: io.StringIO, terminal: bool, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with status("loading torch"):
        pass
    assert ("loading torch" in printed.getvalue()) is terminal
    is_printed = threading.Event()
    monkeypatch.setattr(module, "QUIET", 0.0)
    monkeypatch.setattr("builtins.print", lambda *_, **__: is_printed.set())
    if not terminal:
        with status("loading torch"):
            assert is_printed.wait(60)
    assert capsys.readouterr().out == ""


def test_a_repeated_warning_is_shown_less_and_less_often_and_always_logged(
    printed: io.StringIO, logged: list[str]
) -> None:
    with TrainingScreen(max_steps=400) as screen:
        for step in range(1, 21):
            screen.warn(f"step {step}: loss nan", "not finite")
        screen.warn("back to step 0")
        screen.warn("back to step 0")
        screen.warn("step 21: a spike", "spike")
    assert len(logged) == 23
    lines = [line for line in printed.getvalue().splitlines() if "warning: " in line]
    shown = [re.sub(r".*warning: ", "", line).rstrip() for line in lines]
    assert shown[0] == "step 1: loss nan"
    assert [line for line in shown if "of this kind" in line] == [
        f"step {n}: loss nan ({n} of this kind so far; all are in the log)" for n in (2, 4, 8, 16)
    ]
    assert shown[-3:] == ["back to step 0", "back to step 0", "step 21: a spike"]


def test_brackets_are_text_and_not_markup(printed: io.StringIO, logged: list[str]) -> None:
    TrainingScreen(10).show_sample(5, "\n[bold]O, [to] be[/]\n")
    panel("training", {"run folder": "outputs/[red]x", "model": "y"})
    warn("W&B [cannot] be reached")
    say("betas=[a,b]")
    title("job 1 of 2: logger.tags=[a,b]")
    for text in (
        "[bold]O, [to] be[/]", "sample at step 5", "outputs/[red]x", "betas=[a,b]",
        "warning: W&B [cannot] be reached", "logger.tags=[a,b]",
    ):  # fmt: skip
        assert text in printed.getvalue()
    assert "run folder: outputs/[red]x" in logged
    assert "W&B [cannot] be reached" in logged
    assert any("sample at step 5" in line for line in logged)


def test_progress_over_bytes_is_silent_in_a_pipe(printed: io.StringIO, terminal: bool) -> None:
    with byte_progress("preparing [x] {y}") as on_progress:
        if terminal:
            wait_until(lambda: "preparing" in printed.getvalue())
            assert "0/100" not in printed.getvalue(), "rich's total where none is known"
        on_progress(1, 2)
        on_progress(2, 2)
    assert ("preparing [x] {y}" in printed.getvalue()) is terminal
