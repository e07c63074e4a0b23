"""The header of a GGUF file: keys with values, and where its tensors are.

Every count and offset is compared with the size of the file before anything is allocated. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm.errors import Refused, require
from llm.interchange.files import require_file
from llm.interchange.quants import BLOCKS, TYPES

MAGIC, VERSION = b"GGUF", 3
LARGEST_HEADER = 64 << 20  # bytes; a vocabulary of 200,000 tokens takes 8 million
MOST_KEYS, MOST_TENSORS = 4096, 1 << 16
MOST_VALUES = 1 << 21  # in all arrays together
LONGEST_NAME = 256  # bytes
DIMENSIONS = 4
ALIGNMENT = 32  # bytes, unless general.alignment says otherwise
STRING, ARRAY = 8, 9
# The number of each type of a value -> its name in struct.
SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """Where a tensor is: ``offset`` and ``size`` in bytes from the start of the file."""

    shape: tuple[int, ...]  # the last dimension varies fastest, as in torch
    kind: str  # Q8_0, ...
    offset: int
    size: int


@dataclass(frozen=True)
class Header:
    """The keys and tensors of a GGUF file."""

    path: Path
    values: dict[str, Any]  # numbers, strings, and lists of them
    tensors: dict[str, Tensor]


class _Reader:
    """Reads one value after another; :class:`llm.errors.Refused` at the end of the header."""

    def __init__(self, path: Path, raw: bytes) -> None:
        self.path, self.raw, self.at, self.values = path, raw, 0, 0

    def take(self, count: int) -> bytes:
        self.require(count <= len(self.raw) - self.at, "it ends inside its header")
        self.at += count
        return self.raw[self.at - count : self.at]

    def number(self, kind: str) -> Any:
        return struct.unpack("<" + kind, self.take(struct.calcsize("<" + kind)))[0]

    def string(self, longest: int = LARGEST_HEADER) -> str:
        count = self.number("Q")
        self.require(count <= longest, f"a string of {count:,} bytes")
        # llama.cpp's vocabularies may have tokens that are not UTF-8
        return self.take(count).decode("utf-8", errors="surrogateescape")

    def name(self) -> str:
        return self.string(LONGEST_NAME).encode(errors="replace").decode()

    def value(self) -> Any:
        kind = self.number("I")
        if kind == ARRAY:
            return self.array()
        return self.string() if kind == STRING else self.number(self.scalar(kind))

    def array(self) -> list[Any]:
        kind, count = self.number("I"), self.number("Q")
        self.values += count
        self.require(self.values <= MOST_VALUES, f"an array of {count:,} values")
        if kind == STRING:
            return [self.string() for _ in range(count)]
        scalar = self.scalar(kind)
        raw = self.take(count * struct.calcsize("<" + scalar))
        return list(struct.unpack(f"<{count}{scalar}", raw))

    def scalar(self, kind: int) -> str:
        self.require(kind in SCALARS, f"a value of type {kind}")
        return SCALARS[kind]

    def require(self, condition: bool, reason: str) -> None:
        require(condition, f"{self.path} is damaged, or not GGUF: {reason}")


def read_header(path: Path) -> Header:
    """The keys and tensors of a file; raises :class:`llm.errors.Refused` if it is not GGUF v3, or
    damaged. No tensor is read.
    """
    require_file(path)
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            reader = _Reader(path, file.read(min(size, LARGEST_HEADER)))
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from None
    reader.require(reader.take(4) == MAGIC, "it does not start with GGUF")
    version = reader.number("I")
    require(version == VERSION, f"{path} is GGUF of version {version}, and only 3 is read")
    n_tensors, n_keys = reader.number("Q"), reader.number("Q")
    reader.require(n_keys <= MOST_KEYS, f"{n_keys:,} keys")
    reader.require(n_tensors <= MOST_TENSORS, f"{n_tensors:,} tensors")
    values: dict[str, Any] = {}
    for _ in range(n_keys):
        key = reader.name()
        reader.require(key not in values, f"the key {key} occurs twice")
        values[key] = reader.value()
    described = [_description(reader) for _ in range(n_tensors)]
    step = values.get("general.alignment", ALIGNMENT)
    is_power = type(step) is int and 8 <= step <= 1 << 20 and step & (step - 1) == 0
    reader.require(is_power, f"general.alignment={step!r:.40}")
    start = -(-reader.at // step) * step
    tensors: dict[str, Tensor] = {}
    for name, shape, kind, offset in described:
        reader.require(name not in tensors, f"the tensor {name} occurs twice")
        tensors[name] = _tensor(reader, name, shape, kind, start + offset)
    inside = all(one.offset + one.size <= size for one in tensors.values())
    reader.require(inside, "it ends before its last tensor")
    # Tensors that share bytes could need any amount of memory.
    apart = start + sum(one.size for one in tensors.values()) <= size
    reader.require(apart or not tensors, "its tensors overlap")
    return Header(path, values, tensors)


def _description(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    name, dimensions = reader.name(), reader.number("I")
    reader.require(1 <= dimensions <= DIMENSIONS, f"{name} has {dimensions} dimensions")
    shape = tuple(reader.number("Q") for _ in range(dimensions))[::-1]
    reader.require(all(0 < n < 1 << 32 for n in shape), f"{name} has the shape {shape}")
    return name, shape, reader.number("I"), reader.number("Q")


def _tensor(reader: _Reader, name: str, shape: tuple[int, ...], number: int, offset: int) -> Tensor:
    kind = TYPES.get(number, f"number {number}")
    require(
        kind in BLOCKS,
        f"{reader.path}: {name} is of type {kind}, and this program reads {', '.join(BLOCKS)}",
    )
    weights, size = BLOCKS[kind]
    reader.require(shape[-1] % weights == 0, f"{name} has rows of {shape[-1]} weights in {kind}")
    return Tensor(shape, kind, offset, math.prod(shape) // weights * size)


def read_tensor(path: Path, tensor: Tensor) -> np.ndarray:
    """The bytes of a tensor (uint8)."""
    with path.open("rb") as file:
        file.seek(tensor.offset)
        raw = np.fromfile(file, np.uint8, tensor.size)
    require(len(raw) == tensor.size, f"{path} has become shorter")
    return raw
