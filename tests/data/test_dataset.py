"""A folder that does not match its meta.json is refused, naming the file."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm.data.batches import BatchSampler
from llm.data.config import DataConfig
from llm.data.dataset import Dataset
from llm.data.prepare import prepare
from llm.errors import Refused
from tests.data.meta_file import edit_meta


def test_a_dataset_holds_the_text_it_was_prepared_from(dataset: Dataset, text_file: Path) -> None:
    text = text_file.read_text(encoding="utf-8")
    train, val = (dataset.tokenizer.decode(s.tolist()) for s in (dataset.train, dataset.val))
    assert train + val == text
    assert dataset.bytes_per_token == len(val.encode()) / len(dataset.val)
    assert isinstance(dataset.train, np.memmap)


def test_the_digest_names_the_contents_and_not_the_place(dataset: Dataset, folder: Path) -> None:
    assert Dataset.open(folder).digest == dataset.digest
    edit_meta(folder, lambda meta: meta["sha256"].update(train="0" * 64))
    assert Dataset.open(folder).digest != dataset.digest


def test_the_text_of_a_dataset_is_named_whatever_its_tokenizer(
    tmp_path: Path, text_file: Path
) -> None:
    def text(**changes: Any) -> str:
        config = {"tokenizer": "char", "val_fraction": 0.5, "path": str(text_file)} | changes
        made = DataConfig(name="play", corpus="text", dir=str(tmp_path / "data"), **config)
        return Dataset.open(prepare(made)).text

    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text(encoding="utf-8") + "!", encoding="utf-8")
    assert len(text()) == 64
    assert text() == text(tokenizer="byte") == text(tokenizer="gpt2", allow_special=True)
    assert len({text(), text(val_fraction=0.25), text(path=str(other))}) == 3


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("change", [None, -1_000_000, -1, 2])
def test_a_split_that_is_missing_or_of_another_size_is_refused(
    folder: Path, split: str, change: int | None
) -> None:
    path = folder / f"{split}.bin"
    if change is None:
        path.unlink()
    else:
        os.truncate(path, max(0, path.stat().st_size + change))
    with pytest.raises(Refused) as refusal:
        Dataset.open(folder)
    assert str(refusal.value).startswith(f"{path} has ")
    assert "data.overwrite=true" in str(refusal.value)


def test_ids_of_32_bits_are_not_read_as_16(dataset: Dataset, folder: Path) -> None:
    for split in ("train", "val"):
        getattr(dataset, split).astype("<u4").tofile(folder / f"{split}.bin")
    with pytest.raises(Refused, match=rf"{folder}/train\.bin has \d+ bytes, but .* tokens of 2"):
        Dataset.open(folder)
    edit_meta(folder, lambda meta: meta.update(dtype="uint32"))
    assert Dataset.open(folder).train.tolist() == dataset.train.tolist()


def test_an_id_beyond_the_vocabulary_is_refused(folder: Path) -> None:
    edit_meta(folder, lambda meta: meta.update(max_id=meta["vocab_size"]))
    with pytest.raises(Refused, match=rf"{folder} holds token id \d+, beyond its vocabulary"):
        Dataset.open(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format_version": 99}, r": format_version=99 must be one of 2"),
        ({"colour": "red"}, r": colour is an unknown key"),
        ({"tokens": {"train": 0, "val": 9}}, r": tokens\.train=0 must be at least 1"),
        ({"dtype": "float32"}, r": dtype=float32 must be one of uint16, uint32"),
        ({"tokens": {"train": 9}}, r": tokens\.val is missing"),
        ({"bytes": {"train": 9, "val": "9"}}, r": bytes\.val=9 must be a whole number"),
        ({"vocab_size": 5}, r" says vocab_size=5, but its tokenizer has \d+"),
    ],
    ids=str,
)
def test_a_wrong_value_in_meta_json_is_refused_by_name(
    folder: Path, change: dict[str, Any], said: str
) -> None:
    edit_meta(folder, lambda meta: meta.update(change))
    with pytest.raises(Refused, match=rf"{folder}/meta\.json{said}: .*data\.overwrite=true$"):
        Dataset.open(folder)


def claim(folder: Path, split: str, tokens: int) -> None:
    """Write into ``meta.json`` that a split has ``tokens`` tokens of one byte each."""
    edit_meta(folder, lambda m: [m[key].update({split: tokens}) for key in ("tokens", "bytes")])


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_needs_one_token_more_than_a_block(folder: Path, split: str) -> None:
    path = folder / f"{split}.bin"
    for length in (1, 16):
        os.truncate(path, 2 * length)
        claim(folder, split, length)
        with pytest.raises(Refused, match=rf"^{path} has {length} tokens, and .*=16 needs 17"):
            Dataset.open(folder).check(block_size=16, vocab_size=100)
    os.truncate(path, 2 * 17)
    claim(folder, split, 17)
    opened = Dataset.open(folder)
    opened.check(block_size=16, vocab_size=100)
    x, y = BatchSampler(getattr(opened, split), 16, batch_size=3, seed=1).batch(step=5)
    assert x.shape == y.shape == (3, 16)


def test_a_model_with_a_smaller_vocabulary_than_the_data_is_refused(dataset: Dataset) -> None:
    needed = dataset.tokenizer.vocab_size
    dataset.check(16, needed)
    with pytest.raises(Refused, match=rf"model\.vocab_size={needed - 1} is smaller .* {needed}$"):
        dataset.check(16, needed - 1)
