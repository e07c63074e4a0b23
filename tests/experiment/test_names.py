"""The folders of a sweep's jobs have readable names that never collide."""

import re
import sys
from collections.abc import Callable
from unicodedata import normalize

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm.experiment.names import LONGEST, folded, folder_name, values_of

KEYS = ["model.n_layer", "optimizer.lr", "seed", "a", "b_a", "optimizer.T_max", "aux.x", "+x"]
WORDS = ["1e+30", "1e-30", "-1", "1", "[1,2]", "[1, 2]", "a/b", "a\\b", "A", "é", "e\u0301", "K",
    "宽度", "😀", "\x00", "\ud83d\ude00", ".", "..", "", " ", "con", "x" * 300, "ß", "ss", "\u0131",
    "\u017f", "²", "1.", "3_seed-4", "-0123456789ab", "_a-", "\u212a", "\uff21", "각",
]  # fmt: skip
TEXT = st.one_of(
    st.sampled_from(WORDS),
    st.text(st.sampled_from("aAeE1.-_+/\u0301éÉß\u017f\u0131İ宽😀\ud800"), max_size=6),
    st.lists(st.sampled_from(WORDS), max_size=4).map("".join),
    st.text(st.characters(codec=None), max_size=200),
)
FORMS: list[Callable[[str], str]] = [
    lambda name: normalize("NFC", name.casefold()),
    lambda name: normalize("NFD", name.casefold()),
    lambda name: normalize("NFC", name.upper()),
    lambda name: normalize("NFD", name).lower().rstrip(" ."),
    folded,
]


@st.composite
def two_jobs(draw: st.DrawFn) -> tuple[dict[str, str], dict[str, str]]:
    keys = draw(st.lists(st.sampled_from(KEYS), unique=True, min_size=1, max_size=4))
    one = {key: draw(TEXT) for key in keys}
    changed = {key: draw(st.just(value) | TEXT) for key, value in one.items()}
    return one, changed


@settings(max_examples=400, deadline=None)
@given(two_jobs())
@example(({"x": "a-b"}, {"x": "a/b"}))
@example(({"a": "1_b_a-2", "b_a": "3"}, {"a": "1", "b_a": "2_b_a-3"}))
@example(({"x": "a"}, {"x": "A"}))
@example(({"x": "1."}, {"x": "1"}))
def test_jobs_with_different_values_never_share_a_folder_on_any_file_system(
    jobs: tuple[dict[str, str], dict[str, str]],
) -> None:
    first, second = map(folder_name, jobs)
    assert (first == second) == (jobs[0] == jobs[1])
    for form in FORMS:
        assert (form(first) == form(second)) == (jobs[0] == jobs[1])
    for name in (first, second):
        assert 0 < len(name.encode()) <= LONGEST
        assert all(c.isalnum() or c in "._-" for c in name)
        assert name[0] not in ".-" and name[-1] != "."
        assert not re.match(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", name.lower())


def test_a_name_that_looks_as_if_it_had_a_digest_gets_one_itself() -> None:
    lossy = folder_name({"x": "a/b"})
    assert lossy.startswith("x-a-b-")
    assert folder_name({"x": lossy.removeprefix("x-")}) != lossy


def test_no_two_letters_that_a_name_may_hold_are_one_letter_to_a_file_system() -> None:
    letters = [c for c in map(chr, range(sys.maxunicode + 1)) if c.isalnum() and c == folded(c)]
    for form in (str.upper, str.lower, str.casefold, lambda c: normalize("NFD", c)):
        assert len({form(c) for c in letters}) == len(letters)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (
            {"optimizer.lr": "0.001", "model.n_layer": "4"},
            "model.n_layer-4_optimizer.lr-0.001",
        ),
        ({"trainer.max_steps": "10000000", "seed": "1"}, "seed-1_trainer.max_steps-10000000"),
        ({"optimizer.lr": "1e-30"}, "optimizer.lr-1e-30"),
        ({"x": "-1"}, "x--1"),
        ({"model": "nano", "optimizer": "muon"}, "model-nano_optimizer-muon"),
        ({"+x": "true"}, "x-true"),
        ({"run.note": "宽度_深度"}, "run.note-宽度_深度"),
        ({"optimizer.T_max": "5"}, "optimizer.T_max-5"),
        ({"aux.lr": "1"}, "_aux.lr-1"),
        ({"x": ""}, "x-"),
        ({}, "job-0"),
    ],
)
def test_ordinary_values_are_readable_and_need_no_digest(values: dict[str, str], name: str) -> None:
    assert folder_name(values) == name


@pytest.mark.parametrize(
    ("values", "start"),
    [
        ({"optimizer.lr": "1e+30"}, "optimizer.lr-1e30-"),
        ({"data.path": "/texts/红楼梦.txt"}, "data.path--texts-红楼梦.txt-"),
        ({"run.note": "A B"}, "run.note-A-B-"),
        ({"x": "宽" * 100}, "x-宽宽"),
        ({"x": ".."}, "x-..-"),
    ],
)
def test_a_digest_replaces_the_information_that_a_name_cannot_hold(
    values: dict[str, str], start: str
) -> None:
    name = folder_name(values)
    assert name.startswith(start)
    assert re.search("-[0-9a-f]{12}$", name)


def test_the_values_of_overrides_are_read_by_key() -> None:
    assert values_of(["a=1", "b.c=x=y", "a=2", "~d"]) == {"a": "2", "b.c": "x=y", "~d": ""}
