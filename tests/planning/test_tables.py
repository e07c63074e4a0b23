"""Plans in a terminal: one run, and a grid."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from unittest.mock import patch

import pytest

from llm.experiment.console import Screen, console
from llm.planning import plan as plan_module
from llm.planning import tables
from llm.planning.picture import to_csv
from llm.planning.plan import Plan, find_largest
from llm.planning.tables import show_grid, show_plan
from llm.units import format_bytes
from tests.planning.made import GIB, MIB, grid, plan

TOO_LARGE = {"n_layer": 16, "n_embed": 1024}  # 3.1 GiB


def shown(plans: Plan | Sequence[Plan], points: int = 0, width: int = 120) -> str:
    """The text on a screen without colours."""
    with patch.object(console, "_width", width), console.capture() as capture:
        if isinstance(plans, Plan):
            show_plan(plans, "adamw")
        else:
            show_grid(plans, points or len(plans), "adamw")
    return capture.get()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_the_parts_of_a_plan_add_up_to_its_total() -> None:
    one = plan(n_layer=1)
    text = shown(one)
    assert "planned for  cpu, fp32" in text
    assert "parameters: 1 layer, width 512, 8 heads of 32, 5,000 tokens" in text
    assert "step         8 sequences of 128, adamw" in text
    rows = {row[0]: row[1:] for line in text.splitlines() if len(row := cells(line)) == 3}
    sizes = {name: float(row[0].replace(",", "")) for name, row in rows.items() if row[0][:1] > "0"}
    assert sizes["reserve (assumed)"] == 600 and sizes["budget"] == 4096
    moments = sizes.keys() & one.taken.moments.keys()
    parts = sum(size for name, size in sizes.items() if name in one.taken.lines)
    assert parts == pytest.approx(one.taken.total / MIB, abs=0.5)
    assert sizes["total"] == pytest.approx(parts, abs=0.5)
    assert moments == one.taken.moments.keys() and sizes["training step"] == sizes["total"]
    spare = format_bytes(4 * GIB - one.taken.total)
    assert text.rstrip().endswith(f"fits memory.budget_gib=4, with {spare} to spare")


@pytest.mark.parametrize("budget", [4, 1])
def test_the_bar_shows_the_share_of_the_budget(budget: float) -> None:
    one = plan(budget, **TOO_LARGE)
    (line,) = re.findall("^[█·|]+ .* of .*$", shown(one), re.MULTILINE)
    bar = line.split()[0]
    assert len(line) <= 80
    total, whole = one.taken.total / GIB, max(budget, one.taken.total / GIB)
    cells = len(bar) - 1
    assert bar.count("█") == round(cells * total / whole)
    assert bar.index("|") == round(cells * budget / whole)


def test_a_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    screen = Screen(file=out, force_terminal=True, color_system="truecolor", width=120)
    monkeypatch.setattr(tables, "console", screen)
    show_plan(plan(), "adamw")
    assert len(set(re.findall(r"\x1b\[38;2;([\d;]+)m█", out.getvalue()))) >= 4


def test_a_run_that_does_not_fit_names_the_largest_part_and_the_changes() -> None:
    large = plan(3, **TOO_LARGE)
    text = shown(large)
    over = r"does not fit memory.budget_gib=3: it takes \d+ MiB more; the largest part is optimizer"
    assert re.search(over, text)
    assert f"it fits with, fastest first:\n  {' '.join(large.ways[0].changes)}   (2." in text
    assert "x the time per token)" in text and "memory.fit" not in text
    assert "try memory.reserve_mib=390" in text
    assert "no setting of how it is run makes it fit" in shown(plan(0.65))


@pytest.mark.parametrize("installed", [True, False])
def test_8_bit_state_names_the_library_it_needs_only_if_that_is_missing(
    installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (tables, plan_module):
        monkeypatch.setattr(module, "has_eight_bit", lambda: installed)
    needs = "needs bitsandbytes: pip install -c constraints.txt bitsandbytes"
    small = plan()
    eight_bit = replace(small, setup=replace(small.setup, state_bits=8))
    too_large = plan(2, "auto", **TOO_LARGE)
    assert (needs in shown(eight_bit)) is not installed
    assert (needs in shown(too_large)) is not installed
    assert needs not in shown(small)
    assert ("finds nothing that fits" in shown(too_large)) is not installed


def test_auto_shows_the_run_with_its_changes() -> None:
    changed = plan(3, "auto", **TOO_LARGE)
    text = shown(changed)
    assert f"memory.fit=auto changes {' '.join(changed.changes)}   (" in text
    assert f" {format_bytes(changed.taken.total)} of 3.00 GiB" in text
    assert "\nunchanged, it does not fit memory.budget_gib=3: it takes" in text
    assert "memory.fit=auto changes nothing" in shown(plan(fit="auto"))


@pytest.mark.parametrize("fit", ["off", "auto"])
def test_the_largest_size_fits_and_the_next_one_does_not(fit: str) -> None:
    one = plan(1, fit)
    found = find_largest(one, "n_layer")
    assert found.value is not None
    for n_layer, fits in ((found.value, True), (found.value + 1, False)):
        other = plan(1, fit, n_layer=n_layer)
        assert (other.started is not None) is fits
        if fits or fit == "off":
            assert f"{other.taken.total / MIB:,.1f} MiB" in found.sentence
    assert found.sentence.startswith(f"largest n_layer that fits: {found.value} (")
    asked = [replace(each, largest=find_largest(each, "n_layer")) for each in grid([1, 2], [512])]
    assert find_largest(asked[0], "n_layer").sentence in shown(asked[0])
    assert "largest n_layer" in shown(asked)


def test_the_largest_may_not_exist_or_have_no_larger_one() -> None:
    none = find_largest(plan(0.6), "n_layer")
    assert none.value is None and none.sentence.startswith("no n_layer fits; 1 takes 7")
    whole = find_largest(plan(), "trainer.micro_batch_size")
    assert whole.value == 8 and whole.sentence.endswith("; there is no larger one")
    assert "none" in shown([replace(each, largest=none) for each in grid([1, 2], [512])])


@pytest.mark.parametrize(
    ("fit", "mark", "verdict", "fits"),
    [("check", "x", "no, but with (1)", "no"), ("auto", "*", "yes, with (1)", "yes")],
)
def test_table_map_and_file_agree(fit: str, mark: str, verdict: str, fits: str) -> None:
    """Also at 80 columns, where the changes to be copied stay in one piece."""
    plans = grid([16, 2], [512, 1024], budget_gib=3, fit=fit)
    text = shown(plans, width=80)
    assert "planned for cpu, fp32; budget 3.00 GiB, including reserve (assumed) 600 MiB" in text
    changes = " ".join(plan(3, "auto", **TOO_LARGE).changes)
    assert f"\n(1) {changes}\n" in text
    rows = [cells(line) for line in text.splitlines() if "model.n_layer=" in line]
    assert [row[3] for row in rows] == ["yes", verdict, "yes", "yes"]
    lines = [line.split() for line in text.splitlines()[-3:]]
    assert lines[0] == ["model.n_layer", "\\", "model.n_embed", "512", "1024"]
    assert [line[0] for line in lines[1:]] == ["2", "16"], "in order, whatever was typed first"
    peaks = [f"{each.taken.total / GIB:.2f}" for each in plans]
    assert lines[2][1:] == [peaks[0], peaks[1] + mark]
    file = list(csv.DictReader(io.StringIO(to_csv(plans))))
    assert [row["fits"] for row in file] == ["yes", fits, "yes", "yes"]
    assert [int(row["peak_bytes"]) for row in file] == [each.taken.total for each in plans]
    assert file[1]["changes"] == (changes if fits == "yes" else "")
    parts = [sum(int(row.get(kind, 0)) for kind in plans[0].taken.lines) for row in file]
    assert parts[0] == plans[0].taken.total


def test_long_grids_are_cut_and_others_have_no_map() -> None:
    text = shown(grid(range(1, 8), range(64, 512, 64)))
    assert sum("model.n_layer=" in line for line in text.splitlines()) == 40
    assert "and 9 more" in text and "x: does not fit" in text
    assert "x: does not fit" not in shown(grid([1], range(64, 2048, 64))), "too wide"
    names = [plan(values={"model": name, "seed": "1"}) for name in ("nano", "tiny")]
    assert "x: does not fit" not in shown(names)


def test_keys_that_do_not_change_memory_are_named_and_left_out() -> None:
    two = shown(grid([1, 2], [512]), points=6)
    assert "6 points, 2 different ones: memory depends only on model.n_layer and model.n_em" in two
    assert "3 points that all take the same:\n" in shown([plan()], points=3)
