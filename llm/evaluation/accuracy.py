"""The share of questions that a network answers correctly, with its confidence interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llm.data.tokenizer import Tokenizer
from llm.errors import Refused, require
from llm.evaluation.questions import Question, phenomena
from llm.evaluation.scoring import Reading, Request, Score, request_of, score
from llm.model.gpt import GPT
from llm.sealed import Plain

NORMAL = 1.959963984540054  # 97.5 % of a normal distribution lie below


@dataclass(frozen=True)
class Share:
    """``correct`` of ``n`` answers are correct."""

    correct: int
    n: int

    @property
    def value(self) -> float:
        """The share of correct answers."""
        return self.correct / self.n

    @property
    def stderr(self) -> float | None:
        """Its standard error, as lm-eval computes it; None for one question."""
        p = self.value
        return math.sqrt(p * (1 - p) / (self.n - 1)) if self.n > 1 else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval (1927), which stays between 0 and 1 for small samples too."""
        p, n, z2 = self.value, self.n, NORMAL**2
        centre = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = NORMAL / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)

    def as_plain(self, name: str) -> Plain:
        """``{"acc": 0.8, "acc_stderr": 0.02, "acc_low": 0.75, "acc_high": 0.84}``"""
        low, high = self.interval
        return {
            name: self.value, f"{name}_stderr": self.stderr, f"{name}_low": low,
            f"{name}_high": high,
        }  # fmt: skip


def answer_questions(
    model: GPT, tokenizer: Tokenizer, questions: Sequence[Question], where: str = "",
    size: int | None = None, rows: int | None = None,
    reading: Reading[list[int]] = lambda batches, count: batches,
) -> Plain:  # fmt: skip
    """The results of ``questions`` (docs/evaluation.md); ``where`` names their file in a message.

    A question counts as correct if the right choice has a higher score than every other choice. The
    score of a choice is the sum of its log-probabilities (``acc``), or this sum divided by the
    number of its characters (``acc_norm``). Raises :class:`llm.errors.Refused` for a choice that
    does not fit into the window.
    """
    size = size or model.config.block_size
    requests = [
        _request(tokenizer, question, choice, f"{where}, line {question.line}", size)
        for question in questions
        for choice in question.choices
    ]
    scores = score(model, requests, size, rows, reading)
    finite = all(math.isfinite(one.logprob) for one in scores)
    require(finite, f"{where or 'a question'}: a log-probability is not finite")
    right, right_norm, n_cut, first = list[bool](), list[bool](), 0, 0
    for question in questions:
        mine = scores[first : first + len(question.choices)]
        first += len(mine)
        right.append(_is_right(question, mine, by_length=False))
        right_norm.append(_is_right(question, mine, by_length=True))
        n_cut += any(one.is_cut for one in mine)
    groups = {
        name: _share([ok for q, ok in zip(questions, right, strict=True) if q.phenomenon == name])
        for name in phenomena(questions)
    }
    return {
        **_share(right).as_plain("acc"), **_share(right_norm).as_plain("acc_norm"),
        "n": len(questions), "cut": n_cut, "window": size,
        "phenomena": {name: {"acc": one.value, "n": one.n} for name, one in groups.items()},
    }  # fmt: skip


def _request(
    tokenizer: Tokenizer, question: Question, choice: str, where: str, size: int
) -> Request:
    try:
        request = request_of(tokenizer, question.context, choice)
    except Refused as refusal:  # a character that is not in the vocabulary
        raise Refused(f"{where}: {refusal}") from None
    count = len(request.continuation)
    require(count <= size, f"{where}: a choice has {count} tokens, and the window only {size}")
    scored = count - (not request.context)
    require(scored > 0, f"{where}: the choice {choice!r:.40} has no token to score")
    return request


def _is_right(question: Question, scores: Sequence[Score], by_length: bool) -> bool:
    values = []
    for choice, one in zip(question.choices, scores, strict=True):
        length = max(1, len(choice.strip())) if by_length else 1
        values.append(one.logprob / length)
    others = values[: question.answer] + values[question.answer + 1 :]
    return values[question.answer] > max(others)


def _share(right: Sequence[bool]) -> Share:
    return Share(sum(right), len(right))
