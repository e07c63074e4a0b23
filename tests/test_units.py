"""How numbers with a unit are written."""

import pytest

from llm.units import format_bytes, format_count


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 KiB"),
        (84, "84 bytes"),
        (130_000, "127 KiB"),
        (2**20, "1 MiB"),
        (2**30, "1.00 GiB"),
        (1.5 * 2**30, "1.50 GiB"),
    ],
)
def test_bytes_have_the_unit_that_keeps_them_short(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (950, "950"),
        (1000, "1k"),
        (32_768, "32.8k"),
        (999_499, "999k"),
        (999_600, "1M"),
        (109_428_480, "109M"),
        (2_457_600_000, "2.46B"),
    ],
)
def test_large_counts_have_three_digits(count: int, text: str) -> None:
    assert format_count(count) == text
