"""Texts to train on, read in pieces so that they may be larger than memory.

``shakespeare``: 38 plays; ``tinyshakespeare``: the 1,115,394 bytes that nanoGPT uses; ``text``: the
user's file or folder.
"""

import codecs
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from llm.commands import for_shell
from llm.data import assets
from llm.errors import Refused, require

# For validation: a romance, a history, a tragedy and a comedy, whose scenes and speakers are never
# seen in training. None is among the nine plays of tiny Shakespeare.
HELD_OUT_PLAYS = ("cymbeline", "henry-v", "macbeth", "twelfth-night")
# For testing, again one of each kind and not in tiny Shakespeare: a tenth of the text.
TEST_PLAYS = ("henry-viii", "much-ado-about-nothing", "othello", "pericles")
PIECE = 1 << 20  # bytes read at a time
# Byte order marks. UTF-32 comes first, because its mark starts with the mark of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip


@dataclass(frozen=True)
class Document:
    """One text: a file, or bytes in memory.

    ``held_out``: for the validation split. ``test_first``: the first choice for the test split.
    """

    name: str
    source: Path | bytes
    held_out: bool = False
    test_first: bool = False

    def size(self) -> int:
        """In bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def pieces(self) -> Iterator[str]:
        """The text in pieces, with line ends as newlines and without a byte order mark.

        Raises :class:`llm.errors.Refused` with the offset of the first byte that is not UTF-8, or
        of the first NUL: it is valid UTF-8, but a sign of an archive or of UTF-16.
        """
        utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        newlines = io.IncrementalNewlineDecoder(None, translate=True)
        count = 0  # bytes read so far
        for raw in self._raw_pieces():
            nul = raw.find(b"\0")
            if nul >= 0:
                raise Refused(
                    f"{self.name} is not text: a NUL byte (U+0000) at offset {count + nul}, as in "
                    f"archives, UTF-16 and other binary files{self._how_to_convert(raw, '')}"
                )
            count += len(raw)
            try:
                text = newlines.decode(utf8.decode(raw, final=not raw), final=not raw)
            except UnicodeDecodeError as error:
                # error.object may start with up to three bytes of the previous piece.
                offset, byte = count - len(error.object) + error.start, error.object[error.start]
                raise Refused(
                    f"{self.name} is not UTF-8: byte {byte:#04x} at offset {offset}"
                    f"{self._how_to_convert(raw, 'GB18030')}"
                ) from None
            if text:
                yield text

    def _how_to_convert(self, raw: bytes, default: str) -> str:
        """``"; if it is GBK, convert it: iconv ..."`` for a text with the first bytes ``raw``."""
        encoding = next((MARKS[mark] for mark in MARKS if raw.startswith(mark)), default)
        name = Path(self.name)
        command = for_shell(["iconv", "-f", encoding, "-t", "UTF-8", self.name])
        new = for_shell([f"{name.stem}.utf8{name.suffix}"])
        known_as = "GBK" if encoding == "GB18030" else encoding  # GB18030 includes GBK
        return f"; if it is {known_as}, convert it: {command} > {new}" if encoding else ""

    def _raw_pieces(self) -> Iterator[bytes]:
        """The bytes in pieces, and an empty piece at the end."""
        try:
            source = self.source
            with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
                yield from iter(lambda: stream.read(PIECE), b"")
                yield b""
        except OSError as error:
            raise Refused(f"{self.name} cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class Corpus:
    """Texts in a fixed order. ``sha256`` identifies them; ``load`` may download them."""

    description: str
    sha256: str
    load: Callable[[], list[Document]]


def read_corpus(name: str, path: str | None = None) -> Corpus:
    """The corpus with this name. ``path``: the file or folder of ``text``, or a local copy of tiny
    Shakespeare.

    Files are hashed, but nothing is downloaded yet. Raises :class:`llm.errors.Refused` for a path
    that cannot be used.
    """
    if name == "shakespeare":
        return Corpus("38 plays by Shakespeare", assets.PLAYS_WHEEL_SHA256, _plays)
    if name == "dialogues":
        return Corpus("dialogues of Shakespeare's plays", assets.PLAYS_WHEEL_SHA256, _plays)
    if path is None:
        return _tiny_shakespeare(assets.tiny_shakespeare)
    try:
        if name == "text":
            return _text(path)
        if name == "conversations":
            rows = _existing_file(path)
            return Corpus(path, _file_sha256(rows), lambda: [Document(str(rows), rows)])
        with _existing_file(path).open("rb") as file:
            raw = file.read(2 * PIECE)  # enough for a copy; another file may have any size
    except OSError as error:
        where = f" ({error.filename})" if error.filename not in (None, path) else ""
        raise Refused(f"data.path={path} cannot be read: {error.strerror}{where}") from None
    assets.check_tiny_shakespeare(raw, path)
    return _tiny_shakespeare(lambda: raw)


def _plays() -> list[Document]:
    plays = assets.shakespeare_plays().items()
    return [
        Document(name, text.encode(), name in HELD_OUT_PLAYS, name in TEST_PLAYS)
        for name, text in plays
    ]


def _tiny_shakespeare(load: Callable[[], bytes]) -> Corpus:
    digest = assets.TINY_SHAKESPEARE_SHA256
    return Corpus("tiny Shakespeare", digest, lambda: [Document("tinyshakespeare", load())])


def _text(path: str) -> Corpus:
    root = expanded(path)
    files = _files_below(root, path) if root.is_dir() else [_existing_file(path)]
    documents = [Document(str(file), file) for file in files]
    require(any(document.size() for document in documents), f"data.path={path} is empty")
    for document in documents:
        next(document.pieces(), "")  # refuses most binary files at once, before they are hashed
    if files == [root]:
        return Corpus(path, _file_sha256(root), lambda: documents)
    digests = {str(file.relative_to(root)): _file_sha256(file) for file in files}
    return Corpus(path, assets.sha256(json.dumps(digests).encode()), lambda: documents)


def _files_below(root: Path, path: str) -> list[Path]:
    """All files below the folder ``root`` that are not hidden; ``path`` is the folder as typed.

    Raises :class:`llm.errors.Refused` for broken links, links to folders (which may be loops),
    pipes and devices, so that no text is left out silently.
    """
    files = []
    for folder, subfolders, names in os.walk(root, onerror=_raise):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for link in (Path(folder, name) for name in subfolders):
            require(
                not link.is_symlink(),
                f"{link} is a link to a folder, which is not followed: replace it by the folder, "
                "or give the folder as data.path",
            )
        for file in (Path(folder, name) for name in names if not name.startswith(".")):
            what = "a broken link" if file.is_symlink() and not file.exists() else "not a file"
            require(file.is_file(), f"{file} is {what}: remove it from data.path={path}")
            files.append(file)
    require(files, f"data.path={path} is a folder without files")
    return sorted(files)


def expanded(path: str) -> Path:
    """``path`` with ``~`` for the home folder, unless a file or folder has that very name."""
    return Path(path if os.path.lexists(path) else os.path.expanduser(path))


def _existing_file(typed: str) -> Path:
    path = expanded(typed)
    require(path.exists(), f"data.path={typed} does not exist")
    require(path.is_file(), f"data.path={typed} is not a file")
    return path


def _raise(error: OSError) -> NoReturn:
    raise error


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
