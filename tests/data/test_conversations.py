"""Rows of all shapes are read as conversations; anything else is refused with its line."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.conversations import LONGEST_ROW, PIECE, read_conversations
from llm.data.template import Message
from llm.errors import Refused

ROW = {"instruction": "Spell it.", "input": "freind", "output": "friend"}
CHAT = {
    "messages": [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "Bye!"},
    ]
}  # fmt: skip
SHARED = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
TURNS = (
    Message("system", "Be kind."), Message("user", "你好"), Message("assistant", "Hi"),
    Message("user", "Bye"), Message("assistant", "Bye!"),
)  # fmt: skip
EXPECTED = [
    (Message("user", "Spell it.", input="freind"), Message("assistant", "friend")), TURNS,
    (Message("user", "a"), Message("assistant", "b")),
]  # fmt: skip


def read(folder: Path, raw: str | bytes) -> list[tuple[Message, ...]]:
    path = folder / "chat.jsonl"
    path.write_bytes(raw.encode() if isinstance(raw, str) else raw)
    return [one.messages for one in read_conversations(path)]


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "byte order mark"])
@pytest.mark.parametrize("indent", [None, 1, 8])
def test_lines_and_lists_hold_the_same_conversations(
    mark: bytes, indent: int | None, tmp_path: Path
) -> None:
    rows = [ROW, CHAT, SHARED]
    assert read(tmp_path, mark + lines(*rows).encode()) == EXPECTED
    as_list = json.dumps(rows, indent=indent, ensure_ascii=False)
    assert read(tmp_path, mark + as_list.encode()) == EXPECTED


def test_lines_may_be_empty_end_in_crlf_and_end_without_a_line_end(tmp_path: Path) -> None:
    text = "\r\n" + lines(ROW, CHAT, SHARED).replace("\n", "\r\n\r\n").rstrip()
    assert read(tmp_path, text) == EXPECTED


@settings(max_examples=25, deadline=None, database=None)
@given(
    texts=st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=9),
    size=st.integers(1, 3),
)
def test_rows_across_the_borders_of_pieces_are_read_whole(
    texts: list[str], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    long = "x" * (PIECE * size // 2)
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    rows = [{"instruction": text + long, "output": text} for text in texts]
    path = tmp_path_factory.mktemp("pieces") / "list.json"
    path.write_text("\n[" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")
    found = list(read_conversations(path))
    assert [one.messages[1].content for one in found] == texts
    assert [one.line for one in found] == list(range(2, 2 + len(texts)))


def turns(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([], "is not a JSON object"),
        ({}, "needs messages, conversations, or instruction and output, and has no keys"),
        ({"text": "x"}, "instruction and output, and has only the key text"),
        (ROW | CHAT, "has both messages and instruction"),
        (ROW | {"output": None}, "has an empty message of assistant"),
        (ROW | {"output": " \n"}, "has an empty message of assistant"),
        (ROW | {"instruction": 3}, "instruction must be text, not 3"),
        (ROW | {"input": ["x"]}, "input must be text, not ['x']"),
        ({"messages": []}, "must be a list of messages"),
        ({"messages": "hi"}, "must be a list of messages"),
        ({"messages": ["hi"]}, "message 1 is not a JSON object"),
        ({"messages": [{"role": "user"}]}, "message 1 has no content: it has only the key role"),
        ({"messages": [{"text": "x"}]}, "message 1 has no role: it has only the key text"),
        (turns("user", "tool"), "message 2 has the unknown role 'tool': known are system, user"),
        (turns("user"), "has no answer: the last message must have the role assistant"),
        (turns("system"), "has no answer"),
        (turns("user", "assistant", "user"), "has no answer"),
        (turns("assistant"), "a message of assistant where one of user is expected"),
        (turns("user", "user"), "a message of user where one of assistant is expected"),
        (turns("user", "system", "assistant"), "system may only come first"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "is not Unicode text: U+D800"),
    ],
)
def test_a_row_that_is_not_a_conversation_is_refused_with_its_line(
    row: Any, reason: str, tmp_path: Path
) -> None:
    for text in (lines(ROW, CHAT) + json.dumps(row), f"[{json.dumps(ROW)},\n\n{json.dumps(row)}]"):
        with pytest.raises(Refused) as refusal:
            read(tmp_path, text)
        assert str(refusal.value).startswith(f"{tmp_path}/chat.jsonl, line 3")
        assert reason in str(refusal.value)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("", "chat.jsonl is empty"),
        (" \n\n", "chat.jsonl is empty"),
        ("[]", "is an empty list"),
        (lines(ROW) + "{", "line 2 is not JSON"),
        (lines(ROW) + "hello", "line 2 is not JSON: Expecting value at column 1"),
        (lines(ROW) + '{"a": 1, "a": 2}', "line 2 cannot be read as JSON: a key"),
        (lines(ROW) + '{"a": 1e999}', "line 2 cannot be read as JSON"),
        (lines(ROW) + '{"a": NaN}', "line 2 cannot be read as JSON"),
        (lines(ROW) + '{"a": ' + "9" * 5000 + "}", "line 2 cannot be read as JSON"),
        (lines(ROW) + "{" + '"a":{' * 200_000, "line 2 cannot be read as JSON"),
        (json.dumps(ROW, indent=1), "line 1 is not JSON"),
        (b"[\n" + lines(ROW).encode() + b"x]", "line 3 is not JSON: 'x' instead of ',' or ']'"),
        (b"[\n" + lines(ROW).encode(), "line 3 is not JSON: the end instead of ',' or ']'"),
        (b"[" + lines(ROW).encode() + b",\n\n{]", "line 4 is not JSON"),
        (b"[" + lines(ROW).encode() + b"]\n x", "line 3 is not JSON: 'x' comes after the list"),
        (b"[" + lines(ROW).encode() + b",\n\xff]", "line 3 is not UTF-8: byte 0xff"),
        ('[{"a": 1, "a": 2}]', "line 1 is not JSON: a key occurs twice"),
        (lines(ROW).encode() + b'{"instruction": "\xff"}', "line 2 is not UTF-8: byte 0xff"),
        (lines(ROW).encode("utf-16"), "is UTF-16, not UTF-8: convert it"),
        (gzip.compress(lines(ROW).encode()), "is compressed: unpack it first"),
        ("\0\0", "line 1 is not JSON"),
        (lines(ROW) + lines(ROW | {"output": "x" * LONGEST_ROW}), "line 2: a row is longer than"),
        (b"[" + lines(ROW | {"output": "x" * LONGEST_ROW}).encode(), "line 1: a row is longer"),
        (b"[" + lines(ROW).encode() + b',\n{"a" "b"},\n' + b"x" * 3 * LONGEST_ROW,
         "line 3 is not JSON: Expecting ':' delimiter, or a row is longer than"),
    ],
    ids=range(24),
)  # fmt: skip
def test_a_damaged_file_is_refused_in_one_line(
    raw: str | bytes, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(Refused) as refusal:
        read(tmp_path, raw)
    assert reason in str(refusal.value)
    assert str(tmp_path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_other_keys_of_a_row_are_ignored_and_a_system_key_is_a_message(tmp_path: Path) -> None:
    row = ROW | {"id": 7, "source": "book", "system": "Be brief."}
    assert read(tmp_path, lines(row)) == [(Message("system", "Be brief."), *EXPECTED[0])]
    shared = {"conversations": [{"role": "user", "content": "a"}, {"from": "gpt", "value": "b"}]}
    assert read(tmp_path, lines(shared)) == [EXPECTED[2]]
