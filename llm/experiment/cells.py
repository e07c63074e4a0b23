"""Text fitted to the cells of a terminal: a Chinese character takes two."""

from rich.cells import cell_len, set_cell_size
from rich.text import Text


def cut(text: str, width: int) -> str:
    """``text`` in at most ``width`` cells; if it is longer, ``...`` replaces its middle."""
    if cell_len(text) <= width:
        return text
    if width < 5:
        return set_cell_size(text, max(0, width))
    start, end = set_cell_size(text, (width - 2) // 2), text
    while cell_len(end) > (width - 3) // 2:
        end = end[1:]
    return f"{start}...{end}"


def encodable(text: str, encoding: str) -> str:
    """``text`` with escapes for the characters that ``encoding`` lacks."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


def wrapped(text: str, width: int, encoding: str) -> list[Text]:
    """Lines of at most ``width`` cells, broken after a comma, else between words."""
    lines = [""]
    for part in encodable(text, encoding).replace(", ", ",\n").split("\n"):
        for piece in [part] if cell_len(part) <= width else part.split(" "):
            longer = f"{lines[-1]} {piece}".lstrip()
            if cell_len(longer) <= width:
                lines[-1] = longer
            else:
                lines.append(cut(piece, width))
    return [Text(line, "bold", no_wrap=True) for line in lines if line]
