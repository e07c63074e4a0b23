"""Read files of ``torch.save``. No other module unpickles, and this one creates only tensors and
plain values (``weights_only=True``). docs/reliability.md explains it.
"""

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm.checkpoint.tensors import TYPES
from llm.errors import Refused, Stop, reason_for, require
from llm.interchange.assemble import Stored
from llm.interchange.files import require_file

LARGEST_PICKLE = 16 << 20  # bytes of names, shapes and plain values; the tensors are beside it


def read_pickled(path: Path) -> Any:
    """The plain values in ``path``. Its tensors are mapped into memory, and not read yet.

    Raises :class:`llm.errors.Refused` for a file that holds anything else.
    """
    require_file(path)
    _check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Stop:  # a signal
        raise
    except Exception as error:  # a stranger's pickle can make the unpickler raise anything
        said = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise Refused(f"{path} holds more than tensors and plain values: {said}") from None


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
                is_pickle = entry.filename.endswith(".pkl")
                fits = not is_pickle or entry.file_size <= LARGEST_PICKLE
                require(fits, f"{path} has {entry.file_size:,} bytes of names and shapes")
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        reason = reason_for(path, error)
        raise Refused(f"{path} is not a file of torch.save (1.6 or later): {reason}") from None
