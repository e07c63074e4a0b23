"""``meta.json`` of a prepared folder describes its token files and holds their tokenizer."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm.errors import Refused
from llm.options import from_plain, option
from llm.sealed import opened, read_json

META = "meta.json"
FORMAT_VERSION = 2
SPLITS = ("train", "val")
OF_TOKENIZER = ("tokenizer", "allow_special")  # keys of made_from that do not change the text
OTHER = "take another data.name, or replace it with data.overwrite=true"
AGAIN = "prepare it again with data.overwrite=true"


@dataclass(frozen=True)
class Counts:
    """A number for each split."""

    train: int = option(at_least=1)
    val: int = option(at_least=1)


@dataclass(frozen=True)
class Digests:
    """A sha256 for each split."""

    train: str
    val: str


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

    def digest(self) -> str:
        """sha256 that identifies the token ids and their meaning."""
        tokenizer = hashlib.sha256(json.dumps(self.tokenizer, sort_keys=True).encode()).hexdigest()
        identity = json.dumps([asdict(self.sha256), self.dtype, tokenizer])
        return hashlib.sha256(identity.encode()).hexdigest()

    def text_digest(self) -> str:
        """sha256 that identifies the text and its splits, whatever tokenizer reads it."""
        texts = {
            key: value for key, value in self.made_from.items()
            if key not in OF_TOKENIZER and value is not None
        }  # fmt: skip
        return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()


def read_meta(folder: Path) -> Meta:
    """The values of ``meta.json``; raises :class:`llm.errors.Refused` naming the wrong one."""
    path = folder / META
    try:
        return from_plain(Meta, opened(read_json(path), path), f"{path}: ")
    except FileNotFoundError:
        raise Refused(f"{folder} is not a prepared dataset, it has no {META}: {OTHER}") from None
    except Refused as error:
        raise Refused(f"{error}: {AGAIN}") from None
