"""A report on the screen: readable at any width, whatever the names hold."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from llm.errors import NotShown
from llm.experiment import console
from llm.experiment.console import Screen
from llm.report.gate import check_gate
from llm.report.record import RunRecord
from llm.report.terminal import MAX_ROWS, point_lines, show, verdict_line
from llm.sealed import Plain
from tests.report.documents import document

HOSTILE = "\x1b]0;title\x07a\x1b[2Jb\rc\u202e[red]=1"


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    out = io.StringIO()
    screen = Screen(file=out, force_terminal=False, highlight=False, soft_wrap=True)
    monkeypatch.setattr(console, "console", screen)
    return out


def lines(report: Plain, width: int | None) -> list[str]:
    return [line.plain for line in point_lines(report, width)]


def test_the_points_are_sorted_by_their_mean_with_intervals_and_verdicts() -> None:
    report = document()
    shown = lines(report, None)
    assert shown[0].split()[:3] == ["settings", "n", "best"]
    assert len(shown) == 1 + len(report["points"])
    means = [float(line.partition(" ± ")[0].split()[-1]) for line in shown[1:]]
    assert means == sorted(means)
    assert " best " in shown[1] and sum(" best " in line for line in shown[1:]) == 1
    best = report["points"][report["answer"]["best"]]
    assert f"{best['mean']:.4f} ± {(best['high'] - best['low']) / 2:.4f}" in shown[1]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    report = document()
    for number, point in enumerate(report["points"]):
        point["label"] = f"corpus=莎士比亚全集第{number}卷 n_layer={number}"
    shown = lines(report, width)
    assert max(map(cell_len, shown)) <= width
    assert ("±" in shown[1]) is (width >= 40), "the loss is the last column to be left out"


def test_a_long_table_says_how_many_points_are_left_out() -> None:
    report = document()
    (first, *_) = report["points"]
    report["points"] = [first | {"index": n, "mean": 2 + n / 100} for n in range(MAX_ROWS + 12)]
    shown = lines(report, None)
    assert len(shown) == MAX_ROWS + 2 and shown[-1] == "... 12 more"
    report["points"] = []
    assert lines(report, None) == []


def test_unknown_numbers_are_empty_and_a_test_loss_gets_a_column() -> None:
    report = document()
    for point in report["points"]:
        point |= {"parameters": None, "peak_memory_bytes": None, "train_seconds": None}
        point |= {"low": None, "high": None}
    assert "test loss" not in lines(report, None)[0]
    report["points"][0]["test_mean"] = 1.23456
    shown = lines(report, None)
    assert "test loss" in shown[0] and "1.2346" in "".join(shown) and "±" not in "".join(shown)
    report["measure"] = {"key": "bits_per_byte", "name": "best", "unit": "bits", "why": "x"}
    assert "bits/byte" in lines(report, None)[0]


def test_names_cannot_control_the_terminal(printed: io.StringIO) -> None:
    report = document()
    report["points"][0]["label"] = report["answer"]["sentences"][0] = HOSTILE
    report["runs"][0] |= {"folder": HOSTILE, "status": "failed", "reason": HOSTILE}
    show(report, [Path(f"{HOSTILE}/report.html")])
    text = printed.getvalue()
    assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text
    assert "[red]=1" in text


def test_a_sentence_is_wrapped_at_words_on_a_terminal_and_one_line_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "n_layer=1 is shown to be worse [which is not markup] by 0.0371 nats"
    for is_terminal in (True, False):
        out = io.StringIO()
        screen = Screen(file=out, highlight=False, soft_wrap=True, width=30)
        monkeypatch.setattr(console, "console", screen)
        monkeypatch.setattr(Screen, "is_terminal", is_terminal)
        console.say_sentence(text)
        lines = [line.rstrip() for line in out.getvalue().splitlines()]
        assert " ".join(lines) == text
        assert (max(map(len, lines)) <= 30) is is_terminal


def test_many_failed_runs_are_counted(printed: io.StringIO) -> None:
    report = document()
    failed = report["runs"][0] | {"status": "out_of_memory", "reason": "too large", "folder": "a"}
    report["runs"] = [failed] * 25
    show(report, [])
    assert printed.getvalue().count("a: out of memory: too large\n") == 20
    assert "5 more did not finish" in printed.getvalue()


def verdict(**values: Any) -> Plain:
    one = {"point": 1, "with": 0, "difference": -0.05, "low": -0.07, "high": -0.03, "p": 0.00031}
    one |= {"p_adjusted": 0.00031, "verdict": "better", "more_seeds": None, "test": "no test"}
    points = [{"label": "a", "runs": [0]}, {"label": "b", "runs": [1]}]
    return {"verdict": one | values, "points": points}


def test_the_verdict_is_one_line() -> None:
    assert verdict_line(verdict()) == (
        "b compared with a: -0.0500, 95 % interval -0.0700 to -0.0300, p = 0.00031: better"
    )
    unclear = verdict(low=-0.2, high=0.1, p=0.4, verdict="not shown", more_seeds=1)
    assert verdict_line(unclear).endswith(
        "p = 0.4: not shown (about 1 more seed each would show it)"
    )
    alone = verdict(low=None, high=None, p=None, verdict="not shown")
    assert verdict_line(alone) == "b compared with a: -0.0500: not shown (no test)"


def test_a_gate_says_why_it_is_not_passed() -> None:
    records = [RunRecord("x", "x", point="a"), RunRecord("y", "y", point="b")]
    check_gate(verdict(), records)
    with pytest.raises(NotShown, match=r"^b is worse than a, by 0\.2000$") as worse:
        check_gate(verdict(verdict="worse", difference=0.2), records)
    assert (worse.value.status, worse.value.exit_status) == ("worse", 10)
    unclear = verdict(verdict="not shown", p=0.4, more_seeds=3)
    message = r"difference is -0\.0500, p = 0\.4; about 3 more seeds each would show it$"
    with pytest.raises(NotShown, match=message) as shown:
        check_gate(unclear, records)
    assert shown.value.status == "not_shown"
    diverged = RunRecord("z", "z", point="b", status="diverged")
    with pytest.raises(NotShown, match=r"^b is not shown to be better: z is diverged$"):
        check_gate(verdict(), [*records, diverged])
    check_gate(verdict(), [*records, replace(diverged, point="a")])
