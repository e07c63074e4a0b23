"""Devices are selected, described and limited, or refused in one line."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llm.device import (
    describe,
    limit_memory,
    peak_memory_bytes,
    select_device,
    set_deterministic,
)
from llm.errors import Refused, as_stop

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
with_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")


@without_gpu
def test_auto_is_the_cpu_without_a_gpu() -> None:
    if torch.backends.mps.is_available():
        pytest.skip("this machine has an Apple GPU")
    assert select_device("auto") == torch.device("cpu")


@with_gpu
def test_auto_is_the_gpu_if_there_is_one() -> None:
    assert select_device("auto").type == "cuda"


@without_gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_missing_gpu_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(Refused, match=rf"trainer\.device={name}, .* sees no GPU") as refusal:
        select_device(name)
    assert "\n" not in str(refusal.value)
    assert "trainer.device=cpu or auto" in str(refusal.value)


@with_gpu
def test_a_gpu_beyond_the_last_is_refused() -> None:
    with pytest.raises(Refused, match=r"cuda:99, but the last GPU here is cuda:"):
        select_device("cuda:99")


@pytest.mark.parametrize("name", ["tpu", "", "CUDA", "cpu0", "meta"])
def test_an_unknown_device_is_refused_with_its_key(name: str) -> None:
    with pytest.raises(Refused, match=rf"^device={name} is unknown: take auto, cuda, mps or cpu"):
        select_device(name, key="device")


@pytest.mark.parametrize("name", ["cpu:", "cpu:x", "cuda:", "cuda:-1", "cpu:²"])
def test_a_device_without_its_number_is_refused(name: str) -> None:
    with pytest.raises(Refused, match=rf"trainer\.device={name} has no number"):
        select_device(name)


def test_the_cpu_is_described_with_its_threads() -> None:
    assert describe(torch.device("cpu")) == f"cpu ({torch.get_num_threads()} threads)"


@pytest.fixture
def choice_of_algorithms(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is restored
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.use_deterministic_algorithms(before)


def scatter() -> None:
    """An operation for which torch has no deterministic algorithm."""
    torch.zeros(3).put_(torch.tensor([1, 1]), torch.ones(2))


def test_an_operation_that_is_not_deterministic_fails_in_a_deterministic_run(
    choice_of_algorithms: None,
) -> None:
    set_deterministic(True)
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation") as fault:
        scatter()
    stop = as_stop(fault.value)
    assert isinstance(stop, Refused) and "set trainer.deterministic=false" in str(stop)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    set_deterministic(False)
    scatter()


def test_a_cublas_setting_of_the_user_is_not_changed(
    choice_of_algorithms: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_deterministic(False)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    set_deterministic(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_the_kernels_figure_in_bytes() -> None:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    kernel = 1024 * int(status.partition("VmHWM:")[2].split()[0])
    assert peak_memory_bytes(torch.device("cpu")) == pytest.approx(kernel, rel=0.01)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_of_a_process_does_not_start_at_the_peak_of_its_parent() -> None:
    array = np.ones(800 * 2**17)  # 800 MiB
    program = (
        "import torch; from llm.device import peak_memory_bytes as p; print(p(torch.device('cpu')))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert int(found.stdout) < array.nbytes


needs_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries have allocators of their own"
)


@needs_glibc
def test_a_tuned_allocator_returns_large_tensors_to_the_system() -> None:
    program = """
from pathlib import Path
from llm.device import WIDE, tune_allocator
tune_allocator(WIDE)
import torch
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
torch.ones(1 << 20), torch.ones(1 << 20)
before = resident()
for _ in range(3):  # untuned, glibc keeps such blocks from the second time on
    large = [torch.ones(1 << 20) for _ in range(8)]
    small = torch.ones(8)  # lies above them
    del large
print(resident() - before)
"""
    found = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert int(found.stdout) < 8 << 20


@needs_glibc
@pytest.mark.parametrize(
    ("tuned", "is_reused"),
    [
        ("adapters=True", True),
        ("adapters=True, saves_memory=True", False),
        pytest.param("", False, marks=pytest.mark.slow),
        pytest.param("adapters=True); tune_allocator(WIDE", False, marks=pytest.mark.slow),
        ("); tune_allocator(WIDE, adapters=True", False),
    ],
)
def test_a_tensor_of_adapters_takes_the_memory_of_the_last_one(tuned: str, is_reused: bool) -> None:
    program = f"""
import resource
from llm.device import WIDE, tune_allocator
tune_allocator(WIDE, {tuned})
import torch
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
size = 9 << 18  # 2.25 MiB: as pages, most of them small
for n in range(60):
    if n == 40:  # the heap has grown to its size
        before = faults()
    torch.empty(size, dtype=torch.uint8).fill_(1)
print((faults() - before) / 20)
"""
    inherited = os.environ | {"THP_MEM_ALLOC_ENABLE": "1"}  # of a process that was tuned
    found = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=inherited
    )
    assert (float(found.stdout) < 20) == is_reused  # of 576 small pages, or 65 if one is huge


@pytest.mark.parametrize(("name", "index"), [("cuda", 1), ("cuda:0", 0)])
def test_a_gpu_without_a_number_is_limited_too(
    name: str, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[float, int]] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda.memory, "_lazy_init", lambda: None)
    facts = SimpleNamespace(total_memory=8 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    monkeypatch.setattr(
        torch._C, "_cuda_setMemoryFraction", lambda *both: given.append(both), raising=False
    )
    assert limit_memory(torch.device(name), 2 * 2**30)
    assert given == [(0.25, index)]


def test_limit_memory_is_false_if_the_system_has_no_limits() -> None:
    assert not limit_memory(torch.device("mps"), 2**30)
