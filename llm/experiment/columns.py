"""A table of names and numbers, fitted to the width of a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from llm.experiment.cells import cut

LABEL_SHARE = 0.3  # of the width, which names get before columns do
ROOMY = 2  # columns that are left out before the gaps between the others shrink


@dataclass(frozen=True)
class Filled:
    """A column with a cell for each row. ``least``: its least width."""

    title: str
    cells: Sequence[Text]
    least: int = 0
    justify: Literal["left", "right"] = "right"

    @property
    def width(self) -> int:
        """Cells of a terminal."""
        return max([self.least, cell_len(self.title), *(cell.cell_len for cell in self.cells)])


def table_lines(
    heading: str, names: Sequence[str], columns: Sequence[Filled], dropped: Sequence[str],
    width: int | None,
) -> list[Text]:  # fmt: skip
    """A line of titles, and a line for each name. ``heading``: the title of the names.

    ``dropped``: titles of columns that a narrow table lacks, the least important first.
    ``width=None``: as wide as needed.
    """
    longest = max(map(cell_len, [heading, *names]))
    widths = {column.title: column.width for column in columns}
    shown, gap, room = arrange(longest, widths, dropped, width)
    titles = [Text(column.title) for column in columns]
    rows = [[column.cells[number] for column in columns] for number in range(len(names))]
    lines = []
    for name, row in [(heading, titles), *zip(names, rows, strict=True)]:
        line = Text(set_cell_size(cut(name, room), room), no_wrap=True)
        for column, cell in zip(columns, row, strict=True):
            if column.title in shown:
                cell.align(column.justify, widths[column.title])
                line.append(" " * gap).append_text(cell)
        line.rstrip()
        lines.append(line)
    lines[0].stylize("bold")
    return lines


def arrange(
    longest: int, widths: dict[str, int], dropped: Sequence[str], width: int | None
) -> tuple[set[str], int, int]:
    """The columns that fit beside names of ``longest`` cells, the gap, and the names' room.

    ``dropped``: the columns to leave out of a narrow table, in this order.
    """
    if width is None:
        return set(widths), 2, longest
    least = min(longest, int(LABEL_SHARE * width))
    shown = dict(widths)
    for number, title in enumerate(["", *dropped]):
        shown.pop(title, None)
        for gap in (2, 1) if number >= ROOMY else (2,):
            room = width - sum(shown.values()) - gap * len(shown)
            if room >= least:
                return set(shown), gap, min(room, longest)
    return set(), 1, width
