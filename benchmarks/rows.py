"""Shared by all benchmarks: measuring in pairs, rows for a table and a file, and options.

Nothing here imports torch before the first row is measured: :mod:`benchmarks.memory` says why.
"""

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

Pair = tuple[float, float]  # ours, the other's
T = TypeVar("T")
ALL_LEVERS = [  # every setting that saves memory, for run_train.py
    "precision=bf16_weights", "optimizer.state_bits=8", "trainer.step_in_backward=true",
    "trainer.activation_checkpointing=full", "model.loss=chunked",
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One result; ``low`` and ``high`` are the spread of ``ratio`` over the pairs."""

    id: str
    what: str
    ours: float
    other: float
    ratio: float
    low: float
    high: float


def row(
    id: str,
    what: str,
    pairs: Sequence[Pair],
    ratio: Callable[[float, float], float],
    middle: Callable[[Sequence[float]], float] = statistics.median,
) -> Row:
    """The median (or another ``middle``) of both sides and of ``ratio(ours, other)`` of each pair.

    If other work slows the machine down for a while, it slows down both sides of a pair.
    """
    ratios = [ratio(ours, other) for ours, other in pairs]
    return Row(
        id=id,
        what=what,
        ours=middle([ours for ours, _ in pairs]),
        other=middle([other for _, other in pairs]),
        ratio=middle(ratios),
        low=min(ratios),
        high=max(ratios),
    )


def alternate(
    ours: Callable[[int], T], other: Callable[[int], T], repeats: int
) -> list[tuple[T, T]]:
    """``repeats`` pairs, measured in turn; the functions get the number of the pair.

    The order changes from pair to pair, so that no side always runs on a warmer machine.
    """
    pairs: list[tuple[T, T]] = []
    for number in range(repeats):
        if number % 2 == 0:
            mine = ours(number)
            pairs.append((mine, other(number)))
        else:
            theirs = other(number)
            pairs.append((ours(number), theirs))
    return pairs


def seconds_per_call(call: Callable[[], None], at_least: float, fewest: int = 3) -> float:
    """Median seconds of a call, over at least ``at_least`` seconds and ``fewest`` calls."""
    times: list[float] = []
    while sum(times) < at_least or len(times) < fewest:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def report(rows: Iterable[Row], path: Path | None) -> None:
    """Print and write each row at once, so that an interruption loses none."""
    done: list[Row] = []
    for row in rows:
        if not done:
            show_header()
        show(row)
        done.append(row)
        write_json(done, path)


def show_header() -> None:
    """Print the machine and the first line of the table."""
    import torch

    from llm.device import describe

    print(f"{describe(torch.device('cpu'))}, torch {torch.__version__}")
    print(f"{'id':<24}{'ours':>12}{'other':>12}{'ratio':>9}  {'(spread)':<20}what", flush=True)


def show(row: Row) -> None:
    """Print a line of the table."""
    spread = f"({row.low:.3f} to {row.high:.3f})"
    print(
        f"{row.id:<24}{number(row.ours):>12}{number(row.other):>12}{row.ratio:>9.3f}  "
        f"{spread:<20}{row.what}",
        flush=True,
    )


def number(value: float) -> str:
    """``12,345``, ``1.234`` or ``148.9 G``."""
    if value >= 1e9:
        return f"{value / 1e9:,.1f} G"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def write_json(rows: Sequence[Row], path: Path | None) -> None:
    """Write the rows as a list of objects, if there is a ``path``."""
    if path is not None:
        text = json.dumps([asdict(row) for row in rows], indent=1)
        path.write_text(text + "\n", encoding="utf-8")


class Parser(argparse.ArgumentParser):
    """The shared options; ``--only`` if there are ``ids``."""

    def __init__(self, description: str, ids: Sequence[str] = (), repeats: int = 3) -> None:
        super().__init__(description=description)
        self.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
        if repeats:
            self.add_argument(
                "--repeats", type=int, default=repeats, help=f"pairs per row ({repeats})"
            )
        if ids:
            self.add_argument(
                "--only",
                type=lambda text: chosen(text, ids),
                default=ids,
                metavar="ID[,ID]",
                help=", ".join(ids),
            )

    def error(self, message: str) -> NoReturn:
        """Print a mistake of the user as one line, without the usage."""
        line = message.replace("\n", "\\n")
        self.exit(2, f"{self.prog}: {line}\n")


def chosen(text: str, ids: Sequence[str]) -> list[str]:
    """The ``ids`` that ``text`` names, in the order of ``ids``."""
    named = text.split(",")
    if unknown := [id for id in named if id not in ids]:
        raise argparse.ArgumentTypeError(
            f"{','.join(unknown)} is unknown: take from {', '.join(ids)}"
        )
    return [id for id in ids if id in named]


def clone_of_nanogpt(text: str) -> Path:
    """The folder, if it contains nanoGPT's ``model.py``, which is not imported here."""
    path = Path(text) / "model.py"
    source = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if not re.search(r"^class GPT\b", source, flags=re.MULTILINE):
        raise argparse.ArgumentTypeError(
            f"{text} is not a clone of nanoGPT: it has no model.py with a class GPT"
        )
    return Path(text)
