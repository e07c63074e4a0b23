"""A command in a process of its own, and its JSON document."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from typing import IO, Any

from llm.commands import FOLDER
from llm.errors import (
    DiskError,
    Diverged,
    Interrupted,
    OutOfMemory,
    Refused,
    Stop,
    as_line,
    require,
)
from llm.experiment.console import console
from llm.experiment.process import PARENT_PIPE
from llm.sealed import Plain

ERRORS = {one.exit_status: one for one in (Refused, Diverged, OutOfMemory, DiskError, Interrupted)}
LAST = 50  # lines of a failed command that its exception repeats


def run_command(script: str, words: Sequence[str], quiet: bool) -> Plain:
    """Run ``python <script> <words> json=true`` to its end; returns its JSON document.

    Ctrl-C is passed on to it, and it ends with this process. Its screen output is shown, unless
    ``quiet``.
    """
    path = FOLDER / script
    require(path.is_file(), f"{path} does not exist: import llm from a clone of the repository")
    is_terminal = console.is_terminal and sys.stderr.isatty() and not quiet
    reading, writing = os.pipe()  # it closes when this process ends: see `follow_parent`
    try:
        process = subprocess.Popen(
            [sys.executable, str(path), *map(str, words), "json=true"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=None if is_terminal else subprocess.PIPE,
            pass_fds=[reading], env=os.environ | {PARENT_PIPE: str(reading)},
            process_group=0,  # so that Ctrl-C in a terminal reaches it once, from here
        )  # fmt: skip
    finally:
        os.close(reading)
    try:
        return _document(process, quiet)
    finally:
        os.close(writing)
        process.wait()


def _document(process: "subprocess.Popen[bytes]", quiet: bool) -> Plain:
    answered: deque[str] = deque(maxlen=1)
    shown: deque[str] = deque(maxlen=LAST)
    threads = [
        threading.Thread(target=_read, args=(process.stdout, answered, True)),
        threading.Thread(target=_read, args=(process.stderr, shown, quiet)),
    ]
    for thread in threads:
        thread.start()
    while process.returncode is None:
        try:
            process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
    for thread in threads:
        thread.join()
    document: Plain
    try:
        document = json.loads(answered[0])
    except (IndexError, ValueError):
        last = next((line.strip() for line in reversed(shown) if line.strip()), "")
        reason = f"exit status {process.returncode}" + f": {last}" * bool(last)
        document = {"exit": process.returncode, "reason": as_line(reason)}
    return document


def _read(stream: IO[bytes] | None, lines: "deque[str]", quiet: bool) -> None:
    if stream is None:
        return
    with stream:
        for raw in stream:
            lines.append(line := raw.decode("utf-8", errors="replace"))
            if not quiet:
                sys.stdout.write(line)
                sys.stdout.flush()


def error_of(document: Plain) -> Stop:
    """The exception of a command that did not finish."""
    kind: type[Any] = ERRORS.get(document["exit"], Stop)
    error: Stop = kind(document.get("reason") or f"exit status {document['exit']}")
    error.key, error.suggestions = document.get("key"), document.get("suggestions") or []
    return error
