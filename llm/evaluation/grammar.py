"""A small suite of minimal pairs of our own: twelve phenomena of English grammar, 40 pairs each.

Pairs have BLiMP's keys (Warstadt et al. 2020, arXiv:1912.00582): one sentence is grammatical, and
the other differs from it in one word or phrase. The words are common ones, so that a model of
Shakespeare knows most of them. The suite is generated from lists, always in the same way.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import gcd

from llm.sealed import Plain

PER_PHENOMENON = 40
Pair = tuple[str, str]  # good and bad

PEOPLE = [
    ("boy", "boys"), ("girl", "girls"), ("king", "kings"), ("queen", "queens"),
    ("teacher", "teachers"), ("soldier", "soldiers"), ("woman", "women"), ("man", "men"),
    ("child", "children"), ("friend", "friends"),
]  # fmt: skip
THINGS = [
    ("book", "books"), ("house", "houses"), ("horse", "horses"), ("letter", "letters"),
    ("tree", "trees"), ("ship", "ships"), ("picture", "pictures"), ("chair", "chairs"),
]  # fmt: skip
MALE = ["boy", "king", "father", "brother", "prince", "man", "son", "uncle"]
FEMALE = ["girl", "queen", "mother", "sister", "princess", "woman", "daughter", "aunt"]
ACTS = [  # he walks, they walk
    ("walks home", "walk home"), ("sings well", "sing well"), ("reads a lot", "read a lot"),
    ("lives here", "live here"), ("works hard", "work hard"), ("speaks slowly", "speak slowly"),
]  # fmt: skip
STATES = ["tired", "happy", "at home", "very young", "in the garden", "ready to go"]
PLACES = ["near the", "behind the", "next to the", "in front of the"]
KNOWS = [("knows", "know"), ("sees", "see"), ("likes", "like"), ("helps", "help")]
SAW = ["saw", "hurt", "washed", "described", "praised"]
PARTICIPLES = [  # past participle, past tense, object
    ("written", "wrote", "the letter"), ("eaten", "ate", "the bread"),
    ("taken", "took", "the money"), ("seen", "saw", "the ship"), ("broken", "broke", "the chair"),
    ("given", "gave", "an answer"), ("stolen", "stole", "the horse"), ("known", "knew", "the way"),
]  # fmt: skip
VERBS = [  # go, goes, went
    ("go", "goes", "went"), ("come", "comes", "came"), ("see", "sees", "saw"),
    ("write", "writes", "wrote"), ("speak", "speaks", "spoke"), ("sing", "sings", "sang"),
]  # fmt: skip
GAVE = ["gave", "sent", "showed", "told"]
SUBJECTS = [("He", "him", "he"), ("She", "her", "she"), ("They", "them", "they")]
OBJECTS = ["the truth", "a story", "the news", "everything"]


def _number(forms: Sequence[str], is_plural: bool) -> str:
    return forms[is_plural]


def agreement() -> Iterator[Pair]:
    """The boys walk home. / The boys walks home."""
    for person, act, many in product(PEOPLE, ACTS, (False, True)):
        subject = f"The {_number(person, many)}"
        yield f"{subject} {_number(act, many)}.", f"{subject} {_number(act, not many)}."


def agreement_phrase() -> Iterator[Pair]:
    """The boy near the trees walks home. / ... walk home."""
    for person, place, thing, act, many in product(PEOPLE, PLACES, THINGS, ACTS, (False, True)):
        subject = f"The {_number(person, many)} {place} {_number(thing, not many)}"
        yield f"{subject} {_number(act, many)}.", f"{subject} {_number(act, not many)}."


def agreement_clause() -> Iterator[Pair]:
    """The boys that the king knows walk home. / ... walks home."""
    for person, other, knows, act, many in product(PEOPLE, PEOPLE, KNOWS, ACTS, (False, True)):
        if person is not other:
            clause = f"that the {_number(other, not many)} {_number(knows, not many)}"
            subject = f"The {_number(person, many)} {clause}"
            yield f"{subject} {_number(act, many)}.", f"{subject} {_number(act, not many)}."


def agreement_be() -> Iterator[Pair]:
    """The girls are tired. / The girls is tired."""
    verbs = [("is", "are"), ("was", "were"), ("has been", "have been")]
    for person, verb, state, many in product(PEOPLE, verbs, STATES, (False, True)):
        subject = f"The {_number(person, many)}"
        yield (
            f"{subject} {_number(verb, many)} {state}.",
            f"{subject} {_number(verb, not many)} {state}.",
        )


def determiner_noun() -> Iterator[Pair]:
    """The king sold these horses. / The king sold this horses."""
    determiners, verbs = [("this", "these"), ("that", "those")], ["sold", "found", "wanted"]
    for person, verb, these, thing, many in product(
        PEOPLE, verbs, determiners, THINGS, (False, True)
    ):
        start, noun = f"The {person[0]} {verb}", _number(thing, many)
        yield (
            f"{start} {_number(these, many)} {noun}.",
            f"{start} {_number(these, not many)} {noun}.",
        )


def reflexive_gender() -> Iterator[Pair]:
    """The queen saw herself. / The queen saw himself."""
    for person, verb in product([*MALE, *FEMALE], SAW):
        start, selves, female = f"The {person} {verb}", ("himself", "herself"), person in FEMALE
        yield f"{start} {selves[female]}.", f"{start} {selves[not female]}."


def reflexive_number() -> Iterator[Pair]:
    """The kings saw themselves. / The kings saw himself."""
    known = [person for person in PEOPLE if person[0] in MALE + FEMALE]
    for (one, several), verb, many in product(known, SAW, (False, True)):
        own = "herself" if one in FEMALE else "himself"
        start, selves = f"The {several if many else one} {verb}", (own, "themselves")
        yield f"{start} {selves[many]}.", f"{start} {selves[not many]}."


def participle() -> Iterator[Pair]:
    """The man had eaten the bread. / The man had ate the bread."""
    for person, had, (done, past, thing) in product(PEOPLE, ["had", "has"], PARTICIPLES):
        start = f"The {person[0]} {had}"
        yield f"{start} {done} {thing}.", f"{start} {past} {thing}."


def negative_polarity() -> Iterator[Pair]:
    """No king has ever lived here. / The king has ever lived here."""
    ends = ["lived here", "been happy", "seen the sea", "read this book", "come back"]
    for person, end, other in product(PEOPLE, ends, ["The", "This"]):
        yield f"No {person[0]} has ever {end}.", f"{other} {person[0]} has ever {end}."


def pronoun_case() -> Iterator[Pair]:
    """The king told him the truth. / The king told he the truth."""
    for person, verb, (_, him, he), thing in product(PEOPLE, GAVE, SUBJECTS, OBJECTS):
        start = f"The {person[0]} {verb}"
        yield f"{start} {him} {thing}.", f"{start} {he} {thing}."


def auxiliary() -> Iterator[Pair]:
    """The boy did not go there. / The boy did not went there."""
    for person, helper, (plain, present, past) in product(
        PEOPLE, ["will", "must", "did not", "could"], VERBS
    ):
        wrong = past if helper == "did not" else present
        start = f"The {person[0]} {helper}"
        yield f"{start} {plain} there.", f"{start} {wrong} there."


def filler_gap() -> Iterator[Pair]:
    """I know what the king found. / I know that the king found."""
    starts, verbs = ["I know", "We heard", "You remember"], ["found", "wanted", "bought", "made"]
    for start, person, verb, end in product(starts, PEOPLE, verbs, ("", " the ship")):
        rest, words = f"the {person[0]} {verb}{end}", ("that", "what") if end else ("what", "that")
        yield f"{start} {words[0]} {rest}.", f"{start} {words[1]} {rest}."


PHENOMENA: dict[str, Callable[[], Iterator[Pair]]] = {
    one.__name__: one
    for one in (
        agreement, agreement_phrase, agreement_clause, agreement_be, determiner_noun,
        reflexive_gender, reflexive_number, participle, negative_polarity, pronoun_case,
        auxiliary, filler_gap,
    )
}  # fmt: skip


def rows() -> list[Plain]:
    """All pairs: 40 of each phenomenon, evenly spread over all that its lists can make."""
    found = []
    for name, generate in PHENOMENA.items():
        pairs = list(generate())
        step = _step(len(pairs))
        for index in range(PER_PHENOMENON):
            good, bad = pairs[index * step % len(pairs)]
            found.append({"sentence_good": good, "sentence_bad": bad, "linguistics_term": name})
    return found


def _step(count: int) -> int:
    """A step that is coprime to ``count``, so that its multiples reach every index once.

    It is near ``count`` times the golden ratio, so that these multiples are evenly spread.
    """
    step = int(count * 0.618)
    while gcd(step, count) > 1:
        step += 1
    return step
