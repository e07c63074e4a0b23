"""Run commands as a user types them: inside this process, because a new one takes seconds."""

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
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from omegaconf import DictConfig

import llm.config.cli  # noqa: F401  (registers the schemas and plugins that conf/ names)
from llm.experiment.console import console
from llm.experiment.rundir import read_summary
from llm.experiment.sweep import Job
from llm.planning.setup import _prepared_vocabulary
from llm.signals import listener
from tests.conftest import HANGS, ROOT

Done = subprocess.CompletedProcess[str]


def here(command: str, *typed: str, cwd: Path, stdin: bytes = b"", **environment: str) -> Done:
    """``python run_<command>.py *typed`` in ``cwd``, without a new process."""
    out, err = io.StringIO(), io.StringIO()
    script = str(ROOT / f"run_{command}.py")
    _prepared_vocabulary.cache_clear()  # a new process has no cache
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
            listener.stop_listening()  # a process of its own would end here
    return Done([script, *typed], status, out.getvalue(), err.getvalue())


def jobs_here(batch: list[Job], *_: object) -> dict[int, dict[str, Any]]:
    """In place of :func:`llm.experiment.sweep.run_jobs`: the same commands without processes."""
    for job in batch:
        sweep = Singleton.get_state()  # Hydra allows one configuration at a time
        GlobalHydra.instance().clear()
        try:
            here("train", *job.command[2:], cwd=Path.cwd())
        finally:
            Singleton.set_state(sweep)
    return {job.number: read_summary(job.folder) or {} for job in batch}


@contextlib.contextmanager
def started(command: str, *typed: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """The same command, running in a process of its own, which is killed afterwards."""
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
    """Run ``action`` in a thread while inside; a late SIGTERM does not end the tests."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    thread = threading.Thread(target=action)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        signal.signal(signal.SIGTERM, before)


def wait_until(condition: Callable[[], Any]) -> Any:
    """Wait until ``condition`` returns something true, and return that."""
    end = time.monotonic() + HANGS
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return found


def rows(folder: Path) -> list[dict[str, Any]]:
    """The complete rows of a run's ``metrics.jsonl`` so far; empty if there is no file."""
    path = folder / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def summary(folder: Path) -> dict[str, Any]:
    """A run's ``summary.json``."""
    found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def listing(folder: Path) -> set[str]:
    """Relative paths of all files and folders in a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def composed(command: str, *overrides: str) -> DictConfig:
    """The configuration that Hydra composes from ``conf/<command>.yaml`` and overrides."""
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        return compose(command, overrides=list(overrides))
