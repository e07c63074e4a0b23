"""A tensor file is the one that safetensors would write, without taking memory for it."""

import contextlib
import hashlib
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from llm.checkpoint import writing
from llm.checkpoint.checkpoint import TRAINING, WEIGHTS, Checkpoint
from llm.checkpoint.folder import CheckpointFolder, newest_valid
from llm.checkpoint.writing import ALIGNMENT, TYPES, pieces
from llm.errors import DiskError
from llm.model.gpt import GPT
from tests.checkpoint.conftest import STATE, assert_equal, names
from tests.conftest import ROOT


def file_of(tensors: dict[str, Tensor]) -> bytes:
    return b"".join(pieces(tensors))


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Of numbers from 0 to 99, which every type can hold."""
    drawn = torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(dtype) if dtype != torch.bool else drawn % 2 == 0


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (2, 3), (4, 0, 2), (2, 1, 3, 5)])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_file_is_to_the_last_byte_what_safetensors_writes(
    dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path
) -> None:
    tensors = {"a": random_tensor(shape, dtype), "odd": torch.tensor([True] * 3)}
    raw = file_of(tensors)
    assert raw == safetensors.torch.save(tensors)
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw)
    assert_equal(safetensors.torch.load_file(path), tensors)
    with safe_open(path, "pt") as found:
        assert set(found.keys()) == set(tensors)
        assert torch.equal(found.get_tensor("a"), tensors["a"])


@st.composite
def any_tensor(draw: Any) -> Tensor:
    """Of any type and shape: whole, a part of another one, turned round, or repeated."""
    dtype, seed = draw(st.sampled_from(list(TYPES))), draw(st.integers(0, 2**32))
    tensor = random_tensor(tuple(draw(st.lists(st.integers(0, 5), max_size=4))), dtype, seed)
    part = [slice(draw(st.integers(0, 3)), None, draw(st.integers(1, 3))) for _ in tensor.shape]
    tensor = tensor[tuple(part)]
    tensor = tensor.permute(draw(st.permutations(range(tensor.dim()))))
    return tensor.expand(draw(st.integers(1, 3)), *tensor.shape) if draw(st.booleans()) else tensor


@settings(max_examples=200, derandomize=True, database=None, deadline=None)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), any_tensor(), max_size=6))
def test_so_it_is_for_tensors_of_any_strides_and_names(tensors: dict[str, Tensor]) -> None:
    raw = file_of(tensors)
    assert raw == safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()})
    assert_equal(safetensors.torch.load(raw), tensors)


def test_every_tensor_begins_at_a_multiple_of_its_types_size() -> None:
    tensors = {
        f"{n}": random_tensor((2 * n + 1,), dtype) for n, dtype in enumerate([*TYPES, *TYPES])
    }
    raw = file_of(tensors)
    length = int.from_bytes(raw[:8], "little")
    assert length % ALIGNMENT == 0
    for name, entry in json.loads(raw[8 : 8 + length]).items():
        assert entry["data_offsets"][0] % tensors[name].itemsize == 0


def test_tensors_that_share_their_numbers_each_get_them(tmp_path: Path) -> None:
    whole = torch.randn(4, 6)
    tensors = {"a": whole, "same": whole, "turned": whole.T, "row": whole[1], "number": whole[1, 2]}
    path = tmp_path / "a.safetensors"
    path.write_bytes(file_of(tensors))
    assert_equal(safetensors.torch.load_file(path), tensors)


def test_parameters_are_written_and_keep_their_gradients() -> None:
    weight = torch.nn.Parameter(torch.randn(3, 2))
    weight.grad = torch.ones(3, 2)
    assert_equal(safetensors.torch.load(file_of({"a": weight})), {"a": weight.detach()})
    assert weight.requires_grad and weight.grad is not None


def test_a_tensor_in_pieces_is_written_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"a": torch.randn(7, 5), "b": torch.randn(9, 2).bfloat16().T, "c": torch.tensor(1)}
    whole = file_of(tensors)
    monkeypatch.setattr(writing, "PIECE", 10)
    assert max(len(piece) for piece in list(pieces(tensors))[1:]) == 10
    assert file_of(tensors) == whole


def test_a_type_that_cannot_be_written_is_noticed_before_anything_is() -> None:
    with pytest.raises(KeyError, match="complex64"):
        next(pieces({"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.complex64)}))


def test_the_digest_is_that_of_the_file(saved: Path) -> None:
    files = Checkpoint.open(saved).files
    assert set(files) == {WEIGHTS, TRAINING}
    for name, digest in files.items():
        assert hashlib.sha256((saved / name).read_bytes()).hexdigest() == digest


# Prints by how many bytes the most that the process has held grew while it saved. What it held
# before is what counts now: an earlier peak could only make the figure larger. (ru_maxrss would
# begin with what the parent held.)
MEASURE = """
import re, sys
from pathlib import Path
import safetensors.torch, torch
from llm.checkpoint.folder import _write
from llm.device import WIDE, tune_allocator

def kept(key):
    return 1024 * int(re.search(rf"{key}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

tune_allocator(WIDE)  # as run_train.py does: else glibc keeps much of what is freed
how, folder, count, size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
tensors = {f"{n}": torch.full((2, size // 4), float(n), dtype=torch.bfloat16) for n in range(count)}
if how == "turned":
    tensors = {name: tensor.T for name, tensor in tensors.items()}
torch.ones(8, 8).T.contiguous().view(torch.uint8).numpy()  # what is loaded when first used
safetensors.torch.save({})
_write(folder / "warm-up", {"a": torch.ones(8, 8)})
before = kept("VmRSS")
if how == "at once":
    (folder / "file").write_bytes(safetensors.torch.save(tensors))
else:
    _write(folder / "file", tensors)
print(kept("VmHWM") - before)
"""
COUNT, SIZE = 16, 8 << 20  # tensors, and bytes of each
SLACK = 4 << 20  # bytes


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what a process holds")
@pytest.mark.parametrize(
    ("how", "least", "most"),
    [("as it is", 0, 0), ("turned", SIZE, SIZE), ("at once", COUNT * SIZE, 4 * COUNT * SIZE)],
)
def test_saving_holds_a_copy_of_one_tensor_at_most(
    how: str, least: int, most: int, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", MEASURE, how, str(tmp_path), str(COUNT), str(SIZE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (tmp_path / "file").stat().st_size > COUNT * SIZE
    assert least - SLACK <= int(done.stdout) <= most + SLACK


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file gets larger than this: a write that would make it so fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_write_that_fails_in_the_middle_of_a_file_publishes_nothing(
    share: float, folder: CheckpointFolder, saved: Path, tiny_model: GPT,
    training: dict[str, Tensor],
) -> None:  # fmt: skip
    size = (saved / WEIGHTS).stat().st_size
    with (
        largest_file(int(share * size)),
        pytest.raises(DiskError, match="step-00000006 could not be written: File too large"),
    ):
        folder.save(6, tiny_model.state_dict(), training, STATE)
    assert names(folder) == ["last", "step-00000004"]
    newest, skipped = newest_valid(folder.folder.parent)
    assert newest is not None and newest.step == 4 and not skipped
    assert_equal(newest.weights(), tiny_model.state_dict())
