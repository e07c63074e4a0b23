"""The plain values of a checkpoint are read back with their types checked."""

from dataclasses import asdict
from typing import Any

import pytest

from llm.errors import Refused
from llm.evaluation.loss import EvaluationProtocol
from llm.options import from_plain
from llm.training.guard import Recent
from llm.training.precision import LossScale
from llm.training.state import PlainState, Progress, read_run_id

STATE = PlainState(
    Progress(
        step=4, val_loss=1.5, row={"train/loss": None, "val/loss": 2, "lr": 0.1},
        evaluation=EvaluationProtocol("val", "a" * 64, 8, 4, 8.5, tokens=32, bytes=40),
    ),
    Recent([1.5, 2], [0.5], skipped_in_a_row=2), LossScale(1024.0, 7), [{"k": 3}], "abcd1234",
    {"torch": "2"},
)  # fmt: skip


def test_it_comes_back_equal() -> None:
    assert from_plain(PlainState, asdict(STATE), "state: ") == STATE


@pytest.mark.parametrize(
    "changed",
    [
        {"extra": 1}, {"progress": {"step": -1}}, {"progress": {"step": "${oc.env:SECRET}"}},
        {"progress": {"train_seconds": -0.1}}, {"progress": {"row": {"loss": "1"}}},
        {"progress": {"evaluation": {"split": "val"}}},
        {"guard": None}, {"guard": {"losses": ["1.0"]}}, {"guard": {"skipped_in_a_row": -1}},
        {"loss_scale": {"scale": 0.5}}, {"groups": {}}, {"run_id": None},
        {"environment": {"torch": 2}},
    ],
    ids=str,
)  # fmt: skip
def test_other_values_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=r"^state: "):
        from_plain(PlainState, asdict(STATE) | changed, "state: ")


@pytest.mark.parametrize("plain", [None, "", "../x", "a b", "x" * 129, 7])
def test_a_run_id_that_cannot_be_part_of_a_path_is_refused(plain: Any) -> None:
    with pytest.raises(Refused, match="is not an id"):
        read_run_id(plain)
