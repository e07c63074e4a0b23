"""The sentences at the top of a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm.report.numbers import Report


def sentences(report: Report) -> list[str]:
    """What the numbers show, the most useful sentence first."""
    return []


def longer(report: Report) -> str | None:
    """The command that trains the best run twice as long."""
    return None
