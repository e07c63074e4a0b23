"""Reads conversations from JSON Lines or a JSON list, row by row, so that a file may be larger than
memory.

A row has one of three shapes. The roles ``human`` and ``gpt`` mean ``user`` and ``assistant``::

    {"instruction": "Spell it.", "input": "freind", "output": "friend"}
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
"""

import codecs
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llm.data.corpus import MARKS
from llm.data.template import Message
from llm.errors import Refused, require
from llm.sealed import JSON, Plain

LONGEST_ROW = 4 << 20  # bytes
PIECE = 1 << 14  # bytes of a JSON list that are read at once
LISTS = ("messages", "conversations")
ROLE_OF = {
    "system": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant",
}  # fmt: skip
GZIP = b"\x1f\x8b"
SPACE = " \t\r\n"


@dataclass(frozen=True)
class Conversation:
    """Messages that end with an answer, and the line of the file where they start."""

    line: int
    messages: tuple[Message, ...]

    def identity(self) -> bytes:
        """Bytes that are equal for equal conversations."""
        turns = [[one.role, one.content, one.input] for one in self.messages]
        return json.dumps(turns, ensure_ascii=False).encode()


def read_conversations(
    path: Path, on_bytes: Callable[[int], None] = lambda count: None
) -> Iterator[Conversation]:
    """The conversations of a file in order. ``on_bytes`` is called with the bytes read so far.

    Raises :class:`llm.errors.Refused` naming the file and the line of the first row that is not a
    conversation.
    """
    try:
        with path.open("rb") as file:
            first = _first_bytes(file, path)
            rows = _rows_of_list if first.lstrip()[:1] == b"[" else _rows_of_lines
            for line, row in rows(file, path):
                yield Conversation(line, tuple(messages_of(row, f"{path}, line {line}")))
                on_bytes(file.tell())
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from None


def messages_of(row: Any, where: str) -> list[Message]:
    """The messages of one row; ``where`` starts an error message: ``chat.jsonl, line 3``."""
    require(isinstance(row, dict), f"{where} is not a JSON object with keys")
    shapes = [key for key in (*LISTS, "instruction") if key in row]
    known = "messages, conversations, or instruction and output"
    require(shapes, f"{where} needs {known}, and has {_few(row)}")
    require(len(shapes) == 1, f"{where} has both {' and '.join(shapes)}: keep one of them")
    if shapes[0] in LISTS:
        messages = list(_turns(row[shapes[0]], f"{where}: {shapes[0]}"))
    else:
        texts = {key: _text(row, key, where) for key in ("instruction", "input", "output")}
        messages = [
            Message("user", texts["instruction"], input=texts["input"]),
            Message("assistant", texts["output"]),
        ]
    if system := _text(row, "system", where):
        messages.insert(0, Message("system", system))
    _check(messages, where)
    return messages


def _turns(values: Any, where: str) -> Iterator[Message]:
    """The messages of a list of turns."""
    is_list = isinstance(values, list) and values
    require(is_list, f"{where} must be a list of messages that is not empty")
    for number, turn in enumerate(values, start=1):
        here = f"{where}, message {number}"
        require(isinstance(turn, dict), f"{here} is not a JSON object with keys")
        role_key = "role" if "role" in turn else "from"
        content_key = "content" if "content" in turn else "value"
        for key, other in ((role_key, "role"), (content_key, "content")):
            require(key in turn, f"{here} has no {other}: it has {_few(turn)}")
        role = _text(turn, role_key, here)
        known = ", ".join(ROLE_OF)
        require(role in ROLE_OF, f"{here} has the unknown role {role[:40]!r}: known are {known}")
        yield Message(ROLE_OF[role], _text(turn, content_key, here))


def _check(messages: list[Message], where: str) -> None:
    """Raise :class:`llm.errors.Refused` unless questions and answers take turns, an answer last."""
    turns = messages[1:] if messages[0].role == "system" else messages
    for number, message in enumerate(turns):
        wanted = ("user", "assistant")[number % 2]
        require(
            message.role == wanted,
            f"{where} has a message of {message.role} where one of {wanted} is expected: system "
            "may only come first, then user and assistant take turns",
        )
        is_empty = not message.content.strip()
        require(not is_empty, f"{where} has an empty message of {message.role}")
    ends_well = turns and len(turns) % 2 == 0
    require(ends_well, f"{where} has no answer: the last message must have the role assistant")


