"""JSON files with a digest: the sha256 of their other values.

A file may come from a stranger, so only a regular file of bounded size is read.
"""

import hashlib
import json
import math
import stat
from pathlib import Path
from typing import Any

from llm.errors import Refused, reason_for, require

Plain = dict[str, Any]  # strings, numbers, booleans, None, lists and dicts of them
LARGEST = 40 << 20  # bytes; a vocabulary of 151,643 tokens takes 8 million
LONGEST_NUMBER = 40  # characters
DIGEST = "digest"


def sealed(values: Plain) -> str:
    """The text of a file with ``values`` and their digest."""
    return json.dumps(values | {DIGEST: _digest(values)}, indent=1, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Plain:
    """The JSON object in ``path``.

    Raises ``FileNotFoundError``, and :class:`llm.errors.Refused` for any other file.
    """
    try:
        text = read_bounded(path, LARGEST).decode("utf-8")
        values = JSON.decode(text)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(f"{path} cannot be read: {reason_for(path, error)}") from None
    require(isinstance(values, dict), f"{path} is not a JSON object")
    return dict(values)


def read_bounded(path: Path, largest: int) -> bytes:
    """The contents of a regular file of at most ``largest`` bytes.

    Raises :class:`llm.errors.Refused` for any other file, and ``OSError``.
    """
    status = path.stat()
    # Reading a pipe would wait, and reading a device might never end.
    require(stat.S_ISREG(status.st_mode), f"{path} is not a regular file")
    require(status.st_size <= largest, f"{path} is too large: {status.st_size:,} bytes")
    with path.open("rb") as file:
        return file.read(largest)


def opened(values: Plain, path: Path) -> Plain:
    """The values without their digest; :class:`llm.errors.Refused` if the digest is wrong."""
    rest = {key: value for key, value in values.items() if key != DIGEST}
    require(
        values.get(DIGEST) == _digest(rest),
        f"{path} is damaged: its digest does not match its contents",
    )
    return rest


def _digest(values: Plain) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _unique(pairs: list[tuple[str, Any]]) -> Plain:
    values = dict(pairs)
    if len(values) < len(pairs):  # some programs read the first one, others the last
        raise ValueError("a key occurs twice")
    return values


def _short(number: str) -> int:
    if len(number) > LONGEST_NUMBER:  # converting it to a float would overflow
        raise ValueError(f"a number of {len(number)} digits")
    return int(number)


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):  # 1e999, NaN or Infinity
        raise ValueError(f"{number[:LONGEST_NUMBER]} is not a finite number")
    return value


# Strict JSON: no key twice, and only numbers that other programs read as well.
JSON = json.JSONDecoder(
    parse_int=_short, parse_float=_finite, parse_constant=_finite, object_pairs_hook=_unique
)
