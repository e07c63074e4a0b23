"""The steps that a profile measures, and a disk that cannot take its files."""

from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerAction

from llm.errors import DiskError
from llm.training.profiling import profiler_of

CPU = torch.device("cpu")
RECORDING = (ProfilerAction.RECORD, ProfilerAction.RECORD_AND_SAVE)


@pytest.mark.parametrize(
    ("steps", "measured"), [(1, [1]), (2, [2]), (3, [3]), (7, [5, 6, 7]), (50, [*range(5, 11)])]
)
def test_steps_5_to_10_are_measured_or_the_last_ones_of_a_shorter_run(
    steps: int, measured: list[int], tmp_path: Path
) -> None:
    action_of = profiler_of(steps, CPU, tmp_path).schedule
    assert [step for step in range(1, steps + 1) if action_of(step - 1) in RECORDING] == measured


def test_a_profile_that_cannot_be_written_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "profile.txt").mkdir()
    with (
        pytest.raises(DiskError, match=r"profile\.txt could not be written"),
        profiler_of(1, CPU, tmp_path),
    ):
        torch.ones(8).exp()
