"""Text is shown in whole characters and without stop strings, however tokens divide it."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.sampling.text import SampleText

few = settings(max_examples=150, deadline=None)
ALPHABET = st.text("abé😀 ", max_size=30)
CUTS = st.lists(st.integers(0, 200))


def shown(text: bytes, cuts: list[int], stops: list[str]) -> tuple[list[str], bool]:
    sample = SampleText(stops)
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = [sample.add(text[a:b]) for a, b in pairwise(edges)]
    return [*pieces, sample.rest()], sample.stopped


@few
@given(text=ALPHABET, cuts=CUTS)
def test_pieces_are_whole_characters_and_together_the_text(text: str, cuts: list[int]) -> None:
    pieces, stopped = shown(text.encode(), cuts, [])
    assert "".join(pieces) == text
    assert not stopped
    assert "\ufffd" not in "".join(pieces)


@few
@given(text=ALPHABET, cuts=CUTS, stop=st.text("abé😀 ", min_size=1, max_size=4))
def test_a_stop_string_and_the_text_after_it_are_never_shown(
    text: str, cuts: list[int], stop: str
) -> None:
    pieces, stopped = shown(text.encode(), cuts, [stop])
    assert "".join(pieces) == text.partition(stop)[0]
    assert stopped == (stop in text)


def test_a_possible_start_of_a_stop_string_waits_for_the_next_tokens() -> None:
    sample = SampleText(["END", "\n\n"])
    assert [sample.add(piece) for piece in (b"a", b"E", b"N", b"x\n", b"b", b"E", b"ND", b"c")] == [
        "a", "", "", "ENx", "\nb", "", "", "",
    ]  # fmt: skip
    assert sample.stopped
    assert sample.rest() == ""


def test_half_a_character_at_the_end_becomes_a_replacement_character() -> None:
    sample = SampleText()
    assert [sample.add("é".encode() + b"\xe2\x82"), sample.rest()] == ["é", "\ufffd"]


@pytest.mark.parametrize("prompt", ["END", "x E"])
def test_stop_strings_in_a_prompt_do_not_count(prompt: str) -> None:
    sample = SampleText(["END"])
    assert sample.prompt([prompt.encode()], [None]) == prompt
    assert sample.add(b"ND") == "ND"
    assert not sample.stopped


def test_a_line_for_each_token_shows_parts_of_a_character_as_bytes() -> None:
    sample = SampleText(logprobs=True)
    lines = sample.prompt([b"a"], [None])
    lines += "".join(sample.add(bytes([byte]), -1.5) for byte in " 中".encode()) + sample.rest()
    assert lines.splitlines() == [
        "            'a'", "   -1.5000  ' '", r"   -1.5000  b'\xe4'", r"   -1.5000  b'\xb8'",
        r"   -1.5000  b'\xad'",
    ]  # fmt: skip
    assert SampleText(logprobs=True).add("中".encode(), -0.5) == "   -0.5000  '中'\n"


def test_lines_end_where_a_stop_string_begins_inside_a_token() -> None:
    sample = SampleText(["END"], logprobs=True)
    words = [b"so ", b"E", b"", b"asy", b" thE", b"ND it", b"x"]
    lines = "".join(sample.add(word, -1.0) for word in words) + sample.rest()
    assert [line.split("  ")[-1] for line in lines.splitlines()] == [
        "'so '", "'E'", "''", "'asy'", "' th'",
    ]  # fmt: skip
