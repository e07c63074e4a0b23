"""Text in, token files out: in chunks, which end only where that changes no token."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llm.data.tokenizer import END_OF_TEXT, Tokenizer
from llm.errors import require

CHUNK = 1 << 20  # characters tokenized at a time
# Characters without a place to cut; GPT-2's BPE takes seconds for one such word.
LONGEST = 4 * CHUNK


class TokenWriter:
    """Tokenizes text and appends the ids to one file. With ``special``, each ``<|endoftext|>`` in
    it becomes one id, which stands for no text; the pieces written must not cut one.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer, special: bool) -> None:
        self.file, self.tokenizer = path.open("wb"), tokenizer
        self.special = special and tokenizer.end_of_text is not None
        self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self.waiting = ""
        self.wanted = CHUNK  # characters to wait for
        self.tokens = self.bytes = 0
        self.max_id = 0
        self.sha256 = hashlib.sha256()

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, text: str) -> None:
        """Append ``text``; its tokens are those of all text since the last document, in one piece.

        Raises :class:`llm.errors.Refused` for text that has no place to cut.
        """
        self.waiting += text
        while len(self.waiting) >= self.wanted:
            if cut := self._cut(self.wanted):
                self._encode(self.waiting[:cut])
                self.waiting, self.wanted = self.waiting[cut:], CHUNK
            else:
                self.wanted += CHUNK
                require(
                    self.wanted <= LONGEST,
                    f"the text has {LONGEST:,} characters in a row without a space or punctuation, "
                    "one word for GPT-2's tokenizer: take data.tokenizer=char or byte",
                )

    def end_document(self) -> None:
        """Between documents: the end-of-text id, or a blank line's newline where there is none."""
        if self.tokenizer.end_of_text is None:
            self.write("\n")
        else:
            self._flush()
            self._append(np.array([self.tokenizer.end_of_text]))

    def finish(self) -> None:
        """Write what is waiting, and wait until it is on the disk."""
        self._flush()
        self.file.flush()
        os.fsync(self.file.fileno())

    def _cut(self, most: int) -> int:
        """How many of the first ``most`` characters waiting can be tokenized without the rest."""
        if not self.special:
            return self.tokenizer.last_cut(self.waiting[:most])
        part = self.waiting[: after_mark(self.waiting, most)]
        mark = part.rfind(END_OF_TEXT)
        # Marks are taken out before the text between them is tokenized, so the end of the last one
        # is a place to cut; a place found before that may lie inside a mark.
        return max(self.tokenizer.last_cut(part), mark + len(END_OF_TEXT) if mark >= 0 else 0)

    def _flush(self) -> None:
        self._encode(self.waiting)
        self.waiting, self.wanted = "", CHUNK

    def _encode(self, text: str) -> None:
        if text:
            marks = text.count(END_OF_TEXT) if self.special else 0
            self.bytes += len(text.encode()) - marks * len(END_OF_TEXT)
            self._append(self.tokenizer.encode(text, special=self.special))

    def _append(self, ids: np.ndarray) -> None:
        highest = int(ids.max())
        # A cast to uint16 would wrap silently.
        if highest >= self.tokenizer.vocab_size:
            raise ValueError(
                f"token id {highest} is beyond the vocabulary of {self.tokenizer.vocab_size}"
            )
        raw = ids.astype(self.dtype).tobytes()
        self.file.write(raw)
        self.sha256.update(raw)
        self.tokens += len(ids)
        self.max_id = max(self.max_id, highest)


def after_mark(text: str, place: int) -> int:
    """``place``, or the end of the ``<|endoftext|>`` that a cut at ``place`` would go through."""
    inner = len(END_OF_TEXT) - 1
    mark = text.find(END_OF_TEXT, max(0, place - inner), place + inner)
    return place if mark < 0 else mark + len(END_OF_TEXT)


def whole_marks(pieces: Iterator[str]) -> Iterator[str]:
    """The same text, in pieces that no ``<|endoftext|>`` reaches across."""
    held = ""
    for piece in pieces:
        text = held + piece
        begun = next(n for n in range(len(END_OF_TEXT) - 1, -1, -1) if _ends_in(text, n))
        text, held = text[: len(text) - begun], text[len(text) - begun :]
        if text:
            yield text
    if held:
        yield held


def _ends_in(text: str, count: int) -> bool:
    return text.endswith(END_OF_TEXT[:count])
