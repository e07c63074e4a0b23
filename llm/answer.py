"""``json=true``: the result of a command as one JSON document, on the last line of its output.

Everything else that is printed goes to standard error then, also by child processes and libraries.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from llm.errors import DiskError, Interrupted, NotShown, Refused, Stop
from llm.sealed import Plain
from llm.signals import AT_ONCE, listener

SCHEMA = 1  # of the document; it changes when a key changes its meaning
KEY = "json"
TRUE, FALSE = ("true", "1"), ("false", "0")
STATUSES = {0: "finished", AT_ONCE: "killed"} | {
    one.exit_status: one.status for one in (Stop, Refused, Interrupted, NotShown)
}
document: Plain = {}  # the answer of the running command so far
_write: Callable[[str], object] | None = None  # to the real standard output; None: no document


def answer(**values: object) -> None:
    """Add ``values`` to the document of the running command."""
    document.update(values)


def is_json_word(word: str) -> bool:
    """Whether a word of the command line is ``json=...``."""
    return word.partition("=")[:2] == (KEY, "=")


def requested(words: Iterable[str]) -> str:
    """The last ``json=...`` of a command line as ``true``, ``false`` or as it was typed."""
    typed = [word for word in words if is_json_word(word)]
    value = typed[-1].partition("=")[2] if typed else "false"
    lower = value.lower()
    return "true" if lower in TRUE else "false" if lower in FALSE else value


def begin(words: Iterable[str]) -> None:
    """Start with an empty document. With ``json=true`` in ``words``, standard output becomes
    standard error until the process ends. A second call before :func:`end` changes nothing.
    """
    global _write
    if _write is not None:
        return
    document.clear()
    if requested(words) == "true":
        _write = _divert_output()
        listener.last_words = _end_at_once


def _divert_output() -> Callable[[str], object]:
    """Let standard output lead to standard error; returns a function that still writes to it."""
    before = sys.stdout
    try:
        output, errors = before.fileno(), sys.stderr.fileno()
    except OSError:  # not a file, such as a StringIO in a test
        sys.stdout = sys.stderr
        return before.write
    before.flush()
    kept = os.dup(output)
    os.dup2(errors, output)  # child processes and C++ write to the number of the file
    sys.stdout = sys.stderr  # escapes control characters if that is a terminal

    def write(text: str) -> None:
        rest = text.encode("ascii")
        while rest:
            rest = rest[os.write(kept, rest) :]

    return write


def end(status: int) -> int:
    """Print the document of a command that ends with exit status ``status``, if it was requested.

    Returns the exit status: 5 instead of 0 if the document could not be printed.
    """
    global _write
    write, _write, listener.last_words = _write, None, None
    if write is None:
        return status
    try:
        write(as_text(status, document))
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        return status
    except (OSError, ValueError) as error:  # ValueError: the stream is closed
        reason = getattr(error, "strerror", None) or str(error)
        name = Path(sys.argv[0]).name
        print(f"{name}: standard output could not be written: {reason}", file=sys.stderr)
        return status or DiskError.exit_status
    return status


def _end_at_once(status: int, reason: str) -> None:
    """Called before a signal ends the process, perhaps in another thread."""
    global _write
    write, _write = _write, None
    if write is not None:
        write(as_text(status, document | {"status": STATUSES[status], "reason": reason}))


def as_text(status: int, values: Plain) -> str:
    """The document as one line of ASCII, with the newline at its end."""
    head = {
        "schema": SCHEMA,
        "command": Path(sys.argv[0]).stem,
        "status": STATUSES.get(status, Stop.status),
        "exit": status,
        "reason": None,
        "key": None,
        "suggestions": [],
    }
    return json.dumps(plain(head | values | {"exit": status}), allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: NaN and infinity become null, paths and other types text.

    Bytes that are no text, which Python keeps as lone surrogates, are escaped as on the screen.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, dict):
        return {_text(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    return _text(value)


def _text(value: Any) -> str:
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
