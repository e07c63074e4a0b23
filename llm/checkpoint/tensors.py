"""Tensor files: reading one that may be anybody's."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from llm.checkpoint.shapes import Shapes
from llm.errors import Refused, require
from llm.functional.sizes import BLOCK_8BIT
from llm.sealed import unique

LARGEST_HEADER = 8 << 20  # bytes; 512 layers and an optimizer in 8 bits need 7 million
WEIGHTS = ("F32", "BF16")
# What an optimizer keeps for a parameter, see llm/training/optimizer.py: a count, or one number for
# each weight, or one for each block of weights. In all, they take MOST_STATE bytes for each weight,
# or fewer.
OF_OPTIMIZERS = {
    "step": ("F32",), "momentum": ("F32",), "exp_avg": ("F32", "U8"), "exp_avg_sq": ("F32", "U8"),
    "exp_avg_scale": ("F32",), "exp_avg_sq_scale": ("F32",),
}  # fmt: skip
MOST_STATE = 64
Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]  # shape and type of tensors, by name
TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip  # as safetensors calls them
# States of generators, see llm/training/random_state.py: lists of at most so many numbers.
RANDOM = {
    "random/cpu": "U8", "random/cuda": "U8", "random/mps": "U8", "random/python": "I64",
    "random/numpy": "I64", "random/gauss": "F64",
}  # fmt: skip
LONGEST_RANDOM = 8192


def require_size(path: Path, weights: Shapes, of_training: bool) -> None:
    """Raise :class:`llm.errors.Refused` unless a file is there whose size such a model can have."""
    require(os.path.isfile(path), f"{path} is missing, or not a regular file")
    size = path.stat().st_size
    largest = sum(map(math.prod, weights.values())) * (MOST_STATE if of_training else 4)
    fits = size <= largest + LARGEST_HEADER + (1 << 20)
    require(fits, f"{path} has {size:,} bytes, more than such a model can have")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    require(size < memory, f"{path} has {size:,} bytes, and this machine a memory of {memory:,}")


def read_tensors(
    path: Path, weights: Shapes, verify: Callable[[], None], of_training: bool,
    kept: Layout | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """The tensors of a file, after ``verify`` has compared it with its digest.

    They are those of a model with ``weights`` or, with ``of_training``, of its optimizer (one of
    ours, or one that keeps what ``kept`` says) and of generators. Raises
    :class:`llm.errors.Refused` for any other, before it is read, and for values that are not
    finite; ``OSError`` or ``SafetensorError`` for a file that cannot be read.
    """
    require_size(path, weights, of_training)
    verify()
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
        require(header <= LARGEST_HEADER, f"{path} is damaged: a header of {header:,} bytes")
        _check_header(path, file.read(header))
    with safetensors.safe_open(path, "pt", backend="pread") as found:
        names = list(found.keys())
        for name in names:
            described = found.get_slice(name)
            shape, kind = tuple(described.get_shape()), described.get_dtype()
            if of_training:
                _check_training(path, weights, name, shape, kind, kept)
            else:
                shapes = [weights[name]] if name in weights else []
                _check(path, name, shape, kind, shapes, WEIGHTS)
        # Read, not mapped, since those pages would count as memory besides the tensors; and copied
        # into torch's own, which are aligned as its kernels like them.
        tensors = {name: found.get_tensor(name).clone() for name in names}
    for name, tensor in tensors.items():
        finite = not tensor.is_floating_point() or bool(tensor.isfinite().all())
        require(finite, f"{path}: {name} holds values that are no numbers")
    return tensors


def _check_header(path: Path, header: bytes) -> None:
    # The library takes the last of two tensors with one name, where others may take the first.
    try:
        json.loads(header, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path} is damaged: its header cannot be read ({error})") from None


def _check_training(
    path: Path, weights: Shapes, name: str, shape: tuple[int, ...], kind: str, kept: Layout | None
) -> None:
    group, _, rest = name.partition("/")
    if group == "random":
        short = len(shape) == 1 and shape[0] <= LONGEST_RANDOM
        shapes = [shape if short else (LONGEST_RANDOM,)] if name in RANDOM else []
        _check(path, name, shape, kind, shapes, (RANDOM.get(name, ""),))
    elif kept is not None:
        found = [kept[name]] if name in kept else []
        kinds = tuple(TYPES.get(dtype, "") for _, dtype in found)
        _check(path, name, shape, kind, [wanted for wanted, _ in found], kinds)
    else:
        parameter, _, key = rest.rpartition("/")
        known = group == "optimizer" and parameter in weights and key in OF_OPTIMIZERS
        # Kernels of torch take the shapes to be right: they would write beyond what is too small.
        wanted = weights.get(parameter, ())
        if key == "step":
            wanted = ()
        elif key.endswith("_scale"):
            wanted = (-(-math.prod(wanted) // BLOCK_8BIT),)
        _check(path, name, shape, kind, [wanted] if known else [], OF_OPTIMIZERS.get(key, ()))


def _check(
    path: Path, name: str, shape: tuple[int, ...], kind: str,
    shapes: list[tuple[int, ...]], kinds: tuple[str, ...],
) -> None:  # fmt: skip
    require(shapes, f"{path} has a tensor {name} that this model lacks")
    listed = " or ".join(map(str, shapes))
    require(shape in shapes, f"{path}: {name} has shape {shape}, this model needs {listed}")
    require(kind in kinds, f"{path}: {name} is {kind}, and {' or '.join(kinds)} expected")
