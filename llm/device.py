"""The one device a process computes on, and what it says about its memory."""

import ctypes
import json
import os
import resource
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llm.errors import INSTALL_COMPILER, Refused, require


def select_device(name: str, key: str = "trainer.device", compiles: bool = False) -> torch.device:
    """``auto`` (cuda, else mps, else cpu), or a device by name, e.g. ``cuda:1``.

    Raises :class:`llm.errors.Refused` for a device that is not there, and where ``compiles`` (for
    it, with torch.compile) and there is no compiler.
    """
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    kind, colon, index = name.partition(":")
    require(kind in ("cuda", "mps", "cpu"), f"{key}={name} is unknown: take auto, cuda, mps or cpu")
    numbered = index.isascii() and index.isdigit()
    require(numbered or not colon, f"{key}={name} has no number after the colon: take {kind}:0")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise Refused(
                f"{key}={name}, but torch {torch.__version__} sees no GPU: take {key}=cpu or auto"
            )
        count = torch.cuda.device_count()
        require(
            int(index or 0) < count,
            f"{key}={name}, but there are only {count} GPUs, numbered from 0",
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise Refused(
            f"{key}={name}, but torch {torch.__version__} sees no Apple GPU: take {key}=cpu or auto"
        )
    device = torch.device(name)
    if compiles:
        check_compiler(device)
    return device


def check_compiler(device: torch.device) -> None:
    """Raise :class:`llm.errors.Refused` where ``torch.compile`` would find no compiler.

    For a CPU it writes C++, for a GPU a little C beside its kernels.
    """
    names = {"cpu": ("CXX", ("g++", "clang++")), "cuda": ("CC", ("gcc", "clang", "cc"))}
    if device.type not in names:  # Metal brings its own
        return
    variable, known = names[device.type]
    wanted = shlex.split(os.environ.get(variable, ""))[:1] or known
    found = any(map(shutil.which, wanted))
    require(found, f"trainer.compile=true needs a compiler ({wanted[0]}): {INSTALL_COMPILER}")


def set_deterministic(wanted: bool) -> None:
    """Whether only algorithms are used that give the same bits each time. Call it before the first
    tensor is made: cuBLAS reads its setting once.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if wanted != torch.are_deterministic_algorithms_enabled():  # the call imports a compiler
        torch.use_deterministic_algorithms(wanted)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
MAPPED_FROM = 2 * 2**20  # bytes: from here on torch asks for huge pages
WIDE = 512


def tune_allocator(n_embed: int, closely: bool = False) -> None:
    """Let the system reclaim large CPU tensors (Linux). Call it before the first tensor is made.

    glibc (2.36) rarely finds room for an aligned block where one of its size was freed, so that a
    training step comes to hold far more than it needs. Mapped one by one, large blocks go back
    whole; huge pages make that cheap, and decoding reads weights faster from them. Narrow networks
    have little to save, and blocks too small for huge pages, which are slow to map. So theirs are
    mapped, smaller ones too, only where memory is watched ``closely``.
    """
    given = "MALLOC_MMAP_THRESHOLD_" in os.environ
    # CUDA: blocks that can grow leave fewer gaps (torch reads it when it first asks for memory).
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    if sys.platform == "linux" and (closely or n_embed >= WIDE) and not given:
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages: torch reads it once
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
        if set_option:
            set_option(M_MMAP_THRESHOLD, MAPPED_FROM // 4 if closely else MAPPED_FROM)
            set_option(M_TRIM_THRESHOLD, 128 * MAPPED_FROM)  # else the heap is trimmed all the time


def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Tensors on the device; through pinned memory for CUDA, so that copying overlaps work."""
    tensors = [torch.from_numpy(array) for array in arrays]
    if device.type == "cuda":
        return [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]
    return [tensor.to(device) for tensor in tensors]  # not read before it has arrived


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was told to; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def describe(device: torch.device) -> str:
    """The device's name, with its memory or its threads."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name} ({properties.total_memory / 2**30:.1f} GiB)"
    return (
        f"{device.type} ({torch.get_num_threads()} threads)"
        if device.type == "cpu"
        else device.type
    )


def reserved_memory_bytes(device: torch.device) -> int | None:
    """Most bytes that CUDA's allocator has taken so far, gaps included; None elsewhere."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


def held_before(device: torch.device) -> int:
    """Bytes that are taken before the first tensor of a run: what no prediction counts.

    On a CPU the process with its libraries. On CUDA what is not free once the first product has
    made its context and workspaces: also what other programs hold there.
    """
    x = torch.ones(256, 256, device=device)
    (x @ x).sum().item()
    if device.type == "cuda":
        del x
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        free, total = torch.cuda.mem_get_info(device)
        return total - free - torch.cuda.memory_reserved(device)
    return _of_process("VmRSS") or peak_memory_bytes(device)


def total_memory(device: torch.device) -> int | None:
    """Bytes that a GPU has; None elsewhere, where the system may have more."""
    if device.type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)


def limit_memory(device: torch.device, further: int) -> bool:
    """Let this process take ``further`` bytes; for more, torch raises an error. Returns
    whether that can be done here.

    On CUDA that is its allocator's, on a CPU the kernel's limit on private memory (Linux), which
    also counts what libraries allocate meanwhile.
    """
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        share = further / (total_memory(device) or further)
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), index)
        return True
    data = _of_process("VmData")
    if device.type != "cpu" or not data:
        return False
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = data + further
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    return True


def release_memory() -> None:
    """Give back what the allocator keeps for later: another attempt begins from nothing."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _of_process(key: str) -> int:
    """A line of Linux's account of this process, in bytes; 0 elsewhere."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    found = (line.split()[1] for line in status.splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(next(found, 0))


def peak_memory_bytes(device: torch.device) -> int:
    """Most bytes held at once so far: by tensors on CUDA, elsewhere by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if own := _of_process("VmHWM"):
        return own  # Linux, where ru_maxrss starts at what the parent process held
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, else KiB


if __name__ == "__main__":  # what llm.planning.setup asks about a GPU
    _device = select_device(sys.argv[1])
    print(json.dumps([_device.type, held_before(_device), total_memory(_device)]))
