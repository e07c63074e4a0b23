"""The device that a process computes on, and its memory."""

import contextlib
import ctypes
import json
import os
import resource
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llm.errors import require
from llm.units import format_bytes


def select_device(name: str, key: str = "trainer.device", compiles: bool = False) -> torch.device:
    """``auto`` (cuda, else mps, else cpu), or a device by name, e.g. ``cuda:1``.

    Raises :class:`llm.errors.Refused` if the device is missing, and if torch.compile is used
    (``compiles``) but there is no compiler.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, is_there in available.items() if is_there)
    kind, colon, index = name.partition(":")
    require(kind in available, f"{key}={name} is unknown: take auto, cuda, mps or cpu")
    is_number = index.isascii() and index.isdigit()
    require(is_number or not colon, f"{key}={name} has no number after the colon: take {kind}:0")
    gpu = "Apple GPU" if kind == "mps" else "GPU"
    require(
        available[kind],
        f"{key}={name}, but torch {torch.__version__} sees no {gpu}: take {key}=cpu or auto",
    )
    if kind == "cuda":
        count = torch.cuda.device_count()
        require(
            int(index or 0) < count,
            f"{key}={name}, but the last GPU here is cuda:{count - 1}",
        )
    device = torch.device(name)
    if compiles:
        check_compiler(device)
    return device


def check_compiler(device: torch.device) -> None:
    """Raise :class:`llm.errors.Refused` if ``torch.compile`` would find no compiler.

    It needs a C++ compiler for a CPU and a C compiler for CUDA; Metal has its own.
    """
    names = {"cpu": ("CXX", ["g++", "clang++"]), "cuda": ("CC", ["gcc", "clang", "cc"])}
    if device.type in names:
        variable, known = names[device.type]
        commands = shlex.split(os.environ.get(variable, ""))[:1] or known
        require(
            any(map(shutil.which, commands)),
            f"trainer.compile=true needs a compiler ({commands[0]}): install g++ or gcc, "
            "or leave trainer.compile out",
        )


def set_deterministic(is_deterministic: bool) -> None:
    """Let torch use only algorithms that give the same bits each time, or any algorithms.

    Call it before the first tensor is made: cuBLAS reads its setting once.
    """
    if is_deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if is_deterministic != torch.are_deterministic_algorithms_enabled():  # the call takes a second
        torch.use_deterministic_algorithms(is_deterministic)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
HUGE_PAGE = 2 * 2**20  # bytes: torch asks for huge pages for blocks from this size on
HEAP_MOST = 16 * HUGE_PAGE  # the largest threshold that glibc accepts
WIDE = 512
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # 1 or 0: torch reads it once, at its first large tensor
decided: dict[str, str] = {}  # what it was set to in this process


def tune_allocator(n_embed: int, saves_memory: bool = False, adapters: bool = False) -> None:
    """Decide where glibc takes the memory of large CPU tensors (Linux): mapped one by one, to be
    returned when they are freed, or from the heap.

    Call it before the first tensor is made: the first run of a process decides on huge pages, and
    the tensors of adapters are mapped too if they come after a run with huge pages.

    glibc (2.36) rarely reuses a freed block for an aligned one of the same size, so a training step
    takes far more memory than it needs. A block that is mapped alone is returned whole; huge pages
    make mapping cheap. Networks narrower than :data:`WIDE` have little to save, and their blocks
    are slow to map, so their blocks are mapped only with ``saves_memory``.

    A step of ``adapters`` makes many tensors of a few MiB and frees most of them soon. From the
    heap, and without huge pages, which need another alignment, such a step takes 6% more memory and
    is 1.5 times as fast (python -m benchmarks.lora, row lora_heap).
    """
    # On CUDA, segments that can grow leave fewer gaps (torch reads this when it first allocates).
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    is_set_by_user = "MALLOC_MMAP_THRESHOLD_" in os.environ
    from_heap = adapters and not saves_memory
    is_tuned = from_heap or saves_memory or n_embed >= WIDE
    if sys.platform != "linux" or is_set_by_user or not is_tuned:
        return
    # Not setdefault: a process inherits what another one has set here.
    os.environ[HUGE_PAGES] = decided.setdefault(HUGE_PAGES, "0" if from_heap else "1")
    if from_heap and decided[HUGE_PAGES] == "0":
        threshold = HEAP_MOST
    else:
        threshold = HUGE_PAGE // 4 if saves_memory or adapters else HUGE_PAGE
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, threshold)
        mallopt(M_TRIM_THRESHOLD, 128 * HUGE_PAGE)  # with the default, glibc would trim often


def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Tensors on the device; through pinned memory for CUDA, so that copies overlap computation."""
    tensors = [torch.from_numpy(array) for array in arrays]
    if device.type == "cuda":
        return [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]
    return [tensor.to(device) for tensor in tensors]


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work; on a CPU, nothing is left to wait for."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def describe(device: torch.device) -> str:
    """The device's name, with its memory or its threads."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name} ({format_bytes(properties.total_memory)})"
    return f"cpu ({torch.get_num_threads()} threads)" if device.type == "cpu" else device.type


def total_memory(device: torch.device) -> int | None:
    """Bytes of a GPU; None elsewhere."""
    if device.type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)


def reserved_memory_bytes(device: torch.device) -> int | None:
    """Peak bytes that CUDA's allocator has reserved so far, gaps included; None elsewhere."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


def peak_memory_bytes(device: torch.device) -> int:
    """Peak bytes so far: of tensors on CUDA, elsewhere of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if peak := _process_status("VmHWM"):
        return peak  # Linux, where ru_maxrss starts at the peak of the parent process
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, else KiB


def process_memory(device: torch.device) -> int:
    """Bytes in use before the first tensor of a run.

    On a CPU, the memory of the process with its libraries. On CUDA, all memory that is not free
    after a first matrix product has made the context and workspaces, other programs included.
    """
    x = torch.ones(256, 256, device=device)
    (x @ x).sum().item()
    if device.type == "cuda":
        del x
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        free, total = torch.cuda.mem_get_info(device)
        return total - free - torch.cuda.memory_reserved(device)
    return _process_status("VmRSS") or peak_memory_bytes(device)


@contextlib.contextmanager
def restored_limit() -> Iterator[None]:
    """Take back at the end what :func:`limit_memory` limits on a CPU, because torch needs memory
    when the process exits too.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        yield
    finally:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def limit_memory(device: torch.device, further: int) -> bool:
    """Let this process take at most ``further`` bytes more; beyond that torch raises an error.

    Returns whether this system can do that. On CUDA torch's allocator limits tensors; on a CPU
    Linux limits the private memory of the process, libraries included.
    """
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        share = further / (total_memory(device) or further)
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), index)
        return True
    present = _process_status("VmData")
    if device.type != "cpu" or not present:
        return False
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = present + further
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    return True


def _process_status(key: str) -> int:
    """Bytes in the line ``key`` of /proc/self/status; 0 if there is no such file."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    values = (line.split()[1] for line in status.splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(next(values, 0))


if __name__ == "__main__":  # llm.planning.reserve runs this file to ask about a GPU
    _device = select_device(sys.argv[1])
    print(json.dumps([_device.type, process_memory(_device), total_memory(_device)]))
