"""Text is shown in whole characters, and nothing of a stop string, however it arrives."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.sampling.text import TextStream

few = settings(max_examples=150, deadline=None)
ALPHABET = st.text("abé😀 ", max_size=30)


def shown(text: bytes, cuts: list[int], stops: list[str]) -> tuple[list[str], bool]:
    stream, edges = (
        TextStream(stops),
        sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)}),
    )
    pieces = [stream.add(text[a:b]) for a, b in pairwise(edges)]
    return [*pieces, stream.rest()], stream.stopped


@few
@given(text=ALPHABET, cuts=st.lists(st.integers(0, 200)))
def test_pieces_are_whole_characters_and_together_the_text(text: str, cuts: list[int]) -> None:
    pieces, stopped = shown(text.encode(), cuts, [])
    assert "".join(pieces) == text
    assert not stopped
    assert "\ufffd" not in "".join(pieces)


@few
@given(
    text=ALPHABET,
    cuts=st.lists(st.integers(0, 200)),
    stop=st.text("abé😀 ", min_size=1, max_size=4),
)
def test_a_stop_string_and_what_follows_is_never_shown(
    text: str, cuts: list[int], stop: str
) -> None:
    pieces, stopped = shown(text.encode(), cuts, [stop])
    assert "".join(pieces) == text.partition(stop)[0]
    assert stopped == (stop in text)


def test_what_may_begin_a_stop_string_is_held_back_and_no_longer() -> None:
    stream = TextStream(["END", "\n\n"])
    assert [stream.add(piece) for piece in (b"a", b"E", b"N", b"x\n", b"b", b"E", b"ND", b"c")] == [
        "a", "", "", "ENx", "\nb", "", "", "",
    ]  # fmt: skip
    assert stream.stopped
    assert stream.rest() == ""


def test_half_a_character_at_the_end_is_said_to_be_one() -> None:
    stream = TextStream()
    assert [stream.add("é".encode() + b"\xe2\x82"), stream.rest()] == ["é", "\ufffd"]


@pytest.mark.parametrize("prompt", ["END", "x E"])
def test_a_prompt_is_no_reason_to_stop(prompt: str) -> None:
    stream = TextStream(["END"])
    assert stream.prompt(prompt.encode()) == prompt
    assert stream.add(b"ND") == "ND"
    assert not stream.stopped
