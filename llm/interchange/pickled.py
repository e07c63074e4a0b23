"""Read files of ``torch.save``. No other module unpickles, and this one creates only tensors and
plain values (``weights_only=True``). docs/reliability.md explains it.
"""

import pickletools
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm.checkpoint.tensors import TYPES
from llm.errors import Refused, Stop, reason_for, require
from llm.interchange.assemble import Stored
from llm.interchange.files import require_file

PICKLE = "data.pkl"  # in the archive
LARGEST_PICKLE = 16 << 20  # bytes of names, shapes and plain values; the tensors are beside it
LARGEST_VALUES = 64 << 20  # values and characters, each counted as often as it is used
DEEPEST = 100  # values inside each other
ENLARGE = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")  # their first argument
UP_TO_MARK = {"TUPLE": 0, "APPENDS": 1, "SETITEMS": 1}  # values that they take before the mark
BYTES = ("encode", "bytearray")  # may make more than is in the file, or take very long


def read_pickled(path: Path) -> Any:
    """The plain values in ``path``. Its tensors are mapped into memory, and not read yet.

    Raises :class:`llm.errors.Refused` for a file that holds anything else.
    """
    require_file(path)
    _check_archive(path)
    try:
        _check_values(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Stop:  # a signal
        raise
    except Exception as error:  # a stranger's pickle can make the unpickler raise anything
        cause = error.__context__ or error  # torch puts advice before it
        said = str(cause).splitlines()[0][:120] if str(cause) else type(cause).__name__
        raise Refused(f"{path} holds more than tensors and plain values: {said}") from None


@dataclass(slots=True)
class _Value:
    """A value that a pickle makes: how many values and characters it has, and how deep it is."""

    size: int = 1
    depth: int = 1
    is_used: bool = False  # in another value

    def take(self, parts: "list[_Value]") -> None:
        for part in parts:
            part.is_used = True
            self.size += part.size
            self.depth = max(self.depth, part.depth + 1)


def _check_values(path: Path) -> None:
    """Refuse a pickle whose values would take endlessly long to hash or to print.

    With x = (x, x) fifty times, 500 bytes name 2^50 values. torch hashes values while it reads
    them, and a signal cannot interrupt that, so they are counted first.
    """
    archive = torch._C.PyTorchFileReader(str(path))  # as torch.load finds it
    size = archive.get_record_size(PICKLE)
    require(size <= LARGEST_PICKLE, f"{path} has {size:,} bytes of names and shapes")
    stack: list[_Value] = []
    marks: list[int] = []
    memo: dict[Any, _Value] = {}
    for opcode, argument, _ in pickletools.genops(archive.get_record(PICKLE)):
        name = opcode.name
        require(name != "LONG4", f"{path} has a number of more than 255 bytes")
        is_bytes = name == "GLOBAL" and str(argument).split()[-1] in BYTES
        require(not is_bytes, f"{path} holds bytes, which are not read: save the weights alone")
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        else:
            n_taken = len(opcode.stack_before)
            start = len(stack) - n_taken
            if name in UP_TO_MARK:
                start = marks.pop() - UP_TO_MARK[name]
            parts = stack[start:]
            del stack[start:]
            value = parts.pop(0) if name in ENLARGE else _Value()
            require(not value.is_used, f"{path} has a value that is changed after its use")
            value.take(parts)
            value.size += len(argument) if isinstance(argument, str | bytes) else 0
            is_small = value.size <= LARGEST_VALUES and value.depth <= DEEPEST
            require(is_small, f"{path} has too many values inside each other")
            stack.extend([value] * len(opcode.stack_after))


def stored_tensors(path: Path, values: Any) -> dict[str, Stored]:
    """The tensors in a ``state_dict`` from :func:`read_pickled`."""
    require(isinstance(values, dict) and values, f"{path} holds no dictionary of weights")
    stored = {}
    for name, tensor in values.items():
        is_plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided
        require(
            isinstance(name, str) and is_plain and tensor.is_contiguous(),
            f"{path}: {name!s:.60} is not a plain tensor",
        )
        kind = TYPES.get(tensor.dtype, str(tensor.dtype))
        stored[name] = Stored(tuple(tensor.shape), kind, tensor.detach().clone)
    # Tensors may share memory, as a tied head does, but a small file must not claim huge ones.
    size, most = sum(tensor.nbytes for tensor in values.values()), 2 * path.stat().st_size
    require(size <= most, f"{path} is too small for its tensors of {size:,} bytes")
    return stored


def _check_archive(path: Path) -> None:
    """Refuse an archive that would be larger than its file, and the format before torch 1.6."""
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                is_stored = entry.compress_type == zipfile.ZIP_STORED
                require(is_stored, f"{path} is compressed, which torch.save never does")
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        reason = reason_for(path, error)
        raise Refused(f"{path} is not a file of torch.save (1.6 or later): {reason}") from None
