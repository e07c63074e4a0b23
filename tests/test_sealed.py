"""A file with a digest gives its values back, or is refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.errors import Refused
from llm.sealed import LARGEST, opened, read_bounded, read_json, sealed

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=60, deadline=None, database=None)
@given(values=st.dictionaries(st.text().filter(lambda key: key != "digest"), VALUES, max_size=4))
def test_plain_values_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "sealed.json"
    path.write_text(sealed(values), encoding="utf-8")
    assert opened(read_json(path), path) == values


@pytest.mark.parametrize(
    "change", [{"step": 2}, {"step": 1.0}, {"step": True}, {"new": 0}, {"digest": ""}], ids=str
)
def test_a_changed_value_is_refused(change: dict[str, Any]) -> None:
    values = json.loads(sealed({"step": 1, "name": "a"}))
    assert opened(values, Path("a.json")) == {"step": 1, "name": "a"}
    with pytest.raises(Refused, match=r"^a\.json is damaged: its digest"):
        opened(values | change, Path("a.json"))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b'{"loss": NaN}', "NaN is not a finite number"),
        (b'{"loss": 1e999}', "1e999 is not a finite number"),
        (b'{"loss": -Infinity}', "-Infinity is not a finite number"),
        (b"[" * 100_000, "cannot be read"),
        (b"9" * 10_000, "cannot be read"),
        (b'{"a": %s}' % (b"9" * 41), "a number of 41 digits"),
        (b'{"a": 1, "a": 1}', "a key occurs twice"),
        (b'{"a": [{"b": 1, "b": 2}]}', "a key occurs twice"),
        (b"[]", "is not a JSON object"),
        (b" " * (LARGEST + 1), "is too large"),
    ],
    ids=[
        "empty",
        "cut",
        "not UTF-8",
        "NaN",
        "beyond floats",
        "infinite",
        "deep",
        "long",
        "rather long",
        "twice",
        "twice inside",
        "a list",
        "too large",
    ],
)
def test_a_file_that_is_not_a_json_object_of_bounded_size_is_refused(
    tmp_path: Path, raw: bytes, reason: str
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(raw)
    with pytest.raises(Refused, match=reason) as refusal:
        read_json(path)
    assert str(refusal.value).startswith(f"{path} ")


def test_a_pipe_is_refused_and_a_missing_file_has_an_error_of_its_own(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Refused, match="is not a regular file"):
        read_json(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none")


def test_no_more_than_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(Refused, match="is too large: 5 bytes"):
        read_bounded(path, 4)
    endless = tmp_path / "endless"
    endless.symlink_to("/dev/zero")
    for strange in (endless, tmp_path):
        with pytest.raises(Refused, match="is not a regular file"):
            read_bounded(strange, 5)
