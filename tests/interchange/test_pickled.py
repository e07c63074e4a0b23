"""Pickles of torch.save: what training programs write is read, and small ones that would take
endlessly long are refused.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.errors import Refused
from llm.interchange.pickled import read_pickled
from tests.interchange.test_hostile_weights import Harmful


def test_what_a_training_program_saves_is_read_as_it_was_written(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    betas = (0.9, 0.95)  # one tuple in all groups
    groups = [{"params": [one], "betas": betas} for one in model.parameters()]
    optimizer = torch.optim.AdamW(groups)
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    saved = {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "again": groups[0],
        "config": {"dtype": torch.float16, "shape": torch.Size([3]), "b": [None, -(2**70)]},
    }  # fmt: skip
    torch.save(saved, tmp_path / "ckpt.pt")
    read = read_pickled(tmp_path / "ckpt.pt")
    assert str(read) == str(saved) and read["model"]._metadata == saved["model"]._metadata


def nested(depth: int) -> Any:
    x: Any = "a"
    for _ in range(depth):
        x = [x, x]
    return x


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


# x = (x, x), 26 times: 2^26 values, few enough that a test without the check ends
PAIRS = [b"K\x01q\x00", *(b"h%c\x86q%c" % (i, i + 1) for i in range(26))]
ENCODE = b"c_codecs\nencode\nX\x02\x00\x00\x00aaX\x06\x00\x00\x00latin1\x86R"
PICKLES = {
    "a list in itself many times": (pickle.dumps(nested(26), 2), "too many values inside"),
    "such a tuple as a key": (opcodes(b"}", *PAIRS, b"K\x01s"), "too many values inside"),
    "a list that is filled after its use": (
        opcodes(b"]]q\x00a]q\x01h\x00ah\x00h\x01a"), "changed after its use"),
    "tuples a thousand deep": (opcodes(b")", b"\x85" * 1000), "too many values inside"),
    "a text that is used a hundred times": (
        opcodes(b"X\x00\x00\x10\x00", b"a" * 2**20, b"q\x00", b"(", b"h\x00" * 100, b"t"),
        "too many values inside"),
    "encoded text, which can grow": (opcodes(ENCODE), "holds bytes, which are not"),
    "memory without content": (
        opcodes(b"c__builtin__\nbytearray\nJ\xff\xff\xff\x0f\x85R"), "holds bytes, which are not"),
    "a huge number": (pickle.dumps(10**9000, 2), "has a number of more than 255 bytes$"),
    "code": (pickle.dumps(Harmful(), 2), r"values: Trying to load unsupported GLOBAL \w+.system"),
    "nothing": (b"", "plain values: pickle exhausted before seeing STOP"),
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
def test_a_small_pickle_that_claims_much_is_refused_with_the_reason(
    name: str, tmp_path: Path
) -> None:
    content, words = PICKLES[name]
    torch.save({}, tmp_path / "empty.pt")
    with (
        zipfile.ZipFile(tmp_path / "empty.pt") as usual,
        zipfile.ZipFile(tmp_path / "ckpt.pt", "w") as archive,
    ):
        for entry in usual.namelist():  # torch finds DATA.PKL too
            name = entry.replace("data.pkl", "DATA.PKL")
            archive.writestr(name, content if name != entry else usual.read(entry))
    with pytest.raises(Refused, match=words):
        read_pickled(tmp_path / "ckpt.pt")
