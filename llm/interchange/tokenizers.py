"""Tokenizers of other programs."""

from pathlib import Path

from llm.data.tokenizer import GPT2Tokenizer, Tokenizer
from llm.errors import Refused
from llm.sealed import LARGEST, read_bounded


def tokenizer_of_folder(path: Path) -> Tokenizer:
    """The tokenizer in a folder of Hugging Face; :class:`llm.errors.Refused` if it has none."""
    merges = path / "merges.txt"
    if not merges.exists():
        raise Refused(f"{path} has no tokenizer")
    return GPT2Tokenizer(read_bounded(merges, LARGEST).decode("utf-8", errors="replace"))
