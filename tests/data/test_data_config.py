"""Options that cannot work are refused before any text is read."""

from typing import Any

import pytest

from llm.data.config import DataConfig
from llm.errors import Refused
from llm.options import validate

TEXT = {"corpus": "text", "path": "notes.txt", "val_fraction": 0.1}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (TEXT | {"val_fraction": None}, r"data\.val_fraction must be a number for text"),
        (
            {"corpus": "tinyshakespeare", "val_fraction": None},
            r"data\.val_fraction must be a number for tinyshakespeare",
        ),
        (TEXT | {"path": None}, r"data\.path is missing: .*data\.path=FILE_OR_FOLDER"),
        (TEXT | {"path": ""}, r"data\.path is missing"),
        ({"path": "x.txt"}, r"shakespeare_char have their own text: for x\.txt use data=text"),
        ({"path": "x.JSONL"}, r"for x\.JSONL use data=chat or data=instruct"),
        ({"name": ""}, r"data\.name= must be letters"),
        ({"name": "a/b"}, r"data\.name=a/b must be letters"),
        (
            {"tokenizer": "byte", "vocab_size": 256},
            r"data\.vocab_size=256, but the byte tokenizer has 257",
        ),
    ],
    ids=str,
)
def test_an_option_that_cannot_work_is_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(Refused, match=named) as refusal:
        validate(DataConfig(**values), "data.")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("values", "vocab_size"),
    [
        ({"vocab_size": 77}, 77),
        ({"tokenizer": "gpt2"}, 50_257),
        ({"tokenizer": "byte", "vocab_size": 257, "name": "A.b_c-9红楼梦"}, 257),
        (TEXT | {"val_fraction": 0.999}, None),
        ({"corpus": "tinyshakespeare", "val_fraction": 0.1, "vocab_size": 65}, 65),
    ],
    ids=str,
)
def test_the_vocabulary_size_is_known_before_the_text_unless_it_depends_on_it(
    values: dict[str, Any], vocab_size: int | None
) -> None:
    config = DataConfig(**values)
    validate(config, "data.")
    assert config.declared_vocab_size() == vocab_size
