"""Files with weights of other programs: everything that the formats share."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.data.tokenizer import Tokenizer
from llm.errors import Refused, require
from llm.interchange.chat_template import Chat
from llm.interchange.names import Names
from llm.model.config import GPTConfig

if TYPE_CHECKING:
    from torch import Tensor

    from llm.interchange.assemble import Stored

LONGEST_CONTEXT = 2048  # tokens; type model.block_size for a longer window


@dataclass(frozen=True)
class FileSource:
    """Weights of another program: see :class:`llm.interchange.source.Source`."""

    kind: str
    place: str
    model: GPTConfig
    names: Names
    files: tuple[Path, ...]  # of the weights
    read: "Callable[[tuple[Path, ...]], Mapping[str, Stored]]"  # imports torch
    find_tokenizer: Callable[[], Tokenizer]
    context: int  # tokens
    find_chat: Callable[[], Chat | None] = lambda: None

    @property
    def path(self) -> Path:
        """The place as typed."""
        return Path(self.place)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the weights, read when it is first asked for."""
        tokenizer, size = self.find_tokenizer(), self.model.vocab_size or 0
        require(
            tokenizer.vocab_size <= size,
            f"{self.place} has a tokenizer of {tokenizer.vocab_size:,} ids and an embedding of "
            f"{size:,}: the tokenizer belongs to other weights",
        )
        return tokenizer

    @property
    def chat(self) -> Chat | None:
        """The chat template beside the weights, as text."""
        return self.find_chat()

    def digest(self) -> str:
        """sha256 of the file with the weights; of several files, of their digests."""
        digests = [file_digest(path) for path in self.files]
        if len(digests) == 1:
            return digests[0]
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def weights(self) -> "dict[str, Tensor]":
        """The tensors of ``GPT.state_dict()``."""
        return dict(self.tensors())

    def tensors(self) -> "Iterator[tuple[str, Tensor]]":
        """The same, read one after another."""
        from llm.interchange.assemble import assemble

        where = self.files[0] if len(self.files) == 1 else self.path
        return assemble(where, self.model, self.names, self.read(self.files))


def resolved(config: GPTConfig, path: Path) -> GPTConfig:
    """``config`` with every ``None`` filled in.

    With rotary positions no weight depends on ``block_size``, so it is cut to
    :data:`LONGEST_CONTEXT`. Raises :class:`llm.errors.Refused`, naming ``path``, for numbers that
    do not fit together.
    """
    if config.position == "rotary":
        config = replace(config, block_size=min(config.block_size, LONGEST_CONTEXT))
    try:
        return config.resolve()
    except Refused as error:
        raise Refused(f"{path}: {error}") from None


def require_supported(condition: object, where: str, value: Any) -> None:
    """Raise :class:`llm.errors.Refused` for an option that may change the logits.

    ``where``: the file and the key.
    """
    reason = "may change what the network computes, and this program does not support it"
    require(condition, f"{where}={value!r:.60} {reason}")


def refuse_pickle(path: Path, what: str, better: str) -> None:
    """Raise :class:`llm.errors.Refused` if ``path`` exists; ``better``: a safe file."""
    require(
        not path.exists(),
        f"{path} is a pickle, which may run code: save the {what} anew with "
        f"model.save_pretrained(FOLDER), which writes {better}",
    )


def require_file(path: Path) -> None:
    """Raise :class:`llm.errors.Refused` unless ``path`` is a regular file that fits into memory."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise Refused(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from None
    require(stat.S_ISREG(status.st_mode), f"{path} is not a regular file")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    too_large = f"{path} has {status.st_size:,} bytes, and this machine has {memory:,} of memory"
    require(status.st_size < memory, too_large)


def file_digest(path: Path) -> str:
    """sha256 of a file. It takes a second or two per gigabyte, once in a process."""
    require_file(path)
    try:
        status = path.stat()
        return _digest(path.resolve(), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from None


@cache
def _digest(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
