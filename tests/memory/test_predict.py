"""The prediction beside torch's MemTracker, on the real network, optimizer and update."""

import pytest

from benchmarks.tracked import COUNT, drawn, tracked_peak
from llm.memory.predict import training_step

SETUPS = drawn()


@pytest.mark.parametrize("number", range(COUNT))
def test_the_peak_of_a_training_step_is_predicted_as_memtracker_sees_it(number: int) -> None:
    setup = SETUPS[number]
    predicted = max(sum(lines.values()) for lines in training_step(setup).values())
    error = predicted / tracked_peak(setup) - 1
    assert -0.02 <= error <= 0.03, f"{error:+.2%} for {setup}"
