"""Settings of the loop that make no sense are refused by name."""

from typing import Any

import pytest

from llm.errors import Refused
from llm.training.options import AT_LEAST_ONE, TrainerOptions


def test_the_micro_batch_is_the_whole_batch_unless_given() -> None:
    assert TrainerOptions(batch_size=12).micro_batch == 12
    assert TrainerOptions(batch_size=12, micro_batch_size=3).micro_batch == 3


@pytest.mark.parametrize("key", AT_LEAST_ONE)
@pytest.mark.parametrize("value", [0, -3])
def test_counts_and_intervals_below_one_are_refused(key: str, value: int) -> None:
    with pytest.raises(Refused, match=rf"trainer\.{key}={value} must be at least 1"):
        TrainerOptions(**{key: value}).check()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"grad_clip": -1.0}, r"trainer\.grad_clip=-1\.0 must be 0 or more"),
        ({"grad_clip": float("nan")}, r"trainer\.grad_clip=nan must be 0 or more"),
        ({"overfit_batches": -1}, r"trainer\.overfit_batches=-1 must be 0 or more"),
        ({"rollbacks": -1}, r"trainer\.rollbacks=-1 must be 0 or more"),
        ({"max_minutes": 0.0}, r"trainer\.max_minutes=0\.0 must be more than 0"),
        ({"batch_size": 4, "micro_batch_size": 3}, r"trainer\.micro_batch_size=3 does not divide"),
        ({"batch_size": 4, "micro_batch_size": 8}, r"trainer\.micro_batch_size=8 does not divide"),
        (
            {"activation_checkpointing": "some"},
            r"trainer\.activation_checkpointing=some is unknown: take one of none, full, every_2",
        ),
    ],
)
def test_other_values_that_make_no_sense_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(Refused, match=named):
        TrainerOptions(**options).check()


def test_never_and_none_are_fine() -> None:
    TrainerOptions(
        micro_batch_size=None, eval_batches=None, checkpoint_interval=None, patience=None,
        sample_interval=None, max_minutes=None, grad_clip=0.0, overfit_batches=0,
    ).check()  # fmt: skip
