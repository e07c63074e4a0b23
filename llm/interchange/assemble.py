"""Turn the tensors of another program into the weights of our network."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor

from llm.checkpoint.checkpoint import weight_shapes
from llm.checkpoint.tensors import LARGEST_HEADER
from llm.errors import Refused, reason_for, require
from llm.interchange.names import Names
from llm.model.config import GPTConfig

KINDS = ("F32", "F16", "BF16")  # as safetensors calls them
LFS = b"version https://git-lfs"


class Stored(NamedTuple):
    """A tensor in a file that has not been read yet."""

    shape: tuple[int, ...]
    kind: str  # F32, BF16, ...
    read: Callable[[], Tensor]


def assemble(
    where: Path, model: GPTConfig, names: Names, stored: Mapping[str, Stored]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of ``GPT.state_dict()``, in float32 or bfloat16, each read when its turn comes.

    Raises :class:`llm.errors.Refused` naming the first tensor that is missing, unexpected, of
    another shape or type, or not finite. Nothing is read before all names and shapes are checked.
    """
    names, shapes = names.as_in(stored), weight_shapes(model)
    wanted = names.joined(name for name in shapes if not names.is_zero(name))
    head = names.theirs("head.weight")
    for name, found in stored.items():
        is_known = name in wanted or name == head or re.fullmatch(names.ignored, name)
        require(is_known, f"{where} has a tensor {name} that such a model lacks")
        if name in wanted or name == head:
            ours = wanted.get(name, ["embed.weight"])
            needed = _their_shape(names, [shapes[one] for one in ours], ours)
            check_stored(where, name, found, needed)
    for name in wanted:
        require(name in stored, f"{where} has no tensor {name}")
    if head in stored and head not in wanted:
        embed = names.theirs("embed.weight")
        both = (read_stored(where, name, stored[name]) for name in (head, embed))
        tied = f"{where} has a tensor {head} that is not the embedding, but the config ties them"
        require(torch.equal(*both), f"{tied}: is tie_word_embeddings right?")
    yield from ((name, torch.zeros(shapes[name])) for name in shapes if names.is_zero(name))
    for name, ours in wanted.items():
        tensor = read_stored(where, name, stored[name])
        if _is_transposed(names, ours[0], tensor.dim()):
            tensor = tensor.T
        rows = [shapes[one][0] for one in ours]
        for one, part in zip(ours, torch.split(tensor, rows), strict=True):
            weight = reordered(model, one, part, False) if names.interleaved else part
            weight = weight.contiguous()
            # A copy, so that the joined tensor is freed
            yield one, weight.clone() if len(ours) > 1 else weight


def check_stored(where: Path, name: str, tensor: Stored, needed: tuple[int, ...]) -> None:
    """Raise :class:`llm.errors.Refused` unless it has the shape ``needed`` and a type of KINDS."""
    found = tensor.shape
    require(found == needed, f"{where}: {name} has shape {found}, the config needs {needed}")
    expected = ", ".join(KINDS)
    require(tensor.kind in KINDS, f"{where}: {name} is {tensor.kind}, and only {expected} are read")


def _their_shape(names: Names, shapes: list[tuple[int, ...]], ours: list[str]) -> tuple[int, ...]:
    joined = (sum(shape[0] for shape in shapes), *shapes[0][1:])
    return joined[::-1] if _is_transposed(names, ours[0], len(joined)) else joined


def _is_transposed(names: Names, name: str, dimensions: int) -> bool:
    return names.transposed and name.startswith("blocks.") and dimensions == 2


def reordered(model: GPTConfig, name: str, tensor: Tensor, interleaved: bool) -> Tensor:
    """Rows of queries and keys in the other order of rotary pairs: (2i, 2i + 1) if ``interleaved``,
    otherwise (i, i + D / 2). Other tensors stay as they are.
    """
    if ".attention.q." not in name and ".attention.k." not in name:
        return tensor
    heads = model.n_head if ".q." in name else model.n_kv_head
    assert heads
    half = tensor.shape[0] // heads // 2
    pairs = (2, half) if interleaved else (half, 2)
    return tensor.reshape(heads, *pairs, -1).transpose(1, 2).reshape(tensor.shape)


def read_stored(where: Path, name: str, stored: Stored) -> Tensor:
    """The tensor, in float32 or bfloat16; :class:`llm.errors.Refused` unless it is finite."""
    try:
        tensor = stored.read()
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise Refused(f"{where}: {name} cannot be read: {reason_for(where, error)}") from None
    # One pass instead of the three of isfinite().all(). With a NaN, aminmax returns NaN twice.
    finite = not tensor.numel() or all(bool(end.isfinite()) for end in tensor.aminmax())
    require(finite, f"{where}: {name} has values that are not finite")
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def read_shards(files: tuple[Path, ...]) -> dict[str, Stored]:
    """The tensors of safetensors files by name; their values are read later.

    Raises :class:`llm.errors.Refused` for a file that is damaged, and for a name in two files.
    """
    stored: dict[str, Stored] = {}
    for path in files:
        try:
            _check_start(path)
            file: Any = safetensors.safe_open(path, "pt", backend="pread")
            for name in list(file.keys()):
                require(name not in stored, f"{path} has a tensor {name} that another file has too")
                described = file.get_slice(name)
                shape, kind = tuple(described.get_shape()), described.get_dtype()
                stored[name] = Stored(shape, kind, _reader(file, name))
        except (OSError, safetensors.SafetensorError) as error:
            raise Refused(f"{path} cannot be read: {reason_for(path, error)}") from None
    return stored


def _reader(file: Any, name: str) -> Callable[[], Tensor]:
    # Cloned into memory that torch allocates, aligned for its kernels.
    return lambda: file.get_tensor(name).clone()


def _check_start(path: Path) -> None:
    """Refuse a header that is too large, and a file that git has not downloaded."""
    with path.open("rb") as file:
        start = file.read(len(LFS))
    pointer = f"{path} is a Git LFS pointer and not the file itself: run git lfs pull"
    require(start != LFS, pointer)
    size = int.from_bytes(start[:8], "little")
    require(size <= LARGEST_HEADER, f"{path} has a header of {size:,} bytes: not safetensors")
