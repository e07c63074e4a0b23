"""What a plan looks like in a terminal, in a pipe and as a table, on numbers made up here."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest

from llm.experiment.console import Screen, console
from llm.memory.fit import Fitted
from llm.memory.predict import Prediction, Setup
from llm.model.config import GPTConfig
from llm.planning import plan as plan_module
from llm.planning import tables as plan_tables
from llm.planning.plan import (
    COLOURS,
    Largest,
    Plan,
    kinds,
    largest_of,
    numeric_axes,
    refusal,
    ticks,
    to_csv,
)
from llm.planning.tables import CIVIDIS, show_grid, show_plan

GIB, MIB = 2**30, 2**20
RESERVE = {"reserve (assumed)": GIB // 2}
Shown = Callable[[Plan | Sequence[Plan]], str]


def made(weights: float, budget: float = 4, changes: str = "", **more: Any) -> Plan:
    """A plan that takes ``weights`` GiB and half of one more; or half of that, with ``changes``."""
    setup = Setup(GPTConfig().resolve(77))
    lines = {"weights": int(weights * GIB), "nothing": 0}
    moments = {"training step": lines, "checkpoint": {"weights": lines["weights"] // 2}}
    smaller = Prediction({"training step": {"weights": int(weights * GIB / 2)}}, RESERVE)
    facts: dict[str, Any] = {
        "label": "", "values": {}, "setup": setup, "parameters": 1234, "reserve": RESERVE,
        "prediction": Prediction(moments, RESERVE), "budget": int(budget * GIB), "mode": "off",
        "eight_bit": True, "device": "cpu", "limit": f"memory.budget_gib={budget:g}",
    }  # fmt: skip
    plan = Plan(**facts | more)
    fitted = Fitted(setup, smaller, tuple(changes.split()), 1.25) if changes else None
    if not plan.fits:
        plan.__dict__["fitted"] = fitted  # what is found once is kept
    return plan


def grid(down: Sequence[str], across: Sequence[str], **more: Any) -> list[Plan]:
    """Each takes as much as the product of its two numbers says."""
    return [
        made(float(a) * float(b), values={"model.a": a, "b": b}, label=f"model.a={a} b={b}", **more)
        for a in down
        for b in across
    ]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What is printed, without colours, on a screen of 120 characters."""

    def inner(plans: Plan | Sequence[Plan]) -> str:
        with patch.object(console, "_width", 120), console.capture() as capture:
            if isinstance(plans, Plan):
                show_plan(plans)
            else:
                show_grid(plans, len(plans))
        return capture.get()

    monkeypatch.setattr(plan_module, "cheapest_changes", lambda *_: [])
    return inner


def test_one_plan_shows_what_takes_how_much(shown: Shown) -> None:
    text = shown(made(1.5))
    assert "planned for  cpu, fp32" in text
    assert "1,234 parameters: 4 layers, width 128, 4 heads of 32, 77 tokens" in text
    rows = {row[1]: row[2:] for line in text.splitlines() if len(row := cells(line)) > 3}
    assert rows["weights"][:2] == ["1,536.0", "75.0%"]
    assert rows["reserve (assumed)"][:2] == ["512.0", "25.0%"]
    assert "nothing" not in rows
    assert rows["total"][:2] == ["2,048.0", "100.0%"]
    assert rows["budget"][0] == "4,096.0"
    assert "│ training step │ 2,048.0 │ weights (1.50 GiB) │" in text
    assert "│ checkpoint    │ 1,280.0 │ weights (768 MiB)  │" in text
    assert text.rstrip().endswith("fits memory.budget_gib=4, with 2.00 GiB to spare")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│").split("│")]


def bar(text: str) -> str:
    return next(line for line in text.splitlines() if " of " in line and "|" in line)


def test_the_bar_is_as_long_as_what_is_taken_with_a_mark_at_the_budget(shown: Shown) -> None:
    assert bar(shown(made(1.5))) == "A" * 22 + "B" * 8 + "·" * 30 + "| 2.00 GiB of 4.00 GiB"
    over = "A" * 30 + "|" + "A" * 15 + "B" * 15 + " 2.00 GiB of 1.00 GiB"
    assert bar(shown(made(1.5, budget=1))) == over


def test_a_terminal_gets_colours_for_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    screen = Screen(file=out, force_terminal=True, color_system="truecolor", width=120)
    monkeypatch.setattr(plan_tables, "console", screen)
    show_plan(made(1.5))
    show_grid(grid(["1", "2"], ["1", "5"]), 4)
    assert "█" * 22 in out.getvalue()
    assert "38;2;51;34;136m" in out.getvalue(), "the first colour"
    assert "48;2;0;34;78m" in out.getvalue(), "little"
    assert "48;2;254;232;56m" in out.getvalue(), "much"


