"""Texts that repeat themselves are told from those that do not."""

import re

import pytest

from llm.sampling.looping import LONG_LOOP, distinct, longest_loop, measure_repeats, remedy
from llm.sampling.options import SamplingOptions

PROSE = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the "
    "age of foolishness, it was the epoch of belief, it was the epoch of incredulity"
)


@pytest.mark.parametrize("phrase", ["asked ", "a", "\n", "the king is dead. ", "né😀"])
def test_a_phrase_said_over_and_over_is_found_where_it_begins(phrase: str) -> None:
    text = "Once upon a time " + 40 * phrase + "!?"
    start, length, period = longest_loop(text)
    assert period == len(phrase)
    # The words before may end as the phrase does: then the loop begins there.
    assert text[start : start + length].count(phrase) == 40
    assert 40 * len(phrase) <= length < 41 * len(phrase)
    assert measure_repeats(text).loops == (length > LONG_LOOP)


def test_the_longest_loop_is_what_a_regular_expression_finds() -> None:
    text = "no no no, abcabcabcabc -- xyxyxyxyxyxyxyx; " + PROSE
    found = max(re.finditer(r"(?=((.+?)\2{2,}))", text), key=lambda match: len(match[1]))
    start, length, period = longest_loop(text)
    assert text[start : start + period] == found[2] == "xy"
    assert text[start : start + length] == found[1] + "x"  # and the beginning of one more


@pytest.mark.parametrize("text", ["", "a", "aa", "abab", PROSE])
def test_twice_is_no_loop(text: str) -> None:
    assert longest_loop(text) == (0, 0, 0)
    assert not measure_repeats(text).loops


def test_distinct_n_is_the_share_of_different_runs() -> None:
    assert distinct(list("ababa"), 1) == 2 / 5
    assert distinct(list("ababa"), 2) == 2 / 4
    assert distinct(list("ababa"), 4) == 1
    assert distinct(list("aba"), 4) == 1


def test_scores_tell_a_stuck_text_from_prose() -> None:
    prose, stuck = measure_repeats(PROSE), measure_repeats("he says " + 30 * "asked ")
    assert (stuck.distinct_1, stuck.phrase) == (3 / 32, " asked")
    assert stuck.repeated_4 == pytest.approx(1 - 3 / 29)
    assert prose.distinct_1 > 3 * stuck.distinct_1 and prose.repeated_4 < 0.3 < stuck.repeated_4


def test_words_are_counted_whatever_their_case_and_marks_count_as_words() -> None:
    assert measure_repeats("Oh! oh! OH!").distinct_1 == 2 / 6


def test_the_remedy_is_one_that_was_not_tried() -> None:
    options = SamplingOptions(temperature=0)
    tried = []
    for _ in range(3):
        advice = remedy(options, words=True)
        key, value = advice.split("=")
        assert getattr(options, key) != float(value)
        setattr(options, key, float(value))
        tried.append(key)
    assert tried == ["temperature", "frequency_penalty", "no_repeat_ngram"]
    assert "=" not in remedy(options, words=True)
    assert remedy(SamplingOptions(), words=False) == "no_repeat_ngram=16"
