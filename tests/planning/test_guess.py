"""A first guess at the time of a run, from the speed of the CPU."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest

from llm.experiment.watch import Forecast
from llm.planning import guess
from llm.planning.guess import guessed_seconds, product_flops

RUN = Forecast(
    parameters=1000, max_steps=10, tokens=640, minutes=None, flops_per_token=6e6, peak=1, budget=2,
    fits=True,
)  # fmt: skip


def test_the_time_follows_from_the_operations_and_the_speed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guess, "product_flops", lambda: 1e9)
    assert guessed_seconds(RUN) == pytest.approx((640 * 6e6 / 1.25e9, 640 * 6e6 / 0.25e9))
    assert guessed_seconds(replace(RUN, tokens=None, minutes=5.0)) is None


def test_the_speed_counts_the_seconds_of_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1e8 < product_flops(256) < 1e14
    ticks = itertools.count(0.0, 0.25)  # seconds that this process computed; no other clock
    monkeypatch.setattr(guess, "time", SimpleNamespace(process_time=lambda: next(ticks)))
    monkeypatch.setattr(guess, "usable_cores", lambda: 3)
    assert product_flops(64) == pytest.approx(3 * 2 * 64**3 / 0.25)