def test_what_does_not_fit_names_the_largest_and_the_ways_to_make_it_fit(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(made(5))
    most = "it takes 1.50 GiB more, most is weights (5.00 GiB)"
    assert f"does not fit memory.budget_gib=4: {most}" in text
    assert "no setting of how it is run makes it fit" in text
    way = made(5, changes="model.loss=chunked trainer.micro_batch_size=1").fitted
    monkeypatch.setattr(plan_module, "cheapest_changes", lambda *_: [way])
    text = shown(made(5))
    assert (
        "it would with, fastest first:\n  model.loss=chunked trainer.micro_batch_size=1   " in text
    )
    assert "(3.00 GiB, about 1.25x the time per token)" in text
    assert "memory.fit" not in text
    assert "bitsandbytes" not in text


@pytest.mark.parametrize("there", [True, False])
def test_a_change_to_8_bits_says_what_it_needs_where_that_is_not_there(
    there: bool, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_tables, "has_eight_bit", lambda: there)
    eight = replace(made(1).setup, state_bits=8)
    way = Fitted(eight, made(1).prediction, ("optimizer.state_bits=8",), 1.4)
    monkeypatch.setattr(plan_module, "cheapest_changes", lambda *_: [way])
    told = "pip install -c constraints.txt bitsandbytes)"
    assert (told in shown(made(5))) is not there
    assert (told in shown(made(1, setup=eight))) is not there
    assert told not in shown(made(1))
    refused = refusal([made(5, mode="auto")], 1)
    assert refused is not None and refused.endswith(": change it as told above")


def test_auto_says_what_it_changes_and_shows_that(shown: Shown) -> None:
    text = shown(made(5, changes="model.loss=chunked", mode="auto"))
    assert "memory.fit=auto changes model.loss=chunked   (3.00 GiB, about 1.25x the time" in text
    assert bar(text).endswith("3.00 GiB of 4.00 GiB")
    assert "\nunchanged, it does not fit memory.budget_gib=4: it takes 1.50 GiB more" in text
    assert "memory.fit=auto changes nothing" in shown(made(1, mode="auto"))
    assert "memory.fit=auto finds nothing that fits" in shown(made(5, mode="auto"))


def test_the_largest_is_shown_with_the_next(shown: Shown) -> None:
    size = Largest("n_layer", 14, 99_000, 3 * GIB, 15, 5 * GIB)
    sentence = "largest n_layer that fits: 14 (99,000 parameters, 3.00 GiB); 15 takes 5.00 GiB"
    assert sentence in shown(made(1, largest=size))
    assert "14 (3.00 GiB)" in shown([made(1, largest=size), made(2, largest=size)])
    assert (
        Largest("n_layer", None, None, None, 1, GIB).sentence == "no n_layer fits: 1 takes 1.00 GiB"
    )
    assert Largest("n_layer", None, None, None, 1, None).sentence == "no n_layer fits"
    assert Largest("n_layer", 512, 9, GIB, None, None).sentence.endswith("there is no larger one")
    assert Largest("n_layer", 511, 9, GIB, 512, None).sentence.endswith("; 512 does not fit")


def test_a_grid_has_a_row_for_each_point_and_a_map(shown: Shown) -> None:
    text = shown(grid(["10", "1"], ["0.1", "0.2"], budget=2))
    rows = {row[0]: row for line in text.splitlines() if len(row := cells(line)) == 4}
    assert rows["model.a=10 b=0.1"] == ["model.a=10 b=0.1", "1,234", "1.50", "yes"]
    assert rows["model.a=10 b=0.2"][2:] == ["2.50", "no"]
    assert "planned for cpu, fp32; budget 2.00 GiB, of it reserve (assumed) 512 MiB" in text
    lines = [line.split() for line in text.splitlines()[-3:]]
    assert lines[0] == ["model.a", "\\", "b", "0.1", "0.2"]
    assert lines[1:] == [["1", "0.60", "0.70"], ["10", "1.50", "2.50x"]]


def test_other_grids_have_no_map_and_long_ones_are_cut(shown: Shown) -> None:
    numbers = [str(n) for n in range(1, 8)]
    text = shown(grid(numbers, numbers))
    assert sum("model.a=" in line for line in text.splitlines()) == plan_tables.ROWS
    assert "and 9 more" in text
    assert "x: does not fit" in text
    assert "x: does not fit" not in shown(grid(["1"], [str(n) for n in range(30)])), "too wide"
    names = [made(1, values={"model": name}, label=f"model={name}") for name in ("nano", "tiny")]
    assert "x: does not fit" not in shown(names)


def test_points_that_all_take_the_same_are_shown_as_one(shown: Shown) -> None:
    with console.capture() as capture:
        show_grid([made(1)], 3)
    assert capture.get().startswith("3 points that all take the same:\n╭─ plan")
    with console.capture() as capture:
        show_grid(grid(["1", "2"], ["1"]), 8)
    assert "8 points, 2 different ones: only model.a and b change what they take" in capture.get()


def test_a_refusal_is_a_grid_in_which_nothing_fits_or_a_run_that_would_be_refused() -> None:
    assert refusal([made(1)], 1) is None
    assert refusal([made(9)], 1) is None, "only a question"
    assert refusal([made(9, mode="auto", changes="model.loss=chunked")], 1) is None
    for mode in ("check", "auto"):
        told = refusal([made(9, mode=mode)], 1)
        assert told is not None
        assert told.startswith("the run does not fit memory.budget_gib=4: it takes 9.50 GiB, most")
    assert refusal(grid(["1", "9"], ["1"]), 2) is None
    told = refusal(grid(["8", "9"], ["1"], changes="model.loss=chunked"), 2)
    assert told is not None, "fit=off changes nothing"
    assert told.startswith(
        "none of 2 points fits memory.budget_gib=4: the smallest, model.a=8 b=1,"
    )
    assert refusal(grid(["8", "9"], ["1"], mode="auto"), 2) is not None
    assert refusal(grid(["5", "6"], ["1"], changes="model.loss=chunked", mode="auto"), 2) is None
    none, some = (
        made(1, largest=Largest("n_layer", value, 10, GIB, None, None)) for value in (None, 3)
    )
    assert refusal([none], 1) == ("no n_layer fits memory.budget_gib=4, not even the smallest")
    assert refusal([none, none], 2) == "no n_layer fits at any of 2 points, not even the smallest"
    assert refusal([none, some], 2) is None
    told = refusal([made(9)], 3)
    assert told is not None and "none of 3 points fits memory.budget_gib=4: each takes" in told


def test_the_table_in_a_file_has_all_points_and_the_bytes_of_everything() -> None:
    plans = grid([str(n) for n in range(1, 51)], ["0.1"])
    rows = list(csv.DictReader(io.StringIO(to_csv(plans))))
    assert len(rows) == 50
    first, last = rows[0], rows[-1]
    assert (first["model.a"], first["b"], first["fits"], first["changes"]) == (
        "1",
        "0.1",
        "yes",
        "",
    )
    assert int(first["peak_bytes"]) == int(first["weights"]) + int(first["reserve (assumed)"])
    assert (last["fits"], last["budget_bytes"]) == ("no", str(4 * GIB))
    auto = made(
        5, changes="a=1 b=2", mode="auto", largest=Largest("n_embed", None, None, None, 1, 1)
    )
    (row,) = csv.DictReader(io.StringIO(to_csv([auto])))
    assert (row["fits"], row["changes"], row["largest n_embed"]) == ("yes", "a=1 b=2", "")


def test_every_kind_has_a_colour_and_what_is_no_tensor_is_grey() -> None:
    lines = {f"kind {n}": 1 for n in range(12)}
    plan = made(1, prediction=Prediction({"training step": lines}, RESERVE))
    found = kinds([plan, made(1)])
    assert set(found) == {*lines, "weights", *RESERVE}
    assert found["reserve (assumed)"] == COLOURS[-1]
    assert list(found)[-1] == "reserve (assumed)"
    assert len(set(COLOURS)) == len(COLOURS) and len(set(CIVIDIS)) == len(CIVIDIS)


def test_axes_are_one_or_two_keys_with_numbers() -> None:
    assert numeric_axes(grid(["1", "2"], ["0.5", "1e-3"])) == ["model.a", "b"]
    assert numeric_axes([made(1, values={"a": "1"})]) == ["a"]
    for values in ({"a": "null"}, {"a": "1", "b": "2", "c": "3"}, {"model": "nano"}, {}):
        assert numeric_axes([made(1, values=values)]) == []
    assert ticks(grid(["10", "9"], ["1e1", "2"]), "model.a") == ["9", "10"]
    assert largest_of({"a": 3 * MIB, "b": 4 * MIB}) == "b (4 MiB)"


def test_a_table_says_of_each_point_what_the_map_and_the_file_say(shown: Shown) -> None:
    """At 80 columns, too, where the changes to copy are not broken."""
    changes = (
        "trainer.micro_batch_size=1 trainer.activation_checkpointing=every_2 model.loss=chunked"
    )
    for mode, mark, verdict, fits in (
        ("check", "x", "no, but with (1)", "no"), ("auto", "*", "yes, with (1)", "yes"),
    ):  # fmt: skip
        plans = grid(["1", "2"], ["1", "3"], mode=mode, changes=changes)
        with patch.object(console, "_width", 80), console.capture() as capture:
            show_grid(plans, len(plans))
        text = capture.get()
        assert f"\n(1) {changes}\n" in text
        verdicts = [cells(line)[3] for line in text.splitlines() if "model.a=" in line]
        assert verdicts == ["yes", "yes", "yes", verdict]
        corner = text[text.index("GiB at the peak") :].splitlines()[3].split()[-1]
        assert corner.endswith(mark)
        (row,) = [r for r in csv.DictReader(io.StringIO(to_csv(plans))) if r["b"] == "3"][1:]
        assert row["fits"] == fits
