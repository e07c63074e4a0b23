"""From tokens to text on the screen: whole characters, and no part of a stop string."""

import codecs
from collections.abc import Sequence


class SampleText:
    """The text of one sample, or with ``logprobs`` a line for each token with its log-probability.

    Bytes that may be the start of a stop string wait until later tokens decide.
    """

    def __init__(self, stops: Sequence[str] = (), logprobs: bool = False) -> None:
        self.stops = [stop.encode("utf-8") for stop in stops]
        self.logprobs = logprobs
        self.utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.waiting: list[tuple[bytes, float | None]] = []
        self.stopped = False  # whether a stop string has appeared

    def prompt(self, pieces: Sequence[bytes], scores: Sequence[float | None]) -> str:
        """The text of a prompt; stop strings in it do not count."""
        return "".join(map(self._show, pieces, scores))

    def add(self, piece: bytes, score: float | None = None) -> str:
        """Add a token with the UTF-8 bytes ``piece``; returns the text that can be shown now."""
        if self.stopped:
            return ""
        self.waiting.append((piece, score))
        text = b"".join(piece for piece, _ in self.waiting)
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        self.stopped = bool(places)
        return self._release(min(places) if places else len(text) - self._undecided(text))

    def rest(self) -> str:
        """The text of the bytes that still wait at the end; half a character becomes U+FFFD."""
        text = "" if self.stopped else self._release(sum(len(piece) for piece, _ in self.waiting))
        return text + self.utf8.decode(b"", final=True)

    def _undecided(self, text: bytes) -> int:
        """Length of the longest suffix of ``text`` that is the start of a stop string."""
        longest = min(len(text), max(map(len, self.stops), default=0))
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self.stops):
                return length
        return 0

    def _release(self, count: int) -> str:
        """Remove the first ``count`` waiting bytes and return their text."""
        shown = ""
        while self.waiting and len(self.waiting[0][0]) <= count:
            piece, score = self.waiting.pop(0)
            count -= len(piece)
            shown += self._show(piece, score)
        if count and (self.stopped or not self.logprobs):  # the beginning of a token
            piece, score = self.waiting[0]
            self.waiting[0] = (piece[count:], score)
            shown += self._show(piece[:count], score)
        return shown

    def _show(self, piece: bytes, score: float | None) -> str:
        if not self.logprobs:
            return self.utf8.decode(piece)
        try:
            text = repr(piece.decode("utf-8"))
        except UnicodeDecodeError:  # a part of a character
            text = repr(piece)
        return f"{'' if score is None else f'{score:.4f}':>10}  {text}\n"
