"""A flipped bit anywhere in a prepared folder is noticed."""

import contextlib
import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llm.data.config import DataConfig
from llm.data.dataset import Dataset
from llm.data.meta import read_meta
from llm.data.prepare import prepare
from llm.errors import Refused
from tests.data.meta_file import edit_meta


def flip(path: Path, bit: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[bit // 8] ^= 1 << bit % 8
    path.write_bytes(raw)


def test_a_folder_is_verified_in_pieces_with_progress_up_to_its_size(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [(dataset.folder / f"{split}.bin").stat().st_size for split in ("train", "val")]
    monkeypatch.setattr("llm.data.dataset.READ", sizes[0] // 4 * 2)
    seen: list[tuple[int, int]] = []
    dataset.verify(lambda done, total: seen.append((done, total)))
    assert dataset.size == sum(sizes)
    assert (sizes[0] // 4 * 2, dataset.size) in seen and (sizes[0], dataset.size) in seen
    assert seen[-1] == (dataset.size, dataset.size)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_flipped_bit_in_a_split_is_noticed_by_verify(folder: Path, split: str) -> None:
    path = folder / f"{split}.bin"
    bits = 8 * path.stat().st_size
    for bit in (0, bits - 1, *random.Random(0).sample(range(bits), 10)):
        flip(path, bit)
        opened = Dataset.open(folder)
        with pytest.raises(Refused, match=rf"^{path} is damaged: .*data\.overwrite=true$"):
            opened.verify()
        flip(path, bit)
    Dataset.open(folder).verify()


def test_a_split_that_is_gone_after_it_was_opened_is_refused_by_verify(folder: Path) -> None:
    opened = Dataset.open(folder)
    (folder / "val.bin").unlink()
    with pytest.raises(Refused, match=rf"^{folder}/val\.bin cannot be read: No such file"):
        opened.verify()


@pytest.fixture
def of_bytes(tmp_path: Path, text_file: Path) -> Path:
    """A prepared folder of the byte tokenizer, whose end-of-text id stands for 0 bytes."""
    return prepare(DataConfig("b", "text", str(tmp_path), str(text_file), "byte", val_fraction=0.1))


def replace_ids(folder: Path, split: str, change: Callable[[np.ndarray], object]) -> None:
    """Change the ids of a split, and its digest with them."""
    path = folder / f"{split}.bin"
    ids = np.fromfile(path, "<u2")
    change(ids)
    ids.tofile(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_meta(folder, lambda meta: meta["sha256"].update({split: digest}))


def read_an_epoch(opened: Dataset) -> None:
    """As a run reads large data, which is not verified at the start."""
    list(opened.validation(8, 64, None)[1])
    batches = opened.sampler(8, 64, seed=1)
    for step in range(1, batches.windows // 64 + 2):
        batches.batch(step)


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_id_beyond_the_vocabulary_is_noticed_whatever_meta_json_says(
    of_bytes: Path, split: str
) -> None:
    replace_ids(of_bytes, split, lambda ids: ids.__setitem__(-1, 65_535))
    opened = Dataset.open(of_bytes)
    with pytest.raises(Refused, match=rf"{split}\.bin holds token id 65535, beyond its .* 257"):
        read_an_epoch(opened)
    with pytest.raises(Refused, match=rf"({split}\.bin holds \d+ bytes|holds ids up to 65535)"):
        opened.verify()


def test_counts_that_are_not_those_of_the_files_are_noticed(of_bytes: Path) -> None:
    edit_meta(of_bytes, lambda meta: meta["bytes"].update(val=7))
    with pytest.raises(Refused, match=r"val\.bin holds \d+ bytes of text, but meta\.json says 7: "):
        Dataset.open(of_bytes).verify()
    size = (of_bytes / "val.bin").stat().st_size // 2
    edit_meta(of_bytes, lambda meta: meta["bytes"].update(val=size) or meta.update(max_id=250))
    with pytest.raises(Refused, match=r"holds ids up to 121, but meta\.json says 250: "):
        Dataset.open(of_bytes).verify()


def test_end_of_text_ids_count_no_bytes(of_bytes: Path) -> None:
    replace_ids(of_bytes, "val", lambda ids: ids.__setitem__(slice(5), 256))
    edit_meta(
        of_bytes, lambda m: m.update(max_id=256) or m["bytes"].update(val=m["bytes"]["val"] - 5)
    )
    Dataset.open(of_bytes).verify()


def test_a_folder_that_is_replaced_after_it_was_opened_is_not_taken_for_the_old_one(
    folder: Path,
) -> None:
    opened = Dataset.open(folder)
    edit_meta(folder, lambda meta: meta["sha256"].update(train="0" * 64))
    with pytest.raises(Refused, match=rf"^{folder} changed while it was read: start again$"):
        opened.verify()


def test_a_flipped_bit_in_any_byte_of_meta_json_is_refused_or_means_nothing(folder: Path) -> None:
    path, whole, chance = folder / "meta.json", read_meta(folder), random.Random(0)
    for byte in range(path.stat().st_size):
        bit = 8 * byte + chance.randrange(8)
        flip(path, bit)
        with contextlib.suppress(Refused):  # white space may have changed
            assert read_meta(folder) == whole
        flip(path, bit)


@pytest.mark.parametrize("name", ["meta.json", "train.bin", "val.bin"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_a_pipe_or_device_in_the_place_of_a_file_is_refused_and_not_waited_for(
    folder: Path, name: str, kind: str
) -> None:
    path = folder / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(Refused, match=rf"^{path} "):
        Dataset.open(folder)
