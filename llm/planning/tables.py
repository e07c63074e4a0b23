"""Show plans in a terminal."""

from collections.abc import Sequence

from rich.table import Column, Table
from rich.text import Text

from llm.experiment.console import console, panel, say
from llm.memory.fit import Fitted
from llm.memory.options import EIGHT_BIT_NEEDS, has_eight_bit
from llm.memory.weights import ALL, n_trained
from llm.planning.picture import as_map, colours
from llm.planning.plan import Plan, largest_line
from llm.settings.custom import Custom
from llm.settings.schema import MuonOptimizer, TrainSettings
from llm.units import format_bytes

ROWS = 40  # points that a table shows
BAR = 56  # characters: with the numbers behind it, at most 80
# Colours of the cells of a map, by mark: fits, fits with changes, does not fit.
STYLES = {" ": "", "*": "yellow", "x": "red"}


def optimizer_in_words(settings: TrainSettings) -> str:
    """``adamw``; for adapters with ``optimizer=muon``, the rate of the AdamW that they get."""
    optimizer = settings.optimizer
    if isinstance(optimizer, MuonOptimizer) and settings.finetune.has_adapters:
        rate = optimizer.lr * optimizer.vector_lr_ratio
        return f"adamw at {rate:.3g} (muon has no effect on adapters)"
    return optimizer.option if isinstance(optimizer, Custom) else optimizer.name


def show_plan(plan: Plan, optimizer: str) -> None:
    """Show a run: a bar, the parts of its peak, the peak of each kind of work, the verdict.

    ``optimizer``: see :func:`optimizer_in_words`.
    """
    _show_run(plan, optimizer)
    _show_bar(plan)
    taken = plan.taken
    table = _table(f"at the peak ({taken.peak})", "part", _number("MiB"), _number("share"))
    for kind, colour in colours([plan]).items():
        size = taken.lines[kind]
        table.add_row(Text(kind, colour), _mib(size), f"{size / taken.total:.1%}")
    table.add_section()
    table.add_row("total", _mib(taken.total), "100.0%")
    table.add_row("budget", _mib(plan.budget))
    console.print(table)
    table = _table("the peak of each kind of work", "work", _number("MiB"), "largest part")
    for moment, lines in taken.moments.items():
        total = sum(lines.values()) + sum(taken.reserve.values())
        table.add_row(moment, _mib(total), largest_line(lines))
    console.print(table)
    _show_verdict(plan)


def _table(title: str, *columns: str | Column) -> Table:
    return Table(*columns, title=title, title_justify="left")


def _number(name: str) -> Column:
    return Column(name, justify="right")


def _show_run(plan: Plan, optimizer: str) -> None:
    setup, model, finetune = plan.setup, plan.setup.model, plan.setup.finetune
    device = f"{setup.device}, {setup.precision}"
    if plan.device == "auto":
        driver = "an" if setup.device == "cuda" else "no"
        device += f" (trainer.device=auto: {driver} NVIDIA driver here)"
    facts = {
        "planned for": device,
        "model": f"{plan.parameters:,} parameters: {_plural(model.n_layer, 'layer')}, width "
        f"{model.n_embed}, {_plural(model.n_head or 0, 'head')} of {model.head_size}, "
        f"{model.vocab_size:,} tokens",
    }
    if finetune != ALL:
        rank = f", of rank {finetune.rank}" if finetune.has_adapters else ""
        bits = f", beside matrices of {finetune.stored_bits} bits" if finetune.stored_bits else ""
        trained = f"{n_trained(model, finetune):,} parameters are trained{rank}{bits}"
        facts["finetune"] = f"{finetune.name}: {trained}"
    parts = setup.batch_size // setup.micro_batch
    split = f" in {parts} micro-batches" if parts > 1 else ""
    batch = f"{_plural(setup.batch_size, 'sequence')} of {model.block_size}"
    panel("plan", facts | {"step": f"{batch}{split}, {optimizer}"})


def _show_bar(plan: Plan) -> None:
    """The parts of the peak side by side; ``|`` is the budget."""
    whole, taken, bar = max(plan.budget, plan.taken.total), 0, Text()
    for kind, colour in colours([plan]).items():
        taken += plan.taken.lines[kind]
        bar.append("█" * (round(BAR * taken / whole) - len(bar)), colour)
    bar.append("·" * (BAR - len(bar)))
    budget = round(BAR * plan.budget / whole)
    bar = bar[:budget] + Text("|", "bold") + bar[budget:]
    console.print(bar + f" {format_bytes(plan.taken.total)} of {format_bytes(plan.budget)}")


