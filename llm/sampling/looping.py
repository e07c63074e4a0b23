"""How much a text repeats itself, and which setting to try."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm.sampling.options import SamplingOptions

LONGEST_PHRASE = 200  # characters
TIMES = 3  # a phrase this often in a row is a loop
# Characters. Real text hardly has longer loops; the longest in Shakespeare's plays is
# "here, sir! here, sir! here, sir! here, sir!"
LONG_LOOP = 40


@dataclass(frozen=True)
class Repeats:
    """Scores of one text; shares are between 0 and 1."""

    distinct_1: float  # different words / words (Li et al. 2016, arXiv:1510.03055)
    distinct_2: float  # the same for pairs of words
    repeated_4: float  # share of 4-grams of words that occurred before (arXiv:1908.04319)
    longest_loop: int  # characters, from the start to the end of the loop
    phrase: str  # the phrase that it repeats

    @property
    def loops(self) -> bool:
        """Whether the text got stuck; a loop of spaces or dashes is layout."""
        return self.longest_loop > LONG_LOOP and re.search(r"\w", self.phrase) is not None

    @property
    def scores(self) -> dict[str, float]:
        """The numbers by name."""
        return {name: value for name, value in vars(self).items() if name != "phrase"}


def measure_repeats(text: str) -> Repeats:
    """The scores of ``text``; they do not depend on the tokenizer."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    start, length, period = longest_loop(text)
    return Repeats(
        distinct_1=distinct(words, 1),
        distinct_2=distinct(words, 2),
        repeated_4=1 - distinct(words, 4),
        longest_loop=length,
        phrase=text[start : start + period],
    )


def distinct(words: Sequence[str], n: int) -> float:
    """Number of different n-grams of ``words`` / number of n-grams; 1 for fewer words than n."""
    ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 1.0


def longest_loop(text: str) -> tuple[int, int, int]:
    """Start, length and period (all in characters) of the longest loop; zeros if nothing loops."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    best = (0, 0, 0)
    for period in range(1, min(LONGEST_PHRASE, len(codes) // TIMES) + 1):
        # Runs of characters that equal the character one period earlier.
        differs = np.flatnonzero(codes[period:] != codes[:-period])
        edges = np.concatenate([[-1], differs, [len(codes) - period]])
        runs = np.diff(edges) - 1
        longest = int(runs.argmax())
        length = int(runs[longest]) + period
        if length >= TIMES * period and length > best[1]:
            best = (int(edges[longest]) + 1, length, period)
    return best


def remedy(options: SamplingOptions, words: bool) -> str:
    """The setting to try next against loops; ``words``: tokens are words or parts of words.

    docs/sampling.md shows the effect of each setting.
    """
    if options.temperature < 0.7:
        return "temperature=0.8"
    if words and options.frequency_penalty <= 0:  # it would remove the common letters
        return "frequency_penalty=0.3"
    if not options.no_repeat_ngram:  # short runs of letters occur in any text
        return f"no_repeat_ngram={4 if words else 16}"
    return "a higher temperature, or a model that was trained for longer"
