"""Texts that repeat themselves are recognised."""

import re

import pytest

from llm.sampling.looping import LONG_LOOP, distinct, longest_loop, measure_repeats, remedy
from llm.sampling.options import SamplingOptions

PROSE = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the "
    "age of foolishness, it was the epoch of belief, it was the epoch of incredulity"
)


@pytest.mark.parametrize("phrase", ["asked ", "a", "\n", "the king is dead. ", "né😀"])
def test_a_repeated_phrase_is_found_at_its_start(phrase: str) -> None:
    text = "Once upon a time " + 40 * phrase + "!?"
    start, length, period = longest_loop(text)
    assert period == len(phrase)
    # The words before may end like the phrase; then the loop starts there.
    assert text[start : start + length].count(phrase) == 40
    assert 40 * len(phrase) <= length < 41 * len(phrase)
    assert measure_repeats(text).loops == (length > LONG_LOOP)


def test_the_longest_loop_agrees_with_a_regular_expression() -> None:
    text = "no no no, abcabcabcabc -- xyxyxyxyxyxyxyx; " + PROSE
    found = max(re.finditer(r"(?=((.+?)\2{2,}))", text), key=lambda match: len(match[1]))
    start, length, period = longest_loop(text)
    assert text[start : start + period] == found[2] == "xy"
    assert text[start : start + length] == found[1] + "x"  # and the start of another one


@pytest.mark.parametrize("text", ["", "a", "aa", "abab", PROSE])
def test_a_phrase_that_occurs_twice_is_not_a_loop(text: str) -> None:
    assert longest_loop(text) == (0, 0, 0)
    assert not measure_repeats(text).loops


def test_distinct_n_is_the_share_of_different_ngrams() -> None:
    assert distinct(list("ababa"), 1) == 2 / 5
    assert distinct(list("ababa"), 2) == 2 / 4
    assert distinct(list("ababa"), 4) == 1
    assert distinct(list("aba"), 4) == 1


def test_scores_differ_between_a_stuck_text_and_prose() -> None:
    prose, stuck = measure_repeats(PROSE), measure_repeats("he says " + 30 * "asked ")
    assert (stuck.distinct_1, stuck.phrase) == (3 / 32, " asked")
    assert stuck.repeated_4 == pytest.approx(1 - 3 / 29)
    assert prose.distinct_1 > 3 * stuck.distinct_1 and prose.repeated_4 < 0.3 < stuck.repeated_4


def test_words_ignore_case_and_punctuation_counts_as_words() -> None:
    assert measure_repeats("Oh! oh! OH!").distinct_1 == 2 / 6


def test_the_remedy_is_a_setting_that_is_not_set_yet() -> None:
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