def _show_verdict(plan: Plan) -> None:
    peak, ways = plan.prediction, [] if plan.fits else plan.ways
    if plan.fits:
        say(f"fits {plan.limit}, with {format_bytes(plan.budget - peak.total)} to spare")
    else:
        over = f"{format_bytes(peak.total - plan.budget)} more"
        unchanged = "unchanged, it " if plan.started else ""
        largest = f"the largest part is {largest_line(peak.lines)}"
        say(f"{unchanged}does not fit {plan.limit}: it takes {over}; {largest}")
        say("it fits with, fastest first:" if ways else "no setting of how it is run makes it fit")
        for way in ways:
            say(f"  {_changes(way)}")
        if plan.setup.device == "cpu" and "reserve (assumed)" in plan.reserve:
            say("(before a run on a CPU the reserve is measured: try memory.reserve_mib=390)")
    eight_bit = any(setup.state_bits == 8 for setup in (plan.setup, *(way.setup for way in ways)))
    if eight_bit and not has_eight_bit():
        say(f"({EIGHT_BIT_NEEDS})")
    if plan.memory.fit == "auto":
        if plan.fitted is None:
            say("memory.fit=auto finds nothing that fits")
        elif plan.fitted.changes:
            say(f"memory.fit=auto changes {_changes(plan.fitted)}, as shown above")
        else:
            say("memory.fit=auto changes nothing")
    if plan.largest is not None:
        say(plan.largest.sentence)


def _changes(way: Fitted) -> str:
    """The changes as overrides, and their cost."""
    cost = f"{format_bytes(way.prediction.total)}, about {way.slowdown:.2f}x the time per token"
    return f"{' '.join(way.changes)}   ({cost})"


def show_grid(plans: Sequence[Plan], points: int, optimizer: str) -> None:
    """Show a grid: a row for each point, and a map if two numbers vary."""
    if len(plans) == 1:
        say(f"{points:,} points that all take the same:")
        return show_plan(plans[0], optimizer)
    if len(plans) < points:
        keys = " and ".join(plans[0].values)
        say(f"{points:,} points, {len(plans):,} different ones: memory depends only on {keys}")
    devices = {f"{plan.setup.device}, {plan.setup.precision}" for plan in plans}
    budgets = {format_bytes(plan.budget) for plan in plans}
    reserves = {
        f"{kind} {format_bytes(size)}" for plan in plans for kind, size in plan.reserve.items()
    }
    facts = [" / ".join(sorted(each)) for each in (devices, budgets, reserves)]
    columns = [
        Column("overrides", overflow="fold"),
        _number("parameters"),
        _number("peak GiB"),
        Column("fits"),
    ]
    if plans[0].largest:
        columns.append(_number(f"largest {plans[0].largest.key}"))
    table = _table("planned for {}; budget {}, including {}".format(*facts), *columns)
    ways: dict[str, int] = {}  # numbered, and printed below the table to be copied
    for plan in plans[:ROWS]:
        verdict = "yes" if plan.fits else "no"
        if not plan.fits and plan.fitted is not None:
            number = ways.setdefault(" ".join(plan.fitted.changes), len(ways) + 1)
            verdict = f"yes, with ({number})" if plan.started else f"no, but with ({number})"
        row = [plan.label, f"{plan.parameters:,}", f"{plan.taken.total / 2**30:.2f}", verdict]
        if plan.largest:
            row.append("none" if plan.largest.value is None else f"{plan.largest.value:,}")
        table.add_row(*map(Text, row))
    console.print(table)
    if len(plans) > ROWS:
        say(f"and {len(plans) - ROWS:,} more")
    for changes, number in ways.items():
        say(f"({number}) {changes}")
    _show_map(plans)


def _show_map(plans: Sequence[Plan]) -> None:
    """Show the peaks as a matrix, unless it is too large for the terminal."""
    grid = as_map(plans)
    if grid is None or len(grid.rows) > ROWS:
        return
    if 8 * len(grid.columns) + len(grid.down) + 2 > console.width:
        return
    table = Table.grid(padding=(0, 1))
    table.add_row(
        f"{grid.down} \\ {grid.across}", *(Text(c, justify="right") for c in grid.columns)
    )
    for row, plans in zip(grid.rows, grid.cells, strict=True):
        cells = []
        for plan in plans:
            mark = "x" if plan.started is None else "*" if plan.started.changes else " "
            cells.append(Text(f"{plan.taken.total / 2**30:5.2f}{mark}", STYLES[mark]))
        table.add_row(Text(row, justify="right"), *cells)
    say("GiB at the peak (x: does not fit, *: fits as memory.fit=auto changes it)")
    console.print(table)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"
