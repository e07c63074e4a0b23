"""Tensor files are written exactly, without extra memory; a failed write publishes nothing."""

import hashlib
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from llm.checkpoint.checkpoint import WEIGHTS
from llm.checkpoint.folder import CheckpointFolder, newest_valid
from llm.checkpoint.tensors import TYPES, write_tensors
from llm.errors import DiskError
from llm.model.gpt import GPT
from tests.checkpoint.conftest import assert_equal, names
from tests.conftest import ROOT, needs_linux


def test_tensors_of_every_type_and_layout_come_back(tmp_path: Path) -> None:
    tensors = {str(dtype): torch.tensor([[0, 1], [1, 0]]).to(dtype) for dtype in TYPES}
    whole = torch.randn(4, 6)
    tensors |= {"transposed": whole.T, "part": whole[1:, ::2].clone()[:, :2], "one": torch.ones(())}
    tensors["parameter"] = torch.nn.Parameter(torch.randn(3, 2))
    digest = write_tensors(tmp_path / "a", tensors)
    assert_equal(safetensors.torch.load_file(tmp_path / "a"), tensors)
    assert digest == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()


def test_tensors_that_share_memory_are_written_separately(tmp_path: Path) -> None:
    tensor = torch.arange(6.0)
    shared = {"a": tensor, "b": tensor, "part": tensor[2:4], "empty": torch.empty(0)}
    write_tensors(tmp_path / "shared.safetensors", shared)
    found = safetensors.torch.load_file(tmp_path / "shared.safetensors")
    assert all(torch.equal(found[name], shared[name]) for name in shared)


def test_a_checkpoint_is_as_readable_as_other_new_files(saved: Path) -> None:
    os.umask(mask := os.umask(0o022))
    for path in saved.iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask


# Prints by how many bytes the peak of resident memory grew while 128 MiB were saved.
MEASURE = """
import re, sys
from pathlib import Path
import torch
from llm.checkpoint.tensors import write_tensors
from llm.device import WIDE, tune_allocator

def status(key):
    return 1024 * int(re.search(rf"{key}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

tune_allocator(WIDE)  # as run_train.py does: otherwise glibc keeps much of what is freed
tensors = {f"{n}": torch.full((4 << 20,), float(n), dtype=torch.bfloat16) for n in range(16)}
write_tensors(Path(sys.argv[1]), {"a": torch.ones(8, 8)})
before = status("VmRSS")
write_tensors(Path(sys.argv[1]), tensors)
print(status("VmHWM") - before)
"""


@needs_linux
def test_saving_takes_no_memory(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "file")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (tmp_path / "file").stat().st_size > 128 << 20
    assert int(done.stdout) < 4 << 20


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_write_that_fails_in_the_middle_of_a_file_publishes_nothing(
    share: float, folder: CheckpointFolder, save: Callable[[int], Path], tiny_model: GPT
) -> None:
    largest = int(share * (save(4) / WEIGHTS).stat().st_size)  # bytes of a file
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    message = re.escape("step-00000006 could not be written: File too large (")
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    try:
        with pytest.raises(DiskError, match=message):
            save(6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(folder) == ["last", "step-00000004"]
    newest, damaged = newest_valid(folder.folder.parent)
    assert newest is not None and newest.step == 4 and not damaged
    assert_equal(newest.weights(), tiny_model.state_dict())
