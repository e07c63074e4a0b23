"""From tokens to text that can be shown: whole characters, and nothing of a stop string."""

import codecs
from collections.abc import Sequence


class StopStrings:
    """Passes bytes on until one of ``stops`` appears in them, however they are cut into pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = [stop.encode("utf-8") for stop in stops]
        self.held = b""
        self.found = False

    def add(self, piece: bytes) -> bytes:
        """What of the text so far can be passed on now: nothing that may begin a stop string."""
        if self.found:
            return b""
        text = self.held + piece
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        self.found = bool(places)
        kept = min(places) if places else len(text) - self._may_begin(text)
        self.held = b"" if self.found else text[kept:]
        return text[:kept]

    def rest(self) -> bytes:
        """What was held back, once the text has ended."""
        rest, self.held = self.held, b""
        return rest

    def _may_begin(self, text: bytes) -> int:
        """Length of the longest end of ``text`` with which a stop string begins."""
        longest = min(len(text), max(map(len, self.stops), default=0))
        ends = (n for n in range(longest, 0, -1) for stop in self.stops if stop[:n] == text[-n:])
        return next(ends, 0)


class TextStream:
    """Text of a stream of token bytes, in pieces that end with a whole character."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.stops = StopStrings(stops)
        self.utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    @property
    def stopped(self) -> bool:
        """Whether a stop string has appeared."""
        return self.stops.found

    def prompt(self, piece: bytes) -> str:
        """Text that comes before: no stop string is looked for in it."""
        return self.utf8.decode(piece)

    def add(self, piece: bytes) -> str:
        """The text that can be shown now."""
        return self.utf8.decode(self.stops.add(piece))

    def rest(self) -> str:
        """What remains at the end; half a character becomes U+FFFD."""
        return self.utf8.decode(self.stops.rest(), final=True)
