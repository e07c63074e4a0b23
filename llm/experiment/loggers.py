"""Where the numbers of a run go: ``metrics.jsonl``, W&B, and the screen."""

import contextlib
import json
import os
import secrets
import string
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from llm.checkpoint.checkpoint import Checkpoint
from llm.disk import writing
from llm.experiment.console import TrainingScreen, warn
from llm.experiment.rundir import METRICS, SAMPLES, cut_metrics
from llm.experiment.wandb_run import Wandb, in_words, start_wandb
from llm.training.logger import Row
from llm.training.state import read_run_id

ONLY_FILES = f"so this run is logged to {METRICS} only"


class RunLogger(TrainingScreen):
    """Passes every row and sample to the run's files, to a service and to the screen.

    ``start_service`` makes the service: W&B, a custom logger, or None. A service has the method
    ``log(row)`` and may have ``sample(step, prompt, text, scores)`` and ``close(exit_code)``.
    """

    def __init__(
        self, folder: Path, run_id: str, start_service: Callable[[], Any],
        max_steps: int | None, step: int,
    ) -> None:  # fmt: skip
        super().__init__(max_steps, step)
        self.folder, self.run_id, self.start_service = folder, run_id, start_service
        self._start()

    def log(self, row: Row) -> None:
        """One row of metrics; ``row`` has ``step`` and ``tokens``."""
        self._append(METRICS, json.dumps(row))
        self._to_service("log", dict(row))
        super().log(row)

    def sample(self, step: int, prompt: str, text: str, scores: dict[str, float]) -> None:
        """Text that the model wrote after ``step``, and how much it repeats itself."""
        record = {"step": step, "prompt": prompt, "text": text} | scores
        self._append(SAMPLES, json.dumps(record, ensure_ascii=False))
        self._to_service("sample", step, prompt, text, dict(scores))
        self.show_sample(step, text)

    def sync(self) -> None:
        """Sync the rows to the disk, so that no row before a checkpoint can be lost."""
        path = self.folder / METRICS
        if path.exists():
            with writing(path), path.open("rb") as file:
                os.fsync(file.fileno())

    def rewind(self, step: int) -> None:
        """Delete the rows after ``step``, where the run continues, and restart the service."""
        self.close(exit_code=0)
        with writing(self.folder / METRICS):
            cut_metrics(self.folder, step)
        self._start()

    def close(self, exit_code: int) -> None:
        """End the service."""
        self._to_service("close", exit_code)

    def _start(self) -> None:
        self.service: Any = None
        try:
            self.service = self.start_service()
        except Exception as error:
            warn(f"the logger cannot be used, {ONLY_FILES}: {in_words(error)}")

    def _to_service(self, method: str, *arguments: Any) -> None:
        """Call a method of the service. Its error becomes a warning and must not end the run."""
        if self.service is None or (method != "log" and not hasattr(self.service, method)):
            return
        try:
            getattr(self.service, method)(*arguments)
        except Exception as error:
            is_wandb = isinstance(self.service, Wandb)
            name = "W&B" if is_wandb else f"the logger {type(self.service).__name__}"
            warn(f"{name} failed, {ONLY_FILES}: {in_words(error)}")
            self.service = None

    def _append(self, name: str, line: str) -> None:
        # Opened for each line: writing to an open file succeeds even if its folder was deleted.
        path = self.folder / name
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def new_run_id() -> str:
    """Eight letters and digits, like W&B's ids, or the id that the agent of a W&B sweep has set."""
    alphabet = string.ascii_lowercase + string.digits
    run_id = os.environ.get("WANDB_RUN_ID") or "".join(secrets.choice(alphabet) for _ in range(8))
    return read_run_id(run_id, "WANDB_RUN_ID")


@contextlib.contextmanager
def open_logger(
    folder: Path, checkpoint: Checkpoint | None, options: Any, config: dict[str, Any],
    max_steps: int | None, sweep: Path | None, custom: Callable[..., Any] | None = None,
) -> Iterator[RunLogger]:  # fmt: skip
    """The logger of a run, closed at the end in any case; a resumed run keeps its W&B id.

    ``config`` is shown in W&B; ``sweep`` is the folder of the sweep if the run is one of its jobs.
    ``custom`` makes a custom logger, which replaces W&B and its ``options``.
    """
    run_id = read_run_id(checkpoint.state.get("run_id")) if checkpoint else new_run_id()
    if custom is not None:
        start = partial(custom, folder=folder, config=config, run_id=run_id)
    else:
        start = partial(start_wandb, folder, run_id, config, options, sweep)
    logger = RunLogger(folder, run_id, start, max_steps, checkpoint.step if checkpoint else 0)
    exit_code = 0
    try:
        yield logger
    except BaseException as error:
        exit_code = getattr(error, "exit_status", 1)
        raise
    finally:
        logger.close(exit_code)
