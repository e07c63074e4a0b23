"""Commands as a user types them, run inside this process where a new one would add only seconds."""

import contextlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

import llm.config.cli  # noqa: F401  (registers the schemas and plugins that conf/ names)
from llm.experiment.console import console
from llm.signals import listener
from tests.conftest import HANGS, ROOT

Done = subprocess.CompletedProcess[str]


def here(command: str, *typed: str, cwd: Path, stdin: bytes = b"", **environment: str) -> Done:
    """``python run_<command>.py *typed`` in ``cwd``, without a new process."""
    out, err = io.StringIO(), io.StringIO()
    script = str(ROOT / f"run_{command}.py")
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(sys, "argv", [script, *typed]))
        stack.enter_context(patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin))))
        stack.enter_context(patch.dict(os.environ, environment))
        stack.enter_context(patch.object(console, "_width", 200))
        stack.enter_context(contextlib.chdir(cwd))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        try:
            runpy.run_path(script, run_name="__main__")
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            listener.stop_listening()  # which in a process of its own would end with it
    return Done([script, *typed], status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def started(command: str, *typed: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """The same in a process of its own that is still running; it is gone afterwards."""
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / f"run_{command}.py"), *typed],
        cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=environment | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def meanwhile(action: Callable[[], Any]) -> Iterator[None]:
    """Do something else while a command runs :func:`here`; a stray SIGTERM does not end us."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    thread = threading.Thread(target=action)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        signal.signal(signal.SIGTERM, before)


def wait_until(condition: Callable[[], Any]) -> Any:
    """What ``condition`` returns once it is true, however long that takes."""
    end = time.monotonic() + HANGS
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return found


def rows(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's ``metrics.jsonl`` so far; none if it does not exist."""
    path = folder / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def summary(folder: Path) -> dict[str, Any]:
    """A run's ``summary.json``."""
    found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def listing(folder: Path) -> set[str]:
    """Everything below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def composed(command: str, *overrides: str) -> DictConfig:
    """What Hydra makes of ``conf/<command>.yaml`` and these overrides."""
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        return compose(command, overrides=list(overrides))