def _text(row: Plain, key: str, where: str) -> str:
    """The text of a key; empty if the key is missing or null."""
    value = row.get(key)
    value = "" if value is None else value
    require(isinstance(value, str), f"{where}: {key} must be text, not {value!r:.40}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise Refused(f"{where}: {key} is not Unicode text: U+{code:04X}") from None
    return str(value)


def _few(row: Plain) -> str:
    """``only the keys id, text``"""
    if not row:
        return "no keys"
    names = [f"{key:.20}" for key in list(row)[:5]] + ["..."] * (len(row) > 5)
    return f"only the key{'s' * (len(row) > 1)} {', '.join(names)}"


def _parsed(raw: bytes, where: str) -> Any:
    try:
        return JSON.decode(raw.decode())
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise Refused(
            f"{where} is not UTF-8: byte {byte:#04x} at its offset {error.start}"
        ) from None
    except json.JSONDecodeError as error:
        raise Refused(f"{where} is not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise Refused(f"{where} cannot be read as JSON: {error}") from None


def _first_bytes(file: BinaryIO, path: Path) -> bytes:
    """The first bytes of a file, which is then read from its start, after a byte order mark."""
    first = file.read(PIECE)
    require(first.strip(), f"{path} is empty")
    require(not first.startswith(GZIP), f"{path} is compressed: unpack it first, as with gunzip")
    for mark, encoding in MARKS.items():
        converted = f"convert it to UTF-8, as with iconv -f {encoding} -t UTF-8"
        require(not first.startswith(mark), f"{path} is {encoding}, not UTF-8: {converted}")
    marked = len(codecs.BOM_UTF8) if first.startswith(codecs.BOM_UTF8) else 0
    file.seek(marked)
    return first[marked:]


def _rows_of_lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, Any]]:
    """The number and the value of each line that is not empty."""
    line = 0
    while raw := file.readline(LONGEST_ROW + 1):
        line += 1
        _require_short(len(raw), path, line)
        if raw.strip():
            yield line, _parsed(raw, f"{path}, line {line}")


def _rows_of_list(file: BinaryIO, path: Path) -> Iterator[tuple[int, Any]]:
    """The line where each element of a JSON list starts, and its value."""
    reader = _ListReader(file, path)
    reader.expect("[")
    reader.skip_space()
    require(not reader.text.startswith("]"), f"{path} is an empty list")
    while True:
        reader.skip_space()
        yield reader.line, reader.element()
        if reader.expect(",]") == "]":
            break
    reader.skip_space()
    if reader.text:
        raise reader.fault(f"{reader.text[:1]!r} comes after the list")


class _ListReader:
    """Reads a JSON list one element at a time. ``text``: what was read and is not parsed yet."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.text, self.line, self.at_end = "", 1, False
        self.decoder = codecs.getincrementaldecoder("utf-8")()

    def fault(self, what: str) -> Refused:
        """An error in the current line."""
        return Refused(f"{self.path}, line {self.line} is not JSON: {what}")

    def more(self, size: int) -> None:
        """Read up to ``size`` bytes more."""
        raw = self.file.read(size)
        self.at_end = not raw
        try:
            self.text += self.decoder.decode(raw, final=self.at_end)
        except UnicodeDecodeError as error:
            line = self.line + self.text.count("\n") + error.object.count(b"\n", 0, error.start)
            byte = error.object[error.start]
            raise Refused(f"{self.path}, line {line} is not UTF-8: byte {byte:#04x}") from None

    def skip(self, count: int) -> None:
        """Drop ``count`` characters."""
        self.line += self.text.count("\n", 0, count)
        self.text = self.text[count:]

    def skip_space(self) -> None:
        """Drop white space; afterwards ``text`` is empty only at the end of the file."""
        while True:
            self.skip(len(self.text) - len(self.text.lstrip(SPACE)))
            if self.text or self.at_end:
                return
            self.more(PIECE)

    def expect(self, marks: str) -> str:
        """Take the next character, which must be one of ``marks``."""
        self.skip_space()
        mark = self.text[:1]
        if not mark or mark not in marks:
            wanted = " or ".join(map(repr, marks))
            raise self.fault(f"{repr(mark) if mark else 'the end'} instead of {wanted}")
        self.skip(1)
        return mark

    def element(self) -> Any:
        """Take the next value."""
        while True:
            try:
                value, end = JSON.raw_decode(self.text)
                break
            except json.JSONDecodeError as error:  # or the rest of the row has not been read
                if self.at_end or len(self.text) > LONGEST_ROW:
                    or_long = f", or a row is longer than {LONGEST_ROW:,} bytes"
                    self.skip(error.pos)
                    raise self.fault(error.msg + ("" if self.at_end else or_long)) from None
                self.more(max(PIECE, len(self.text)))
            except (ValueError, RecursionError) as error:
                raise self.fault(str(error)) from None
        _require_short(end, self.path, self.line)
        self.skip(end)
        return value


def _require_short(size: int, path: Path, line: int) -> None:
    require(size <= LONGEST_ROW, f"{path}, line {line}: a row is longer than {LONGEST_ROW:,} bytes")
