"""Conversations from plays."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llm.data.config import DataConfig
from llm.data.dialogues import LONGEST, dialogues
from llm.data.prepare import prepare
from llm.errors import Refused


def play(*speeches: str) -> str:
    """``"A one"`` -> a speech of A."""
    paragraphs = (f"{speech[0]}:\n{speech[2:]}" for speech in speeches)
    return "\n\n".join(paragraphs) + "\n"


def contents(text: str) -> list[list[str]]:
    return [[message["content"] for message in one] for one in dialogues(text)]


def test_two_characters_who_alternate_make_a_conversation() -> None:
    first, second = dialogues(play("A hello", "B who?", "A me", "B enter"))[0][:2]
    assert first == {"role": "user", "content": "hello"}
    assert second == {"role": "assistant", "content": "who?"}
    assert contents(play("A hello", "B who?", "A me", "B enter")) == [
        ["hello", "who?", "me", "enter"]
    ]


def test_a_third_character_begins_another_conversation() -> None:
    speeches = play("A hello", "B who?", "C I", "A you?", "C I", "B so")
    assert contents(speeches) == [["hello", "who?"], ["I", "you?"]]


def test_a_question_without_an_answer_is_left_out() -> None:
    assert contents(play("A hello", "B who?", "A me")) == [["hello", "who?"]]
    assert contents(play("A alone")) == []
    assert contents("") == []


def test_a_divided_speech_is_one_message() -> None:
    text = play("A hello", "B who?").replace("who?", "who?\n\nSpeak!")
    assert contents(text) == [["hello", "who?\nSpeak!"]]


def test_a_long_exchange_is_divided() -> None:
    speeches = [f"{'AB'[i % 2]} {i}" for i in range(2 * LONGEST)]
    assert [len(one) for one in contents(play(*speeches))] == [LONGEST, LONGEST]


def test_the_conversations_of_all_plays_are_prepared(tmp_path: Path) -> None:
    config = DataConfig(
        name="shakespeare_chat", corpus="dialogues", dir=str(tmp_path), tokenizer="byte",
        val_fraction=0.1, template="plain",
    )  # fmt: skip
    folder = prepare(config)
    rows = (folder / "conversations.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 8775
    assert {"role": "assistant", "content": "Nay, answer me: stand, and unfold yourself."} in [
        message for row in rows for message in json.loads(row)["messages"]
    ]
    with pytest.raises(Refused, match=r"has its own conversations: for x.jsonl use data=chat"):
        prepare(replace(config, path="x.jsonl"))
