"""Questions with several answers, and pairs of a good and a bad sentence, from JSONL files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm.errors import Refused, require
from llm.sealed import JSON, Plain, read_bounded

LARGEST = 1 << 28  # bytes of a file
LONGEST_LINE = 1 << 20  # characters
MOST_CHOICES = 100
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CHOICE, PAIRS = "choice", "pairs"
PHENOMENA = ("linguistics_term", "phenomenon", "subject", "category")


@dataclass(frozen=True)
class Question:
    """A context, its possible continuations, and the index of the right one."""

    context: str
    choices: tuple[str, ...]
    answer: int
    phenomenon: str = ""
    line: int = 0  # in its file


def read_rows(path: Path) -> Iterator[tuple[int, Plain]]:
    """The JSON objects of a JSONL file with their line numbers; empty lines are skipped.

    Raises :class:`llm.errors.Refused` naming the first line that is not a JSON object.
    """
    try:
        text = read_bounded(path, LARGEST).decode("utf-8-sig")
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise Refused(f"{path} is not UTF-8 text: byte {error.start} is invalid") from None
    is_empty = True
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        is_short = len(line) <= LONGEST_LINE
        require(is_short, f"{path}, line {number} has more than {LONGEST_LINE:,} characters")
        try:
            row = JSON.decode(line)
        except (ValueError, RecursionError) as error:
            raise Refused(f"{path}, line {number} is not JSON: {error}") from None
        require(isinstance(row, dict), f"{path}, line {number} is not a JSON object")
        is_empty = False
        yield number, row
    require(not is_empty, f"{path} is empty: give one JSON object per line")


def kind_of(row: Plain) -> str | None:
    """:data:`CHOICE`, :data:`PAIRS`, or None for other rows, such as conversations."""
    if "sentence_good" in row or "sentence_bad" in row:
        return PAIRS
    return CHOICE if "choices" in row else None


def read_questions(path: Path) -> tuple[str, list[Question]]:
    """The kind of a file and its questions.

    Raises :class:`llm.errors.Refused` naming the line of the first mistake.
    """
    kind, questions = "", list[Question]()
    for number, row in read_rows(path):
        where = f"{path}, line {number}"
        found = kind_of(row)
        require(
            found is not None,
            f"{where} has neither choices and answer nor sentence_good and sentence_bad",
        )
        kind = kind or str(found)
        require(
            kind == found, f"{where} is of another kind than the lines before it: make two files"
        )
        make = pair if kind == PAIRS else _choice
        questions.append(make(row, where, number))
    return kind, questions


def pair(row: Plain, where: str = "", line: int = 0) -> Question:
    """A minimal pair with BLiMP's keys as a question: the good sentence is the answer."""
    good, bad = (_text(row, key, where) for key in ("sentence_good", "sentence_bad"))
    require(good and bad and good != bad, f"{where}: both sentences must differ and not be empty")
    return Question("", (good, bad), 0, _phenomenon(row), line)


def _choice(row: Plain, where: str, line: int) -> Question:
    require("context" in row or "question" in row, f"{where} has neither context nor question")
    if "context" in row:
        context = _text(row, "context", where)
    else:
        context = f"Question: {_text(row, 'question', where)}\nAnswer:"
    choices = row["choices"]
    is_list = isinstance(choices, list) and all(isinstance(one, str) and one for one in choices)
    require(is_list, f"{where}: choices must be a list of texts that are not empty")
    require(
        2 <= len(choices) <= MOST_CHOICES,
        f"{where} must have 2 to 100 choices, and has {len(choices)}",
    )
    answer = _answer(row.get("answer"), len(choices), where)
    # A space separates a choice from its context, unless one of them has it already.
    space = "" if not context or context[-1].isspace() else " "
    texts = tuple(one if one[0].isspace() else space + one for one in choices)
    return Question(context, texts, answer, _phenomenon(row), line)


def _answer(value: Any, count: int, where: str) -> int:
    """The index of the answer, which is given as an index (from 0) or as a letter (from A)."""
    index = value
    if isinstance(value, str):
        letter = value.strip().upper()
        index = LETTERS.index(letter) if len(letter) == 1 and letter in LETTERS else None
    allowed = f"an index from 0 to {count - 1} or a letter from A to {LETTERS[:count][-1]}"
    require(type(index) is int, f"{where}: answer={value!r:.40} is not {allowed}")
    require(0 <= index < count, f"{where}: answer={value!r:.40} is out of range: give {allowed}")
    return int(index)


def _phenomenon(row: Plain) -> str:
    found = (row.get(key) for key in PHENOMENA)
    return next((one[:60] for one in found if isinstance(one, str) and one), "")


def _text(row: Plain, key: str, where: str) -> str:
    value = row.get(key)
    require(isinstance(value, str), f"{where}: {key} is missing or not a text")
    return str(value)


def phenomena(questions: Sequence[Question]) -> list[str]:
    """The phenomena of the questions, in order of appearance."""
    return [one for one in dict.fromkeys(question.phenomenon for question in questions) if one]
