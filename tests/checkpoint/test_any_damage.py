"""A changed checkpoint loads as before or is refused."""

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm.checkpoint.checkpoint import MANIFEST, TRAINING, WEIGHTS, Checkpoint
from llm.checkpoint.folder import CheckpointFolder, newest_valid
from llm.data.tokenizer import ByteTokenizer
from llm.errors import Refused
from llm.model.gpt import GPT
from llm.sealed import sealed
from tests.checkpoint.conftest import STATE, assert_equal
from tests.conftest import TINY_MODEL

FILES = (MANIFEST, WEIGHTS, TRAINING)
OLDER, NEWER = 2, 4
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints; each test leaves them as they were."""
    torch.manual_seed(0)
    run, tokenizer = tmp_path_factory.mktemp("run"), ByteTokenizer()
    model = GPT(**TINY_MODEL, vocab_size=tokenizer.vocab_size)
    folder = CheckpointFolder(run, 2, model.config, tokenizer, {"data_digest": "d" * 64})
    training = {
        "optimizer/norm.weight/step": torch.tensor(4.0),
        "optimizer/norm.weight/exp_avg": torch.randn(32),
        "random/cpu": torch.get_rng_state(),
        "random/gauss": torch.tensor([0.0, 0.0, 1.0, 0.5], dtype=torch.float64),
    }
    for step in (OLDER, NEWER):
        folder.save(step, model.state_dict(), training, STATE | {"small": 1e-05})
    return run


@pytest.fixture
def newest(run: Path) -> Iterator[Path]:
    """The path of the newer one, which is restored after the test."""
    path = run / "checkpoints" / f"step-{NEWER:08d}"
    good = {name: (path / name).read_bytes() for name in FILES}
    yield path
    write(path, good)


def write(path: Path, files: Files) -> None:
    for name, raw in files.items():
        (path / name).write_bytes(raw)


def loaded(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Everything in a checkpoint: plain values, weights, training state."""
    checkpoint = Checkpoint.open(path)
    plain = {key: getattr(checkpoint, key) for key in ("step", "model", "state", "identity")}
    plain["tokenizer"] = checkpoint.tokenizer.to_json()
    return plain, checkpoint.load_model(torch.device("cpu")).state_dict(), checkpoint.training()


def assert_same(found: Any, wanted: Any) -> None:
    assert repr(found[0]) == repr(wanted[0])  # as text: True == 1 == 1.0
    assert_equal(found[1], wanted[1])
    assert_equal(found[2], wanted[2])


def is_noticed(run: Path, newest: Path, name: str, raw: bytes, wanted: Any) -> bool:
    """Whether a checkpoint with one other file is refused.

    Asserts that it loads as before if not, and that a resume takes the older one if it is.
    """
    (newest / name).write_bytes(raw)
    resumed, skipped = newest_valid(run)
    assert resumed is not None
    try:
        assert_same(loaded(newest), wanted)
    except Refused as refusal:
        assert str(newest / name) in str(refusal)
        assert resumed.step == OLDER
        assert set(skipped) == {newest} and str(newest / name) in skipped[newest]
        return True
    assert resumed.step == NEWER and not skipped
    return False


