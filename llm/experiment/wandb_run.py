"""A run in W&B, online or offline, that is complete even if the run was interrupted.

Offline, each start of a run writes a folder ``wandb/offline-run-<time>-<id>``, a segment. W&B
cannot join the segments of a run: the upload of one replaces the run on the server (wandb issues
3841 and 5865), or, if the segment was started with ``resume``, adds its rows with other steps. A
resumed run therefore logs its earlier rows again, and its older segments are deleted.
"""

import contextlib
import html
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

from llm.commands import for_shell
from llm.experiment.console import status, warn
from llm.experiment.rundir import METRICS, SAMPLES
from llm.experiment.segments import Segments
from llm.training.logger import Row

# Seconds. Without a network W&B would try for minutes to start, and for ever to finish.
INIT_TIMEOUT, FINISH_TIMEOUT = 15, 30
LAUNCH = ("wandb.sdk.launch", "wandb.sdk.launch.inputs", "wandb.sdk.launch.inputs.internal")
Mode = Literal["online", "offline"]


class LoggerOptions(Protocol):
    """The keys of ``logger/``."""

    mode: str
    project: str
    entity: str | None
    name: str | None
    tags: list[str]
    notes: str | None


class Wandb:
    """A run in W&B, which ``start(mode)`` has started, and its segments on the disk."""

    def __init__(
        self, start: Callable[[Mode], Any], mode: Mode, folder: Path, sweep: Path | None
    ) -> None:
        self.start, self.folder, self.sweep = start, folder, sweep
        self.run = start(mode)
        self.segments = Segments(folder.absolute(), Path(self.run.settings.sync_file), sweep)

    def log(self, row: Row) -> None:
        known = {key: value for key, value in row.items() if value is not None and key != "step"}
        # A sample comes before the row of its step, so the step is complete here. Without commit,
        # W&B would keep the row in memory until the next one.
        self.run.log(known, step=row["step"], commit=True)
        self.segments.delete_older()

    def sample(self, step: int, prompt: str, text: str, scores: dict[str, float]) -> None:
        import wandb

        # Html is a plain media file; a Table would make an artifact with every sample. The scores
        # are in the row of the step.
        self.run.log({"sample": wandb.Html(f"<pre>{html.escape(prompt + text)}</pre>")}, step=step)

    def log_again(self) -> None:
        """Log the rows and samples in the run folder that W&B lacks, and replace older segments.

        Offline these are all rows. Online, the server says at which step it continues.
        """
        samples = {record["step"]: record for record in _records(self.folder / SAMPLES)}
        rows = [
            row for row in _records(self.folder / METRICS) if row["step"] >= self.run.starting_step
        ]
        with status(f"logging {len(rows):,} earlier rows to W&B"):
            for row in rows:
                if sample := samples.get(row["step"]):
                    self.sample(row["step"], sample["prompt"], sample["text"], {})
                self.log(row)
        self.segments.replace_older(rows[-1]["step"] if rows else None)

    def close(self, exit_code: int) -> None:
        try:
            with status("finishing the W&B run"):
                self.run.finish(exit_code=exit_code)
        except TimeoutError:
            self._close_offline(exit_code)
        self.segments.delete_older(is_closed=True)

    def _close_offline(self, exit_code: int) -> None:
        """Write all rows to an offline segment, because the server lacks some of them.

        The segment of the online run would add its first rows to the server a second time.
        """
        import wandb

        command = f"wandb sync {for_shell([str(self.folder)])}/wandb"
        warn(f"W&B's server does not answer; when it does again, type: {command}")
        wandb.teardown()  # else W&B's service would wait for the server
        offline = Wandb(self.start, "offline", self.folder, self.sweep)
        offline.log_again()
        offline.close(exit_code)


def start_wandb(
    folder: Path, run_id: str, config: dict[str, Any], options: LoggerOptions, sweep: Path | None
) -> Wandb | None:
    """A W&B run in ``folder/wandb``, or None if ``mode`` is ``disabled``.

    Without a key or a network ``online`` becomes ``offline``, with one warning: logging never ends
    a run and never asks a question. Runs of a sweep are grouped by the name of its folder.
    """
    if options.mode == "disabled":
        return None
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")  # Settings.silent does not silence the login
    with status("loading W&B"):
        import wandb  # noqa: F401  (takes a second)
    start = partial(_init_wandb, folder, run_id, config, options, sweep)
    service = _start_online(start, folder, sweep) if options.mode == "online" else None
    service = service or Wandb(start, "offline", folder, sweep)
    service.log_again()
    return service


def _start_online(start: Callable[[Mode], Any], folder: Path, sweep: Path | None) -> Wandb | None:
    """An online run; None, after a warning, if that is not possible."""
    import wandb

    earlier = set(folder.glob("wandb/run-*"))
    try:
        if wandb.login(prompt=False, verify=False):
            return Wandb(start, "online", folder, sweep)
        why = "without an API key: type `wandb login`, or set logger.mode=offline"
    except Exception as error:
        why = in_words(error)
        wandb.teardown()  # W&B's service still has the id of the run that did not start
        for leftover in set(folder.glob("wandb/run-*")) - earlier:
            shutil.rmtree(leftover, ignore_errors=True)
    warn(f"W&B cannot be used online, so this run is logged offline: {why}")
    return None


def _init_wandb(
    folder: Path, run_id: str, config: dict[str, Any], options: LoggerOptions, sweep: Path | None,
    mode: Mode,
) -> Any:  # fmt: skip
    import wandb

    settings = wandb.Settings(
        console="off",  # progress bars would fill its log with escape codes
        init_timeout=INIT_TIMEOUT,
        finish_timeout=FINISH_TIMEOUT,
        finish_timeout_raises=True,
        x_transaction_log_flush_interval=2,  # seconds; by default a killed run loses 15
        x_disable_meta=True,  # keep the command line and the host private
        host="",  # else the record of the run contains it
        save_code=False,
        silent=True,
    )
    with status("starting W&B"), _without_launch():
        run = wandb.init(
            mode=mode, project=options.project, entity=options.entity,
            name=options.name or folder.name, tags=options.tags, notes=options.notes,
            group=sweep.name if sweep else None, job_type="train", id=run_id,
            resume="allow" if mode == "online" else None,
            dir=str(folder.absolute()),  # W&B's service may be running in another one
            config=config, settings=settings,
        )  # fmt: skip
    run.define_metric("tokens")
    run.define_metric("*", step_metric="tokens")
    run.define_metric("val/loss", step_metric="tokens", summary="min,last")
    return run


class _NoInputs:
    def apply(self, run: object) -> None:
        """Called by W&B when a run starts."""


@contextlib.contextmanager
def _without_launch() -> Iterator[None]:
    """Hide W&B's tools for remote jobs, whose import takes a tenth of the start of a run.

    W&B asks them for inputs of a job, which no run here has.
    """
    if LAUNCH[0] in sys.modules:
        yield
        return
    stub: Any = ModuleType(LAUNCH[-1])
    stub.StagedLaunchInputs = _NoInputs
    sys.modules |= dict.fromkeys(LAUNCH, stub)
    try:
        yield
    finally:
        for name in LAUNCH:
            del sys.modules[name]


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file that :func:`llm.experiment.rundir.cut_metrics` has cut."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def in_words(error: Exception) -> str:
    """The kind of an error and the first line of its message."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
