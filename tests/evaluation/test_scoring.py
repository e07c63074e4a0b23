"""Scores of continuations equal plain torch's, one at a time, however they are batched."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from llm.data.tokenizer import ByteTokenizer, CharTokenizer, GPT2Tokenizer
from llm.errors import Refused
from llm.evaluation.accuracy import Share, answer_questions
from llm.evaluation.questions import Question
from llm.evaluation.scoring import Request, request_of, score
from llm.model.gpt import GPT


def network(vocab_size: int, block_size: int = 8) -> GPT:
    torch.manual_seed(0)
    model = GPT(n_layer=1, n_embed=16, head_size=8, block_size=block_size, vocab_size=vocab_size)
    with torch.no_grad():
        model.embed.weight.mul_(50)
    return model.eval()


MODEL = network(12)
ids = st.lists(st.integers(0, 11), max_size=12).map(tuple)


@torch.no_grad()
def by_hand(request: Request, size: int) -> tuple[float, bool]:
    """The log-probabilities of all tokens of the continuation that have a token before them."""
    row = [*request.context, *request.continuation][-(size + 1) :]
    logprobs = MODEL(torch.tensor([row[:-1]]))[0].log_softmax(-1)
    count = min(len(request.continuation), len(row) - 1)
    places = range(len(row) - 1 - count, len(row) - 1)
    total = sum(float(logprobs[place, row[place + 1]]) for place in places)
    return total, all(int(logprobs[place].argmax()) == row[place + 1] for place in places)


@settings(max_examples=50)
@given(
    texts=st.lists(
        st.tuples(ids, st.lists(st.integers(0, 11), min_size=2, max_size=4)), min_size=1, max_size=6
    ),
    size=st.integers(4, 8), rows=st.integers(1, 4) | st.none(),
)  # fmt: skip
def test_a_batch_of_texts_of_any_length_scores_as_each_alone(
    texts: list[tuple[tuple[int, ...], list[int]]], size: int, rows: int | None
) -> None:
    requests = [Request(context, tuple(continuation)) for context, continuation in texts]
    for request, found in zip(requests, score(MODEL, requests, size, rows), strict=True):
        logprob, is_greedy = by_hand(request, size)
        assert found.logprob == pytest.approx(logprob, abs=1e-4)
        assert found.is_greedy == is_greedy
        length = len(request.context) + len(request.continuation)
        assert found.is_cut == (length > size + 1)


def test_white_space_at_the_end_of_a_context_belongs_to_the_continuation() -> None:
    tokenizer = GPT2Tokenizer()
    request = request_of(tokenizer, "The sky is ", "blue")
    assert request == request_of(tokenizer, "The sky is", " blue")
    assert request.context == (50256, *tokenizer.encode("The sky is"))
    assert tokenizer.decode(list(request.continuation)) == " blue"
    assert request_of(CharTokenizer(" ab"), "", "ab") == Request((), (1, 2))
    assert request_of(ByteTokenizer(), "", "a") == Request((256,), (97,))


def test_accuracy_counts_the_right_choice_with_and_without_its_length() -> None:
    model, tokenizer = network(257, 32), ByteTokenizer()
    questions = [
        Question("say", (" one", " two", " a longer one"), answer, "abc"[answer], answer + 1)
        for answer in (0, 1, 2)
    ]
    found = answer_questions(model, tokenizer, questions)
    sums = [
        score(model, [request_of(tokenizer, "say", choice)])[0].logprob
        for choice in questions[0].choices
    ]
    lengths = np.array([len(choice) for choice in questions[0].choices])
    best, best_norm = int(np.argmax(sums)), int(np.argmax(sums / lengths))
    assert found["acc"] == found["acc_norm"] == pytest.approx(1 / 3)
    assert found["phenomena"] == {
        "abc"[answer]: {"acc": float(answer == best), "n": 1} for answer in (0, 1, 2)
    }
    assert best != 2 and best_norm in (0, 1, 2)
    assert (found["n"], found["cut"], found["window"]) == (3, 0, 32)


def test_equal_scores_are_not_a_correct_answer() -> None:
    model = network(257, 32)
    with torch.no_grad():
        model.embed.weight.zero_()
    same = [Question("a", (" b", " c"), answer) for answer in (0, 1)]
    assert answer_questions(model, ByteTokenizer(), same)["acc"] == 0


def test_a_long_context_is_cut_and_counted_and_a_long_choice_is_refused() -> None:
    model, tokenizer = network(257), ByteTokenizer()
    long = Question("a long context", (" b", " c"), 0, line=1)
    assert answer_questions(model, tokenizer, [long, Question("a", (" b", " c"), 0)])["cut"] == 1
    too_long = Question("a", (" b", " a longer choice"), 0, line=7)
    with pytest.raises(Refused, match=r"x.jsonl, line 7: a choice has 16 tokens, and the"):
        answer_questions(model, tokenizer, [long, too_long], "x.jsonl")


def test_a_single_token_without_a_context_cannot_be_scored() -> None:
    with pytest.raises(Refused, match="the choice 'a' has no token to score"):
        answer_questions(network(3), CharTokenizer(" ab"), [Question("", ("a", "ab"), 0)])


def test_weights_that_are_not_finite_are_refused() -> None:
    model = network(257, 32)
    with torch.no_grad():
        model.norm.weight[0] = math.nan
    with pytest.raises(Refused, match="is not finite"):
        answer_questions(model, ByteTokenizer(), [Question("a", (" b", " c"), 0)])


@given(n=st.integers(1, 500), data=st.data())
def test_the_interval_is_wilsons(n: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, n))
    expected = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    low, high = Share(correct, n).interval
    assert low == pytest.approx(expected.low, abs=1e-9)
    assert high == pytest.approx(expected.high, abs=1e-9)


def test_the_standard_error_is_that_of_a_mean() -> None:
    answers = np.array([1.0] * 7 + [0.0] * 5)
    expected = answers.std(ddof=1) / np.sqrt(12)
    assert Share(7, 12).stderr == pytest.approx(expected)
    assert Share(1, 1).stderr is None
