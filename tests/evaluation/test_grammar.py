"""Our own minimal pairs: all different, spread over their phenomena, always the same."""

import hashlib
import json
from collections import Counter

from llm.evaluation.grammar import PER_PHENOMENON, PHENOMENA, rows


def test_each_phenomenon_has_40_different_pairs_that_differ_in_a_word_or_two() -> None:
    found = rows()
    assert Counter(row["linguistics_term"] for row in found) == dict.fromkeys(
        PHENOMENA, PER_PHENOMENON
    )
    pairs = {(row["sentence_good"], row["sentence_bad"]) for row in found}
    assert len(pairs) == len(found) == 480
    for good, bad in pairs:
        a, b = good.split(), bad.split()
        differing = sum(x != y for x, y in zip(a, b, strict=False)) if len(a) == len(b) else 1
        assert 1 <= differing <= 2 and abs(len(a) - len(b)) <= 1, (good, bad)
        for sentence in (good, bad):
            assert sentence.endswith(".") and sentence[0].isupper() and "  " not in sentence


def test_a_good_sentence_is_not_the_bad_one_of_another_pair() -> None:
    good, bad = ({row[key] for row in rows()} for key in ("sentence_good", "sentence_bad"))
    assert not good & bad


def test_the_docstring_of_a_phenomenon_is_one_of_its_pairs() -> None:
    for name, generate in PHENOMENA.items():
        good, _, bad = str(generate.__doc__).partition(" / ")
        found = set(generate())
        assert "..." in bad or (good, bad) in found, name
        assert good in dict(found), name


def test_the_suite_never_changes() -> None:
    digest = hashlib.sha256(json.dumps(rows()).encode()).hexdigest()
    assert digest[:16] == "65c668b443ab8e98"