@pytest.mark.parametrize("count", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(
    run: Path, newest: Path, count: int, report: Callable[[str], None]
) -> None:
    rng, wanted, noticed = random.Random(count), loaded(newest), 0
    for n in range(count):
        name = FILES[n % len(FILES)]
        good = (newest / name).read_bytes()
        raw = bytearray(good)
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        noticed += is_noticed(run, newest, name, bytes(raw), wanted)
        (newest / name).write_bytes(good)
    report(f"bitflips: n={count} silent=0")
    assert noticed > count * 0.9


@pytest.mark.parametrize("count", [9, pytest.param(100, marks=pytest.mark.slow)])
def test_a_file_cut_anywhere_is_refused(
    run: Path, newest: Path, count: int, report: Callable[[str], None]
) -> None:
    rng, wanted = random.Random(count), loaded(newest)
    for n in range(count):
        name = FILES[n % len(FILES)]
        good = (newest / name).read_bytes()
        # The manifest ends with a newline, which may be missing.
        ends = {0: 0, 1: len(good) - 1}
        length = ends.get(n // len(FILES), rng.randrange(len(good)))
        noticed = is_noticed(run, newest, name, good[:length], wanted)
        assert noticed or (name == MANIFEST and length == len(good) - 1)
        (newest / name).write_bytes(good)
    report(f"truncations: n={count} silent=0")


@pytest.mark.parametrize(
    ("old", "new", "noticed"),
    [
        (b"1e-05", b"1E-05", False),  # the same value
        (b'"format_version": 1', b'"format_version": 3', True),  # not taken for a later version's
    ],
)
def test_a_flip_counts_as_damage_only_if_it_changes_a_value(
    run: Path, newest: Path, old: bytes, new: bytes, noticed: bool
) -> None:
    wanted, raw = loaded(newest), (newest / MANIFEST).read_bytes()
    assert old in raw
    assert is_noticed(run, newest, MANIFEST, raw.replace(old, new), wanted) is noticed


@pytest.mark.parametrize("count", [50, pytest.param(2000, marks=pytest.mark.slow)])
def test_any_change_is_refused_or_loads_as_what_the_files_say(
    newest: Path, count: int, report: Callable[[str], None]
) -> None:
    wanted, good = loaded(newest), {name: (newest / name).read_bytes() for name in FILES}
    seen: list[bool] = []

    @settings(max_examples=count, derandomize=True, database=None, deadline=None)
    @given(changed(good))
    def try_it(change: tuple[Files, bool]) -> None:
        files, has_right_digests = change
        write(newest, files)
        seen.append(False)
        try:
            found = loaded(newest)
        except Refused:
            return
        if has_right_digests:
            assert_says(files, found)
        else:
            assert_same(found, wanted)
        seen[-1] = True

    try_it()
    report(f"mutations: n={len(seen)} other=0 ({sum(seen)} load, the others are refused)")
    assert len(seen) >= count
    assert 0 < sum(seen) < count / 2


def assert_says(files: Files, found: Any) -> None:
    """Assert that what was loaded is what the files contain."""
    manifest = json.loads(files[MANIFEST])
    for key in ("step", "state", "identity"):
        assert repr(found[0][key]) == repr(manifest[key])
    assert_equal(found[1], safetensors.torch.load(files[WEIGHTS]))
    assert_equal(found[2], safetensors.torch.load(files[TRAINING]))


Draw = Callable[[Any], Any]
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.text(max_size=8),
    st.floats(allow_nan=False), st.builds(list), st.builds(dict),
    st.sampled_from([-1, 0, 1, 2, 3, 10**9, 2**63, 1e308, "F32", "BOOL", "${x}", WEIGHTS]),
    st.lists(st.integers(-1, 4), max_size=3),
)  # fmt: skip


@st.composite
def changed(draw: Draw, good: Files) -> tuple[Files, bool]:
    """The files of a checkpoint with one of them changed, and whether their digests are right."""
    name = draw(st.sampled_from(FILES))
    change = draw(st.sampled_from([bytes_changed, bytes_changed, text_changed, values_changed]))
    files = good | {name: change(draw, good[name])}
    if resealed := draw(st.booleans()):
        files[MANIFEST] = with_right_digests(files)
    return files, resealed


def bytes_changed(draw: Draw, raw: bytes) -> bytes:
    """Replace, delete, double or insert a few bytes."""
    at = draw(st.integers(0, min(len(raw), 2000)) | st.integers(0, len(raw)))
    some = raw[at : at + draw(st.sampled_from([1, 1, 2, 4, 8, 40, 400, len(raw)]))]
    new = draw(st.sampled_from([b"", some * 2]) | st.binary(min_size=1, max_size=8))
    return raw[:at] + new + raw[at + len(some) :]


def text_changed(draw: Draw, raw: bytes) -> bytes:
    """Replace a number, a name or a bracket of the JSON with another one in it."""
    start, end = text_of(raw)
    pieces = [match.span() for match in re.finditer(rb'"[^"]*"|[\w.+-]+|[^\w\s]', raw[start:end])]
    (a, b), (c, d) = draw(st.sampled_from(pieces)), draw(st.sampled_from(pieces))
    return resized(raw, raw[start : start + a] + raw[start + c : start + d] + raw[start + b : end])


def values_changed(draw: Draw, raw: bytes) -> bytes:
    """Replace, delete, copy or add one value of the JSON."""
    start, end = text_of(raw)
    values = json.loads(raw[start:end])
    spots = list(spots_of(values))
    (where, key), (other, another) = draw(st.sampled_from(spots)), draw(st.sampled_from(spots))
    match draw(st.sampled_from(["replace", "remove", "copy", "add"])):
        case "replace":
            where[key] = draw(VALUES)
        case "remove":
            del where[key]
        case "copy":
            where[key] = json.loads(json.dumps(other[another]))
        case "add" if isinstance(where, dict):
            where[draw(st.text(max_size=8))] = draw(VALUES)
        case "add":
            where.append(draw(VALUES))
    return resized(raw, json.dumps(values).encode())


def text_of(raw: bytes) -> tuple[int, int]:
    """Start and end of the JSON in a file: all of a manifest, or the header of tensors."""
    is_manifest = raw.startswith(b"{")
    return (0, len(raw)) if is_manifest else (8, 8 + int.from_bytes(raw[:8], "little"))


def resized(raw: bytes, text: bytes) -> bytes:
    """The file with its JSON replaced."""
    start, end = text_of(raw)
    return (len(text).to_bytes(8, "little") if start else b"") + text + raw[end:]


def spots_of(values: Any) -> Iterator[tuple[Any, Any]]:
    """Every list and dict, nested ones too, with each of its indices or keys."""
    for key, value in list(values.items() if isinstance(values, dict) else enumerate(values)):
        yield values, key
        if isinstance(value, dict | list):
            yield from spots_of(value)


def with_right_digests(files: Files) -> bytes:
    """The manifest with correct digests, if it still has a place for them."""
    try:
        manifest = json.loads(files[MANIFEST])
        for name in {WEIGHTS, TRAINING} & set(manifest["files"]):
            manifest["files"][name] = hashlib.sha256(files[name]).hexdigest()
        manifest.pop("digest", None)
        return sealed(manifest).encode()
    except (ValueError, KeyError, AttributeError, TypeError):
        return files[MANIFEST]
