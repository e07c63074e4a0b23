"""How much a text repeats itself, and what to do about it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm.sampling.options import SamplingOptions

LONGEST_PHRASE = 200  # characters of what may be said over and over
TIMES = 3  # in a row, before it counts as a loop
# Characters: a text with a longer loop is said to loop. Real text hardly ever has one; an exception
# of Shakespeare's is "here, sir! here, sir! here, sir! here, sir!"
LONG_LOOP = 40


@dataclass(frozen=True)
class Repeats:
    """Scores of one text; shares are 0 to 1, and the first two are lower the more it repeats."""

    distinct_1: float  # different words in all words (Li et al. 2016, arXiv:1510.03055)
    distinct_2: float  # the same of pairs of words
    repeated_4: float  # share of runs of four words that came before (arXiv:1908.04319, seq-rep-4)
    longest_loop: int  # characters in which one phrase follows itself, TIMES or more
    phrase: str  # that phrase

    @property
    def loops(self) -> bool:
        """Whether the text got stuck; spaces and rules of a layout are no phrase."""
        return self.longest_loop > LONG_LOOP and re.search(r"\w", self.phrase) is not None

    @property
    def scores(self) -> dict[str, float]:
        """The numbers by name."""
        return {
            "distinct_1": self.distinct_1,
            "distinct_2": self.distinct_2,
            "repeated_4": self.repeated_4,
            "longest_loop": self.longest_loop,
        }


def measure_repeats(text: str) -> Repeats:
    """The scores of ``text``, which mean the same whatever its tokens are."""
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
    """Share of different ones among all runs of ``n`` words; 1 where there is no run."""
    runs = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0


def longest_loop(text: str) -> tuple[int, int, int]:
    """Start, length and period, in characters, of the longest stretch that repeats one phrase.

    The phrase fits into it :data:`TIMES` or more; all are 0 where there is none.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    best = (0, 0, 0)
    for period in range(1, min(LONGEST_PHRASE, len(codes) // TIMES) + 1):
        differs = np.flatnonzero(codes[period:] != codes[:-period])
        edges = np.concatenate([[-1], differs, [len(codes) - period]])
        same = np.diff(edges) - 1  # how many characters in a row are those of a period before
        longest = int(same.argmax())
        length = int(same[longest]) + period
        if length >= TIMES * period and length > best[1]:
            best = (int(edges[longest]) + 1, length, period)
    return best


def remedy(options: SamplingOptions, words: bool) -> str:
    """The setting to try first on a text that loops; ``words``: tokens are (parts of) words.

    docs/sampling.md shows what each does to a model that loops.
    """
    if options.temperature < 0.7:
        return "temperature=0.8"
    if words and options.frequency_penalty <= 0:  # of letters, it wears out the common ones
        return "frequency_penalty=0.3"
    if not options.no_repeat_ngram:  # short runs of letters occur in any text
        return f"no_repeat_ngram={4 if words else 16}"
    return "a higher temperature, or a model that was trained for longer"
