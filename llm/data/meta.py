"""``meta.json`` of a prepared folder describes its token files and holds their tokenizer."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llm.errors import Refused, require
from llm.options import from_plain, option
from llm.sealed import Plain, opened, read_json

META = "meta.json"
FORMAT_VERSION = 2
SPLITS = ("train", "val", "test")  # test: only with data.test_fraction
OF_TOKENIZER = ("tokenizer", "allow_special")  # keys of made_from that do not change the text
OTHER = "take another data.name, or replace it with data.overwrite=true"
AGAIN = "prepare it again with data.overwrite=true"


@dataclass(frozen=True)
class Counts:
    """A number for each split."""

    train: int = option(at_least=1)
    val: int = option(at_least=1)
    test: int | None = option(None, at_least=1)  # None: there is no test split


@dataclass(frozen=True)
class Digests:
    """A sha256 for each split."""

    train: str
    val: str
    test: str | None = None


@dataclass(frozen=True, kw_only=True)
class ConversationMeta:
    """What ``meta.json`` says of conversations in addition to their tokens."""

    template: dict[str, Any]
    count: Counts
    answer_tokens: Counts
    answer_bytes: Counts
    answers: Digests  # sha256 of the files that mark answers
    starts: Digests  # sha256 of the files of where conversations start
    mix_tokens: int | None = option(None, at_least=1)  # of the text that is mixed in
    mix_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Meta:
    """The values of ``meta.json``."""

    format_version: int = option(one_of=(FORMAT_VERSION,))
    name: str
    dtype: str = option(one_of=("uint16", "uint32"))
    byte_order: str = option(one_of=("little",))
    vocab_size: int = option(at_least=1)
    max_id: int = option(at_least=0)
    tokens: Counts
    bytes: Counts  # of text
    sha256: Digests  # of the token files
    source: dict[str, Any]
    made_from: dict[str, Any]  # the settings that decide the contents
    tokenizer: dict[str, Any]
    conversations: ConversationMeta | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits: ``("train", "val")``, and ``"test"`` if there is one."""
        return SPLITS if self.tokens.test is not None else SPLITS[:2]

    def plain(self) -> Plain:
        """The values of the file, where a missing test split has no key."""
        plain = asdict(self)
        for key in ("tokens", "bytes", "sha256"):
            plain[key] = of_splits(getattr(self, key))
        if self.conversations is None:
            del plain["conversations"]
        return plain

    def with_conversations(self, conversations: ConversationMeta) -> "Meta":
        """The same values for conversations."""
        return replace(self, conversations=conversations)

    def digest(self) -> str:
        """sha256 that identifies the token ids and their meaning."""
        tokenizer = hashlib.sha256(json.dumps(self.tokenizer, sort_keys=True).encode()).hexdigest()
        values: list[Any] = [of_splits(self.sha256), self.dtype, tokenizer]
        if self.conversations is not None:
            values.append(asdict(self.conversations))
        identity = json.dumps(values, sort_keys=self.conversations is not None)
        return hashlib.sha256(identity.encode()).hexdigest()

    def text_digest(self) -> str:
        """sha256 that identifies the text and its splits, independent of the tokenizer."""
        texts = {
            key: value for key, value in self.made_from.items()
            if key not in OF_TOKENIZER and value is not None
        }  # fmt: skip
        return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()


def read_meta(folder: Path) -> Meta:
    """The values of ``meta.json``; raises :class:`llm.errors.Refused` naming the wrong one."""
    path = folder / META
    try:
        meta = from_plain(Meta, opened(read_json(path), path), f"{path}: ")
        splits = {tuple(of_splits(values)) for values in (meta.tokens, meta.bytes, meta.sha256)}
        require(len(splits) == 1, f"{path}: tokens, bytes and sha256 name different splits")
        return meta
    except FileNotFoundError:
        raise Refused(f"{folder} is not a prepared dataset, it has no {META}: {OTHER}") from None
    except Refused as error:
        raise Refused(f"{error}: {AGAIN}") from None


def of_splits(values: Counts | Digests) -> Plain:
    """The value of each split that exists, by its name."""
    return {split: value for split, value in asdict(values).items() if value is not None}
