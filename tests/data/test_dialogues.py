"""Conversations from plays."""

from llm.data.dialogues import LONGEST, dialogues


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
