"""Tensor files: what is in one, a piece at a time, so that saving takes no memory of its own.

The format (https://github.com/huggingface/safetensors#format): the length of the header (8 bytes,
little-endian), the header (JSON), then the numbers of all tensors without a gap between them.
"""

import json
from collections.abc import Iterator

import torch
from torch import Tensor

# In the order of safetensors itself, which writes types of more bytes first: so each tensor begins
# at a multiple of its type's size, where it can be read in place.
TYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16",
    torch.float16: "F16", torch.bfloat16: "BF16", torch.int32: "I32", torch.float32: "F32",
    torch.float64: "F64", torch.int64: "I64",
}  # fmt: skip
RANKS = {dtype: rank for rank, dtype in enumerate(TYPES)}
ALIGNMENT = 8  # bytes
PIECE = 16 << 20  # bytes; what is copied from a GPU at a time


def pieces(tensors: dict[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a file with these tensors, one after the other: the same, to the last one, as
    ``safetensors.torch.save`` returns at once.

    A tensor in host memory is shown where it is: use each piece before the next is asked for, and
    drop it then. What is elsewhere is copied ``PIECE`` bytes at a time, and what is not contiguous
    one tensor at a time. Raises ``KeyError`` for a type that is not in ``TYPES``, before the first
    piece.
    """
    names = sorted(tensors, key=lambda name: (-RANKS[tensors[name].dtype], name))
    yield _header({name: tensors[name] for name in names})
    for name in names:
        yield from _numbers(tensors[name])


def _header(tensors: dict[str, Tensor]) -> bytes:
    """Its length, and what there is of which type and shape, and where."""
    entries, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _numbers(tensor: Tensor) -> Iterator[memoryview]:
    # As bytes, because numpy has no bfloat16. These torch shows only where the last stride is 1,
    # which it need not be where a tensor has one number.
    flat = tensor.detach().contiguous().as_strided((tensor.numel(),), (1,)).view(torch.uint8)
    for part in torch.split(flat, PIECE):
        yield part.cpu().numpy().data
