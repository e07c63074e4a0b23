"""Tensor files (safetensors): write one durably, read one that is not trusted."""

import hashlib
import math
import os
import re
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from llm.disk import sync_file
from llm.errors import require
from llm.functional.sizes import BLOCK_8BIT

MOST_STATE = 64  # bytes of optimizer state per weight
LARGEST_HEADER = 8 << 20  # bytes; 512 layers and an optimizer in 8 bits need 7 million
Shapes = dict[str, tuple[int, ...]]  # by the name of the tensor, as in the next two
Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]
# The shape (None: any short list) and the possible types.
Allowed = dict[str, tuple[tuple[int, ...] | None, tuple[str, ...]]]
TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip  # their names in safetensors
# States of random generators, see llm/training/random_state.py.
RANDOM = {
    "random/cpu": "U8", "random/cuda": "U8", "random/mps": "U8", "random/python": "I64",
    "random/numpy": "I64", "random/gauss": "F64",
}  # fmt: skip
LONGEST_RANDOM = 8192  # numbers


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write a tensor file and sync it; returns its sha256. Raises ``OSError``.

    Takes no memory for tensors on the host. Tensors on a GPU are copied to the host all at once.
    """
    save_durably(_separate(tensors), path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_durably(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a new file and sync it; raises ``OSError``, also for errors that the library words."""
    try:
        safetensors.torch.save_file(tensors, path, metadata)
    except safetensors.SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from None
    # The library makes files that only their owner can read. Be as open as the folder is.
    path.chmod(path.parent.stat().st_mode & 0o666)
    sync_file(path)


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors that share memory with another, which safetensors refuses.

    A custom optimizer may store one tensor under two names.
    """
    separate, used = {}, set()
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if memory in used else tensor.contiguous()
        used.add(memory)
    return separate


def require_size(path: Path, weights: Shapes, is_training: bool) -> None:
    """Raise :class:`llm.errors.Refused` unless ``path`` is a file, and not too large for a model
    with these weights and for this machine.
    """
    require(os.path.isfile(path), f"{path} is missing, or not a regular file")
    size = path.stat().st_size
    largest = sum(map(math.prod, weights.values())) * (MOST_STATE if is_training else 4)
    fits = size <= largest + LARGEST_HEADER
    require(fits, f"{path} has {size:,} bytes, more than such a model can have")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    require(size < memory, f"{path} has {size:,} bytes, and this machine has {memory:,} of memory")


def allowed_training(weights: Shapes, custom: Layout | None) -> Allowed:
    """The tensors that a file of training state may contain: the optimizer's and generators'.

    ``custom``: the state of a custom optimizer; None: any built-in one, see
    llm/training/optimizer.py.
    """
    allowed: Allowed = {name: (None, (kind,)) for name, kind in RANDOM.items()}
    if custom is not None:
        kinds = {name: (shape, (TYPES.get(dtype, ""),)) for name, (shape, dtype) in custom.items()}
        return allowed | kinds
    for parameter, shape in weights.items():
        scales = (-(-math.prod(shape) // BLOCK_8BIT),)
        state: Allowed = {
            "step": ((), ("F32",)), "momentum": (shape, ("F32",)),
            "exp_avg": (shape, ("F32", "U8")), "exp_avg_sq": (shape, ("F32", "U8")),
            "exp_avg_scale": (scales, ("F32",)), "exp_avg_sq_scale": (scales, ("F32",)),
        }  # fmt: skip
        allowed |= {f"optimizer/{parameter}/{key}": value for key, value in state.items()}
    return allowed


def read_tensors(path: Path, allowed: Allowed) -> dict[str, Tensor]:
    """The tensors of a file. Names, shapes and types are checked before any is read: with a wrong
    shape some of torch's kernels write out of bounds.

    Raises :class:`llm.errors.Refused` for tensors that are not ``allowed`` and for values that are
    not finite; ``OSError`` or ``SafetensorError`` for a file that cannot be read.
    """
    # Read, not mapped: mapped pages would count as memory in addition to the tensors.
    with safetensors.safe_open(path, "pt", backend="pread") as file:
        names = list(file.keys())
        for name in names:
            described = file.get_slice(name)
            shape, kind = tuple(described.get_shape()), described.get_dtype()
            require(name in allowed, f"{path} has a tensor {name} that this model lacks")
            needed, kinds = allowed[name]
            is_short_list = len(shape) == 1 and shape[0] <= LONGEST_RANDOM
            fits = is_short_list if needed is None else shape == needed
            require(fits, f"{path}: {name} has shape {shape}, this model needs {needed}")
            expected = " or ".join(kinds)
            require(kind in kinds, f"{path}: {name} is {kind}, and {expected} expected")
        # Cloned into memory that torch allocates, aligned for its kernels.
        tensors = {name: file.get_tensor(name).clone() for name in names}
    for name, tensor in tensors.items():
        finite = not tensor.is_floating_point() or bool(tensor.isfinite().all())
        require(finite, f"{path}: {name} has values that are not finite")
    return tensors
