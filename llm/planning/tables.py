"""What a plan of memory looks like in a terminal."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from llm.experiment.console import console, panel, say
from llm.memory.fit import Fitted
from llm.memory.lora import TARGETS
from llm.memory.options import EIGHT_BIT_NEEDS, has_eight_bit
from llm.memory.weights import n_trained
from llm.planning.plan import Plan, kinds, largest_of, numeric_axes, ticks
from llm.units import format_bytes

ROWS = 40  # points that a table shows
BAR = 60  # characters
# How much, from little to much: five of matplotlib's cividis, for any kind of colour vision.
CIVIDIS = ("#00224e", "#434e6c", "#7d7c78", "#bcae6c", "#fee838")


def show_plan(plan: Plan) -> None:
    """One run: a bar, what takes how much, the peak of each kind of work, and the verdict."""
    _show_what(plan)
    taken, colours = plan.taken, kinds([plan])
    coloured = console.color_system is not None
    marks = {kind: "█" if coloured else chr(ord("A") + n) for n, kind in enumerate(colours)}
    _show_bar(plan, colours, marks)
    table = Table(title=f"at the peak ({taken.peak})", title_justify="left")
    table.add_column("")
    table.add_column("what")
    for column in ("MiB", "share"):
        table.add_column(column, justify="right")
    for kind in colours:
        size = taken.lines[kind]
        share = f"{size / taken.total:.1%}"
        table.add_row(Text(marks[kind], style=colours[kind]), kind, _mib(size), share)
    table.add_section()
    table.add_row("", "total", _mib(taken.total), "100.0%")
    table.add_row("", "budget", _mib(plan.budget))
    console.print(table)
    reserve = sum(taken.reserve.values())
    table = Table(title="the peak of each kind of work", title_justify="left")
    table.add_column("work")
    for column in ("MiB", "most of it"):
        table.add_column(column, justify="right" if column == "MiB" else "left")
    for moment, lines in taken.moments.items():
        table.add_row(moment, _mib(sum(lines.values()) + reserve), largest_of(lines))
    console.print(table)
    _show_verdict(plan)


def _show_what(plan: Plan) -> None:
    setup, model = plan.setup, plan.setup.model
    driver = "an" if setup.device == "cuda" else "no"
    auto = f" (trainer.device=auto: {driver} NVIDIA driver here)"
    cut = setup.batch_size // setup.micro_batch
    panel(
        "plan",
        {
            "planned for": f"{setup.device}, {setup.precision}" + auto * (plan.device == "auto"),
            "model": f"{plan.parameters:,} parameters: {model.n_layer} layers, width "
            f"{model.n_embed}, {model.n_head} heads of {model.head_size}, "
            f"{model.vocab_size:,} tokens",
            **_finetune(plan),
            "step": f"{setup.batch_size} sequences of {model.block_size}"
            + (f" in {cut} micro-batches" if cut > 1 else "")
            + f", {setup.optimizer}",
        },
    )


def _finetune(plan: Plan) -> dict[str, str]:
    if (lora := plan.setup.lora) is None:
        return {}
    names = [weight.name for weight in plan.setup.trained]
    beside = ", ".join(t for t in TARGETS if any(f".{t}.lora_A" in name for name in names))
    numbers = n_trained(plan.setup.model, lora)
    return {
        "LoRA": f"{numbers:,} parameters are trained, of rank {lora.rank} beside "
        f"{beside} (run_train.py cannot do so yet)"
    }


def _show_bar(plan: Plan, colours: dict[str, str], marks: dict[str, str]) -> None:
    """All lines of the peak next to each other; the budget is at ``|``."""
    whole, taken, bar = max(plan.budget, plan.taken.total), 0, Text()
    for kind, colour in colours.items():
        begin = round(BAR * taken / whole)
        taken += plan.taken.lines[kind]
        bar.append(marks[kind] * (round(BAR * taken / whole) - begin), style=colour)
    bar.append("·" * (BAR - len(bar)))
    at = round(BAR * plan.budget / whole)
    bar = bar[:at] + Text("|", style="bold") + bar[at:]
    console.print(bar + f" {format_bytes(plan.taken.total)} of {format_bytes(plan.budget)}")


def _show_verdict(plan: Plan) -> None:
    total = plan.prediction.total
    if plan.fits:
        say(f"fits {plan.limit}, with {format_bytes(plan.budget - total)} to spare")
    else:
        most = largest_of(plan.prediction.lines)
        unchanged = "unchanged, it " if plan.started else ""
        over = format_bytes(total - plan.budget)
        say(f"{unchanged}does not fit {plan.limit}: it takes {over} more, most is {most}")
        found = "it would with, fastest first:"
        say(found if plan.ways else "no setting of how it is run makes it fit")
        for way in plan.ways:
            say(f"  {' '.join(way.changes)}   {_what_it_costs(way)}")
        if plan.setup.device == "cpu" and "reserve (assumed)" in plan.reserve:
            say("(a CPU's reserve is measured before a run, some 390 MiB: memory.reserve_mib=390)")
    told = [plan.setup, *(way.setup for way in ([] if plan.fits else plan.ways))]
    if any(setup.state_bits == 8 for setup in told) and not has_eight_bit():
        say(f"({EIGHT_BIT_NEEDS})")
    if plan.mode == "auto":
        say(_what_auto_does(plan))
    if plan.largest is not None:
        say(plan.largest.sentence)


def _what_auto_does(plan: Plan) -> str:
    if plan.fitted is None:
        return "memory.fit=auto finds nothing that fits"
    changed = f"{' '.join(plan.fitted.changes)}   {_what_it_costs(plan.fitted)}, as shown above"
    return f"memory.fit=auto changes {changed if plan.fitted.changes else 'nothing'}"


def _what_it_costs(way: Fitted) -> str:
    return f"({format_bytes(way.prediction.total)}, about {way.slowdown:.2f}x the time per token)"


def show_grid(plans: Sequence[Plan], points: int) -> None:
    """One row for each point, and a map where two numbers vary."""
    if len(plans) == 1:
        say(f"{points:,} points that all take the same:")
        return show_plan(plans[0])
    if len(plans) < points:
        kept = " and ".join(plans[0].values)
        say(f"{points:,} points, {len(plans):,} different ones: only {kept} change what they take")
    devices = {f"{plan.setup.device}, {plan.setup.precision}" for plan in plans}
    budgets = {format_bytes(plan.budget) for plan in plans}
    aside = {
        f"{kind} {format_bytes(size)}" for plan in plans for kind, size in plan.reserve.items()
    }
    facts = [" / ".join(sorted(each)) for each in (devices, budgets, aside)]
    what = "planned for {}; budget {}, of it {}".format(*facts)
    table = Table(title=what, title_justify="left")
    table.add_column("overrides", overflow="fold")
    for column in ("parameters", "peak GiB"):
        table.add_column(column, justify="right")
    table.add_column("fits")
    asked = plans[0].largest
    if asked is not None:
        table.add_column(f"largest {asked.key}", justify="right")
    ways: dict[str, int] = {}  # below the table, in one piece each, to be copied
    for plan in plans[:ROWS]:
        more = [] if plan.largest is None else [plan.largest.cell]
        peak = f"{plan.taken.total / 2**30:.2f}"
        verdict = Text(_verdict(plan, ways), style="" if plan.started else "bold")
        table.add_row(Text(plan.label), f"{plan.parameters:,}", peak, verdict, *more)
    console.print(table)
    if len(plans) > ROWS:
        say(f"and {len(plans) - ROWS:,} more")
    for changes, number in ways.items():
        say(f"({number}) {changes}")
    axes = numeric_axes(plans)
    if len(axes) == 2:
        _show_map(plans, *axes)


def _verdict(plan: Plan, ways: dict[str, int]) -> str:
    """Whether what would be started fits, and the number of the changes that make it fit; these are
    added to ``ways``.
    """
    if plan.fits or plan.fitted is None:
        return "yes" if plan.fits else "no"
    number = ways.setdefault(" ".join(plan.fitted.changes), len(ways) + 1)
    return f"yes, with ({number})" if plan.started else f"no, but with ({number})"


def _show_map(plans: Sequence[Plan], down: str, across: str) -> None:
    rows, columns = ticks(plans, down), ticks(plans, across)
    found = {(plan.values[down], plan.values[across]): plan for plan in plans}
    totals = [plan.taken.total for plan in plans]
    if 8 * len(columns) + len(down) + 2 > console.width or len(rows) > ROWS:
        return  # the picture has room for more
    grid = Table.grid(padding=(0, 1))
    grid.add_row(f"{down} \\ {across}", *(Text(value, justify="right") for value in columns))
    for row in rows:
        cells = []
        for column in columns:
            plan = found[row, column]
            share = (plan.taken.total - min(totals)) / max(1, max(totals) - min(totals))
            mark = "x" if plan.started is None else "*" if plan.started.changes else " "
            cells.append(Text(f"{plan.taken.total / 2**30:5.2f}{mark}", style=_shade(share)))
        grid.add_row(Text(row, justify="right"), *cells)
    say("GiB at the peak (x: does not fit, *: fits as memory.fit=auto changes it)")
    console.print(grid)


def _shade(share: float) -> str:
    """Black or white, whichever is read more easily, on a colour for 0 to 1."""
    place = share * (len(CIVIDIS) - 1)
    low = min(int(place), len(CIVIDIS) - 2)
    ends = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in CIVIDIS[low : low + 2]]
    red, green, blue = (round(a + (b - a) * (place - low)) for a, b in zip(*ends, strict=True))
    text = "black" if share > 0.5 else "white"
    return f"{text} on #{red:02x}{green:02x}{blue:02x}"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"
