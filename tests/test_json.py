"""``json=true``: one JSON document is the last line of standard output, however a command ends."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm import answer as answers
from tests.command_line import Done, here
from tests.conftest import ROOT

COMMANDS = [path.stem.removeprefix("run_") for path in sorted(ROOT.glob("run_*.py"))]
REQUIRED = {"schema", "command", "status", "exit", "reason", "key", "suggestions"}


def document(done: Done, command: str, status: str, code: int) -> dict[str, Any]:
    """The document, which is all of standard output; what every document has is checked."""
    lines = done.stdout.splitlines()
    assert len(lines) == 1 and done.stdout.endswith("\n"), done.stdout + done.stderr
    found = json.loads(lines[0], parse_constant=pytest.fail)
    assert isinstance(found, dict) and set(found) >= REQUIRED
    assert found["schema"] == 1 and found["command"] == f"run_{command}"
    assert (found["status"], found["exit"], done.returncode) == (status, code, code), done.stderr
    if code:
        assert found["reason"] and f"{found['reason']}" in done.stderr
    return found


TOO_LARGE = ["trainer.batch_size=64", "memory.budget_gib=2", "memory.fit=check"]
# The command, a mistake, its key, and the first suggestion
MISTAKES = [
    *((one, ["json=true", "modl=nano"], "modl", None) for one in COMMANDS if one != "train"),
    ("train", ["modl=nano"], "modl", "model=nano"),
    ("train", ["model=smal"], "model", "model=small"),
    ("train", ["model.n_layr=5"], "model.n_layr", "model.n_layer=5"),
    ("train", ["n_layer=5"], "n_layer", "model.n_layer=5"),
    ("train", ["+model.n_layr=5"], "model.n_layr", "model.n_layer=5"),
    ("train", ["model.n_layer=0"], "model.n_layer", "model.n_layer=1"),
    ("train", ["memory.fit=aut"], "memory.fit", "memory.fit=off"),
    ("train", ["optimizer.lr=fast"], "optimizer.lr", None),
    ("train", ["-m", "model.n_layer=4,0"], "model.n_layer", "model.n_layer=1"),
    ("train", ["--seed=1"], "--seed", "seed=1"),
    ("train", ["--config-dir"], None, None),
    ("train", ["seed", "=", "1"], "seed", None),
    ("train", ["resume=outputs/gone"], "resume", "resume=outputs/here"),
    ("train", ["jsn=true"], "jsn", "json=true"),
    ("plan", ["model.n_layer=0,1"], "model.n_layer", "model.n_layer=1"),
    (
        "plan",
        ["model=small", "trainer.batch_size=64", "memory.budget_gib=2", "memory.fit=check"],
        "memory.budget_gib",
        "tr",
    ),
    ("sample", [], "ckpt", "ckpt=outputs/here"),
    ("sample", ["ckpt=outputs/gone"], "ckpt", "ckpt=outputs/here"),
    ("sample", ["ckpt=outputs/here", "top_k=0"], "top_k", "top_k=1"),
    ("prepare", ["data=poems"], "data", "data="),
    ("prepare", ["data=text", "data.path=gone.txt"], "data.path", None),
]


@pytest.mark.parametrize(("command", "typed", "key", "suggestion"), MISTAKES)
def test_a_mistake_is_named_with_its_key_and_what_to_type_instead(
    command: str, typed: list[str], key: str | None, suggestion: str | None, tmp_path: Path
) -> None:
    (tmp_path / "outputs" / "here" / "checkpoints").mkdir(parents=True)
    done = here(command, "json=true", *typed, cwd=tmp_path)
    found = document(done, command, "refused", 2)
    assert found["key"] == key
    if suggestion is not None:
        assert found["suggestions"][0].startswith(suggestion)
    assert all("=" in word for word in found["suggestions"])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("typed", [["--help"], ["--version"], ["--cfg", "job"]])
def test_a_command_that_only_prints_ends_with_a_document_too(
    command: str, typed: list[str], tmp_path: Path
) -> None:
    found = document(here(command, *typed, "json=true", cwd=tmp_path), command, "finished", 0)
    assert found["output"].strip()
    if typed == ["--help"]:
        assert "json=true" in found["output"]


def test_the_last_json_word_counts_and_another_value_is_refused_as_text(tmp_path: Path) -> None:
    words = "json=true", "json=false", "--version"
    assert "{" not in here("train", *words, cwd=tmp_path).stdout
    document(here("train", "json=false", "json=TRUE", "--version", cwd=tmp_path), "train",
             "finished", 0)  # fmt: skip
    done = here("train", "json=true", "json=maybe", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "run_train.py: json=maybe must be true or false\n"


def test_text_that_only_mentions_the_word_is_left_alone(tmp_path: Path) -> None:
    done = here("sample", "prompt=json=true", "ckpt=gone", cwd=tmp_path)
    assert done.stdout == "" and done.returncode == 2


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def expected(value: Any) -> Any:
    """``value`` after a round trip through JSON, in which NaN and infinity are null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [expected(item) for item in value]
    if isinstance(value, dict):
        return {key: expected(item) for key, item in value.items()}
    return value


@given(values=st.dictionaries(st.text(), values))
def test_any_answer_becomes_one_line_of_json(values: dict[str, Any]) -> None:
    text = answers.as_text(0, values)
    assert len(text.splitlines()) == 1 and text.isascii()
    found = json.loads(text, parse_constant=pytest.fail)
    assert found["exit"] == 0
    assert {key: found[key] for key in values if key != "exit"} == {
        key: expected(value) for key, value in values.items() if key != "exit"
    }


def test_paths_bytes_that_are_no_text_and_other_types_become_text() -> None:
    value = {"folder": Path("a/b"), "name": os.fsdecode(b"a\xff"), 1: (1, {2})}
    assert answers.plain(value) == {"folder": "a/b", "name": "a\\udcff", "1": [1, [2]]}


def test_a_second_command_of_a_process_starts_with_an_empty_document(tmp_path: Path) -> None:
    answers.answer(left_over=1)
    assert "left_over" not in document(
        here("train", "--version", "json=true", cwd=tmp_path), "train", "finished", 0
    )
