"""A prepared folder holds the tokens that nanoGPT would have made of the text."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken

from llm.data import assets
from llm.data.assets import sha256
from llm.data.config import DataConfig
from llm.data.dataset import Dataset
from llm.data.prepare import prepare
from llm.data.tokenizer import Tokenizer, from_json
from llm.data.writing import TokenWriter
from tests.data.tiktoken_reference import tiktoken_gpt2

TEXT = "".join(f"KING {n}:\nI'll say {n * n}  words, my lòrd.\n\n" for n in range(400))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tiktoken.Encoding:
    return tiktoken_gpt2(tmp_path_factory.mktemp("tiktoken"))


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """400 speeches by characters, a tenth for validation, in a folder that does not exist yet."""
    (tmp_path / "play.txt").write_text(TEXT, encoding="utf-8")
    path, data = str(tmp_path / "play.txt"), str(tmp_path / "new" / "data")
    return DataConfig(name="play", corpus="text", dir=data, path=path, val_fraction=0.1)


def meta_of(folder: Path) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return meta


def ids_of(folder: Path, split: str) -> list[int]:
    return np.fromfile(folder / f"{split}.bin", dtype=meta_of(folder)["dtype"]).tolist()


def write_files(folder: Path, files: dict[str, str]) -> str:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize("tokenizer", ["char", "byte", "gpt2"])
def test_a_folder_holds_two_splits_and_describes_them(config: DataConfig, tokenizer: str) -> None:
    seen = list[tuple[int, int]]()
    folder = prepare(replace(config, tokenizer=tokenizer), lambda *progress: seen.append(progress))
    assert seen[-1] == (2 * len(TEXT.encode()), 2 * len(TEXT.encode()))  # it is read twice
    assert sorted(f.name for f in folder.iterdir()) == ["meta.json", "train.bin", "val.bin"]
    assert [f.name for f in folder.parent.iterdir()] == [folder.name]
    meta, raw = meta_of(folder), {s: (folder / f"{s}.bin").read_bytes() for s in ("train", "val")}
    saved = from_json(meta["tokenizer"])
    ids = {split: np.frombuffer(raw[split], "<u2").tolist() for split in raw}
    text = {split: saved.decode(ids[split]) for split in ids}
    assert text["train"] + text["val"] == TEXT
    assert (meta["format_version"], meta["dtype"]) == (2, "uint16")
    assert meta["vocab_size"] == saved.vocab_size
    assert meta["max_id"] == max(ids["train"] + ids["val"])
    assert meta["tokens"] == {split: len(ids[split]) for split in ids}
    assert meta["bytes"] == {split: len(text[split].encode()) for split in text}
    assert meta["sha256"] == {split: sha256(raw[split]) for split in raw}
    assert meta["source"]["sha256"] == sha256(TEXT.encode())


@pytest.mark.parametrize("tokenizer", ["gpt2", "byte", "char"])
def test_several_documents_are_kept_apart(
    config: DataConfig, reference: tiktoken.Encoding, tmp_path: Path, tokenizer: str
) -> None:
    path = write_files(tmp_path / "texts", {"a": "one two", "b": "three four", "c": ""})
    folder = prepare(replace(config, path=path, tokenizer=tokenizer, val_fraction=0.3))
    encode, end = {
        "gpt2": (reference.encode_ordinary, [50_256]),
        "byte": (lambda text: list(text.encode()), [256]),
        "char": (lambda text: ["\n efhnortuw".index(c) for c in text], [0]),
    }[tokenizer]
    assert ids_of(folder, "train") == [*encode("one two"), *end, *encode("thre")]
    assert ids_of(folder, "val") == [*encode("e four"), *end, *end]  # the empty document is last


def test_without_a_fraction_whole_plays_are_held_out(plays: DataConfig) -> None:
    folder = prepare(plays)
    decode = from_json(meta_of(folder)["tokenizer"]).decode
    assert decode(ids_of(folder, "train")) == "HAMLET:\nTo be.\n\n"
    assert decode(ids_of(folder, "val")) == "MACBETH:\nOut, out!\n\n"
    assert meta_of(folder)["source"]["sha256"] == assets.PLAYS_WHEEL_SHA256


class CodePoints(Tokenizer):
    kind = "stub"

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str) -> np.ndarray:
        return np.array([ord(character) for character in text], dtype=np.uint32)

    def token_bytes(self, token: int) -> bytes:
        return chr(token).encode()


@pytest.mark.parametrize(
    ("vocab_size", "dtype", "ids"),
    [
        (65_536, "uint16", [0, 65_535]),
        (65_537, "uint32", [0, 65_535, 65_536]),
        (70_001, "uint32", [0, 65_535, 65_536, 70_000]),
    ],
)
def test_ids_beyond_16_bits_get_32(
    tmp_path: Path, vocab_size: int, dtype: str, ids: list[int]
) -> None:
    with (tmp_path / "x.bin").open("wb") as file:
        writer = TokenWriter(file, CodePoints(vocab_size))
        writer.write("".join(map(chr, ids)))
        writer.finish()
    assert np.fromfile(tmp_path / "x.bin", dtype=dtype).tolist() == ids
    assert (writer.dtype.name, writer.max_id, writer.tokens) == (dtype, ids[-1], len(ids))


def test_an_id_beyond_the_vocabulary_is_never_written(tmp_path: Path) -> None:
    for vocab_size in (65_536, 70_000):  # 65536 in 16 bits would be 0
        with (tmp_path / "x.bin").open("wb") as file:
            writer = TokenWriter(file, CodePoints(vocab_size))
            writer.write(chr(vocab_size))
            with pytest.raises(ValueError, match=f"{vocab_size} is beyond the vocabulary"):
                writer.finish()
        assert (tmp_path / "x.bin").stat().st_size == 0


def test_a_file_name_that_is_not_unicode_works(config: DataConfig, tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9 'x'.txt")
    Path(os.fsdecode(path)).write_text("one two three\n")
    made = Dataset.open(prepare(replace(config, path=os.fsdecode(path))))
    assert made.tokenizer.decode(made.train.tolist()) == "one two thre"
