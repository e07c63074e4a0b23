"""How numbers with a unit are written."""

import pytest

from llm.units import format_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 KiB"),
        (130_000, "127 KiB"),
        (2**20, "1 MiB"),
        (2**30, "1.00 GiB"),
        (1.5 * 2**30, "1.50 GiB"),
    ],
)
def test_bytes_have_the_unit_that_keeps_them_short(count: float, text: str) -> None:
    assert format_bytes(count) == text
