"""Say on standard error which weights a command reads, before it works with them."""

import sys
from collections.abc import Iterable

from llm.interchange.source import Source, introduction


def introduce(sources: Iterable[Source]) -> None:
    """Print the name of each network, for a checkpoint with its step, and its warning if any."""
    for source in sources:
        for line in introduction(source):
            print(line, file=sys.stderr)
