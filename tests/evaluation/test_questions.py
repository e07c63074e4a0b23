"""Questions and pairs from JSONL: their shapes, and the line of each mistake."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm.errors import Refused
from llm.evaluation.questions import CHOICE, PAIRS, Question, read_questions


def written(folder: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "q.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "q.jsonl"


def test_a_question_has_a_prompt_and_a_context_stands_as_it_is(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"question": "2 + 2?", "choices": ["3", "4"], "answer": "B", "subject": "sums"},
        "",
        {"context": "The sky is", "choices": [" blue", "red", "up"], "answer": 0},
        {"context": "", "choices": ["a", "b"], "answer": "a"},
    )
    kind, questions = read_questions(path)
    assert kind == CHOICE
    assert questions == [
        Question("Question: 2 + 2?\nAnswer:", (" 3", " 4"), 1, "sums", 1),
        Question("The sky is", (" blue", " red", " up"), 0, "", 3),
        Question("", ("a", "b"), 0, "", 4),
    ]


def test_pairs_have_the_keys_of_blimp(tmp_path: Path) -> None:
    row = {"sentence_good": "He is.", "sentence_bad": "He are.", "linguistics_term": "agreement"}
    assert read_questions(written(tmp_path, row | {"UID": "x", "pairID": "0"})) == (
        PAIRS, [Question("", ("He is.", "He are."), 0, "agreement", 1)]
    )  # fmt: skip


GOOD = {"context": "a", "choices": ["b", "c"], "answer": 0}
PAIR = {"sentence_good": "a", "sentence_bad": "b"}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "q.jsonl is empty: give one JSON object per line"),
        ([GOOD, "{"], "q.jsonl, line 2 is not JSON"),
        ([GOOD, "[" * 100_000], "q.jsonl, line 2 is not JSON"),
        ([GOOD, "", "[1]"], "q.jsonl, line 3 is not a JSON object"),
        ([GOOD, {"text": "x"}], "line 2 has neither choices and answer nor sentence_good"),
        ([GOOD, PAIR], "line 2 is of another kind than the lines before it"),
        ([{"choices": ["b", "c"], "answer": 0}], "line 1 has neither context nor question"),
        ([GOOD | {"context": 1}], "line 1: context is missing or not a text"),
        ([GOOD | {"choices": ["b"]}], "line 1 must have 2 to 100 choices, and has 1"),
        ([GOOD | {"choices": ["b", ""]}], "line 1: choices must be a list of texts"),
        ([GOOD | {"choices": "bc"}], "line 1: choices must be a list of texts"),
        ([GOOD | {"answer": 2}], "an index from 0 to 1 or a letter from A to B"),
        (['{"context": "a", "context": "b", "choices": ["b", "c"], "answer": 0}'], "a key occurs"),
        ([GOOD | {"answer": -1}], "line 1: answer=-1 is out of range"),
        ([GOOD | {"answer": "C"}], "line 1: answer='C' is out of range"),
        ([GOOD | {"answer": True}], "line 1: answer=True is not an index from 0 to 1"),
        ([GOOD | {"answer": "yes"}], "line 1: answer='yes' is not an index"),
        ([GOOD | {"answer": None}], "line 1: answer=None is not an index"),
        ([PAIR | {"sentence_bad": "a"}], "line 1: both sentences must differ"),
        ([PAIR | {"sentence_bad": 7}], "line 1: sentence_bad is missing or not a text"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_named_with_its_line(rows: list[Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(Refused) as refusal:
        read_questions(written(tmp_path, *rows))
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
