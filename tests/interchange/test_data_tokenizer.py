"""``data.tokenizer``: the tokenizer of other weights prepares a text."""

import json
from pathlib import Path

import pytest

from llm.data.config import DataConfig
from llm.data.dataset import Dataset
from llm.data.prepare import prepare
from llm.data.tokenizer import CharTokenizer
from llm.errors import Refused
from llm.interchange.source import open_source
from llm.options import validate
from llm.settings.identity import identity
from llm.settings.origin import data_of_origin, shape_of_origin
from llm.settings.schema import TrainSettings
from tests.interchange import gguf_files
from tests.interchange.test_start_from import trained


def test_a_place_gives_its_tokenizer_and_may_move(tmp_path: Path) -> None:
    place = gguf_files.write(tmp_path / "net.gguf")
    (tmp_path / "text.txt").write_text("the day the night <|im_end|>\n" * 40)
    data = DataConfig("t", "text", str(tmp_path / "data"), str(tmp_path / "text.txt"), None)
    data.val_fraction = 0.2
    found = data_of_origin(data, str(place))
    assert (found.tokenizer, found.vocab_size) == (str(place), len(gguf_files.TOKENS))
    folder = prepare(found)
    dataset, weights = Dataset.open(folder), open_source("init_from", str(place))
    assert dataset.tokenizer.digest() == weights.tokenizer.digest()
    assert str(place) not in (folder / "meta.json").read_text().split('"source"')[1]
    moved = place.rename(tmp_path / "moved.gguf")
    assert prepare(data_of_origin(data, str(moved))) == folder
    plain = [{"data": {"tokenizer": str(one)}} for one in (place, moved)]
    assert identity(plain[0], "x") == identity(plain[1], "x")
    assert json.loads((folder / "meta.json").read_text())["tokenizer"]["end"] == "<|im_end|>"


def test_a_tokenizer_that_cannot_be_found_is_refused() -> None:
    with pytest.raises(Refused, match=r"data\.tokenizer is null: take one of gpt2, "):
        validate(DataConfig(tokenizer=None), "data.")
    assert data_of_origin(DataConfig(tokenizer=None), None).tokenizer == "gpt2"
    with pytest.raises(Refused, match=r"data\.tokenizer=gtp2 must be one of gpt2, .*'gpt2'\?"):
        validate(DataConfig(tokenizer="gtp2"), "data.")


@pytest.mark.parametrize("tokenizer", [None, "char"])
def test_a_vocabulary_of_characters_is_not_padded(tmp_path: Path, tokenizer: str | None) -> None:
    _, place = trained(tmp_path, CharTokenizer("abc"), vocab_size=3)
    settings = TrainSettings(init_from=place)
    settings.data = data_of_origin(DataConfig(tokenizer=tokenizer), place)
    for key, value in shape_of_origin(settings, []).items():
        setattr(settings.model, key, value)
    assert settings.resolve(3, "fp32").model.vocab_size == 3
