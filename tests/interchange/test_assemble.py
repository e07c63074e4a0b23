"""Weights are read one after another, and only after the names and shapes of all are checked."""

import re
from pathlib import Path

import pytest
from torch import Tensor

from llm.errors import Refused
from llm.interchange.assemble import Stored, assemble
from llm.interchange.files import FileSource
from llm.interchange.source import open_source
from tests.interchange.theirs import VARIANTS


def counted(stored: dict[str, Stored], read: list[str]) -> dict[str, Stored]:
    """``stored``, whose names are added to ``read`` when their values are read."""

    def reader(name: str) -> Tensor:
        read.append(name)
        return stored[name].read()

    return {name: one._replace(read=lambda name=name: reader(name)) for name, one in stored.items()}


@pytest.mark.parametrize("kind", ["Llama", "GPT-2", "Llama, tied, 3 files"])
def test_no_tensor_is_read_before_the_last_one_is_checked(kind: str, tmp_path: Path) -> None:
    VARIANTS[kind].save(tmp_path)
    source, read = open_source("ckpt", str(tmp_path)), list[str]()
    assert isinstance(source, FileSource)
    stored = counted(dict(source.read(source.files)), read)
    weights = assemble(source.path, source.model, source.names, stored)
    next(weights)
    assert len(read) == 1
    assert list(weights) and sorted(read) == sorted(stored)
    read.clear()
    name, last = list(stored.items())[-1]
    others = {key: one for key, one in stored.items() if key != name}
    for wrong, said in [
        ({name: last._replace(shape=(*last.shape, 1))}, f"{re.escape(name)} has shape"),
        ({name: last._replace(kind="I8")}, f"{re.escape(name)} is I8"),
        ({}, f"has no tensor {re.escape(name)}"),
        ({name: last, "extra": last}, "has a tensor extra"),
    ]:
        with pytest.raises(Refused, match=said):
            list(assemble(source.path, source.model, source.names, others | wrong))
        assert not read, said
