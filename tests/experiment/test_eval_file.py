"""``eval.json``: results are added while the weights stay the same; a damaged file is refused."""

import json
from pathlib import Path

import pytest

from llm.errors import Refused
from llm.experiment.eval_file import SCHEMA, read_results, scores, write_results
from llm.experiment.rundir import EVAL
from llm.sealed import Plain, sealed

LOSS: Plain = {"loss": {"kind": "loss", "loss": 1.5, "bits_per_byte": 2.25, "windows": 4}}
PAIRS: Plain = {"grammar": {"kind": "pairs", "acc": 0.75, "n": 4}}
WEIGHTS = "ab" * 32


def test_results_of_the_same_weights_are_added_and_of_others_replaced(tmp_path: Path) -> None:
    assert read_results(tmp_path) is None
    write_results(tmp_path, "checkpoints/best-00000004", WEIGHTS, LOSS)
    write_results(tmp_path, "checkpoints/best-00000004", WEIGHTS, PAIRS)
    found = read_results(tmp_path)
    assert found is not None and found.tasks == LOSS | PAIRS
    write_results(tmp_path, "checkpoints/best-00000008", "cd" * 32, PAIRS)
    found = read_results(tmp_path)
    assert found is not None
    assert (found.checkpoint, found.tasks) == ("checkpoints/best-00000008", PAIRS)


def test_a_file_of_another_version_or_with_a_changed_number_is_refused_and_replaced(
    tmp_path: Path,
) -> None:
    path = tmp_path / EVAL
    values: Plain = {"schema": SCHEMA, "checkpoint": "c", "weights": WEIGHTS, "tasks": LOSS}
    for text in (
        sealed(values | {"schema": SCHEMA + 1}),
        sealed(values | {"tasks": []}),
        sealed(values).replace("2.25", "2.24"),
        json.dumps(values),
        "{",
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(Refused, match=EVAL):
            read_results(tmp_path)
        write_results(tmp_path, "c", WEIGHTS, PAIRS)
        found = read_results(tmp_path)
        assert found is not None and found.tasks == PAIRS


def test_the_main_numbers_are_losses_with_bits_per_byte_and_shares_of_correct_answers() -> None:
    text: Plain = {"mine.txt": {"loss": 3, "bits_per_byte": None, "acc": True}, "odd": {"n": 1}}
    assert scores(LOSS | PAIRS | text) == {
        "loss": 1.5, "bits/byte": 2.25, "grammar": 0.75, "mine.txt": 3.0,
    }  # fmt: skip
