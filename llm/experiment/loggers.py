"""Where the numbers of a run go: ``metrics.jsonl``, W&B, and the screen."""

import contextlib
import html
import json
import netrc
import os
import secrets
import shutil
import string
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from llm.checkpoint.checkpoint import Checkpoint
from llm.disk import could_not_write
from llm.errors import Stop
from llm.experiment.console import Row, TrainingScreen, status, warn
from llm.experiment.rundir import METRICS, SAMPLES, cut_metrics
from llm.signals import STOPPED, Signalled
from llm.training.logger import T
from llm.training.state import read_run_id


class RunLike(Protocol):
    """The parts of a run that its logger needs."""

    @property
    def folder(self) -> Path: ...
    @property
    def checkpoint(self) -> Checkpoint | None: ...


class LoggerOptions(Protocol):
    """The keys of ``logger/``."""

    mode: str
    project: str
    entity: str | None
    name: str | None
    tags: list[str]
    notes: str | None


class Service(Protocol):
    """Where rows and samples go besides the run's own files: W&B, or a class of the user's own."""

    name: str

    def log(self, row: Row) -> None: ...
    def sample(self, step: int, prompt: str, text: str, scores: dict[str, float]) -> None: ...
    def close(self, exit_code: int) -> None: ...


class Wandb:
    """A run in W&B."""

    name = "W&B"

    def __init__(self, run: Any) -> None:
        self.run = run

    def log(self, row: Row) -> None:
        """All numbers that there are."""
        known = {key: value for key, value in row.items() if value is not None and key != "step"}
        self.run.log(known, step=row["step"])

    def sample(self, step: int, prompt: str, text: str, scores: dict[str, float]) -> None:
        """The text; its scores are in the row."""
        import wandb

        # Html is a plain media file; a Table would make an artifact with every sample.
        self.run.log({"sample": wandb.Html(f"<pre>{html.escape(prompt + text)}</pre>")}, step=step)

    def close(self, exit_code: int) -> None:
        """End the run, so that the next one of this process does not merge into it."""
        self.run.finish(exit_code=exit_code)


class OwnLogger:
    """A logger of the user's own. It must have the method ``log``; the others are optional."""

    def __init__(self, inner: Any) -> None:
        self.name, self.inner = f"the logger {type(inner).__name__}", inner

    def log(self, row: Row) -> None:
        """A copy of the row, which the logger may change."""
        self.inner.log(dict(row))

    def sample(self, step: int, prompt: str, text: str, scores: dict[str, float]) -> None:
        """If it takes samples."""
        if hasattr(self.inner, "sample"):
            self.inner.sample(step, prompt, text, dict(scores))

    def close(self, exit_code: int) -> None:
        """If it can be closed."""
        if hasattr(self.inner, "close"):
            self.inner.close(exit_code)


class RunLogger:
    """Hands every row and sample to the files, to a service if there is one, and to the screen."""

    def __init__(
        self, folder: Path, screen: TrainingScreen, start: Callable[[], Service | None], run_id: str
    ) -> None:
        self.folder, self.screen, self.run_id = folder, screen, run_id
        self.start, self.service = start, start()
        self.synced = True  # whether all rows are on the disk

    def tick(self, step: int) -> None:
        """A step is done."""
        self.screen.tick(step)

    def log(self, row: Row) -> None:
        """One row of metrics; ``row`` holds ``step`` and ``tokens``."""
        self.synced = False
        # Opened for each row: a file that stays open takes rows after its folder was deleted.
        with self._written(METRICS), (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._to_service(lambda service: service.log(row))
        self.screen.log(row)

    def sample(self, step: int, prompt: str, text: str, scores: dict[str, float]) -> None:
        """Text that the model wrote after ``step``, and how much it repeats itself."""
        record = {"step": step, "prompt": prompt, "text": text} | scores
        with self._written(SAMPLES), (self.folder / SAMPLES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._to_service(lambda service: service.sample(step, prompt, text, scores))
        self.screen.sample(step, text)

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """The screen says what takes time besides training, while inside."""
        self.screen.doing(what)
        yield
        self.screen.doing("")

    def each(self, what: str, items: Iterable[T], count: int = 0) -> Iterator[T]:
        """``items``; the screen says how many of them are done."""
        for done, item in enumerate(items):
            self.screen.doing(what, done, count)
            yield item
        self.screen.doing("")

    def warn(self, message: str, kind: str = "") -> None:
        """A line in the log, and on the screen, but for repetitions of one ``kind``."""
        self.screen.warn(message, kind)

    def sync(self) -> None:
        """Wait until the rows are on the disk: none may be missing before a checkpoint's step."""
        if not self.synced:
            with self._written(METRICS), (self.folder / METRICS).open("rb") as file:
                os.fsync(file.fileno())
            self.synced = True

    def rewind(self, step: int) -> None:
        """Forget the rows after ``step``, where the run goes on from; a service is begun anew."""
        self.close(exit_code=0)
        with self._written(METRICS):
            cut_metrics(self.folder, step)
        self.service = self.start()

    def close(self, exit_code: int) -> None:
        """End what was started."""
        self._to_service(lambda service: service.close(exit_code))

    @contextlib.contextmanager
    def _written(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise could_not_write(self.folder / name, error) from error

    def _to_service(self, call: Callable[[Service], object]) -> None:
        """Whatever goes wrong there is a warning: the run and its own files are worth more."""
        service = self.service
        if service is None:
            return
        try:
            call(service)
        except Exception as error:
            self.service, why = None, _first_line(error)
            warn(f"{service.name} failed, so this run is logged to {METRICS} only: {why}")


def new_run_id() -> str:
    """Eight letters and digits, the form of W&B's own ids; an agent of a W&B sweep gives one."""
    alphabet = string.ascii_lowercase + string.digits
    given = os.environ.get("WANDB_RUN_ID") or "".join(secrets.choice(alphabet) for _ in range(8))
    return read_run_id(given, "WANDB_RUN_ID")


@contextlib.contextmanager
def open_logger(
    run: RunLike, options: Any, config: dict[str, Any], max_steps: int, sweep: Path | None,
    own: Callable[..., Any] | None = None,
) -> Iterator[RunLogger]:  # fmt: skip
    """The logger of a run, closed whatever happens; a continued run keeps its W&B id.

    ``config`` is shown in W&B; ``sweep`` is the folder of the sweep that the run is a job of.
    ``own`` makes a logger of the user's own, in place of W&B and its ``options``.
    """
    state = run.checkpoint.state if run.checkpoint else {}
    run_id = read_run_id(state.get("run_id")) if run.checkpoint else new_run_id()
    screen = TrainingScreen(max_steps, run.checkpoint.step if run.checkpoint else 0)

    def start() -> Service | None:
        if own is not None:
            return _start_own(partial(own, folder=run.folder, config=config, run_id=run_id))
        found = start_wandb(run.folder, run_id, config, options, sweep)
        return None if found is None else Wandb(found)

    logger = RunLogger(run.folder, screen, start, run_id)
    exit_code = 1
    try:
        yield logger
        exit_code = 0
    except Stop as stop:
        exit_code = stop.exit_status
        raise
    except Signalled:
        exit_code = STOPPED
        raise
    finally:
        logger.close(exit_code)


def _start_own(make: Callable[[], Any]) -> OwnLogger | None:
    try:
        return OwnLogger(make())
    except Exception as error:
        what = f"the logger cannot be used, so this run is logged to {METRICS} only"
        warn(f"{what}: {type(error).__name__}: {_first_line(error)}")
        return None


def start_wandb(
    folder: Path, run_id: str, config: dict[str, Any], options: LoggerOptions, sweep: Path | None
) -> Any | None:
    """A W&B run in ``folder/wandb``, or None when ``mode`` is ``disabled``.

    ``online`` without a key or a network becomes ``offline`` with one warning line: logging never
    ends a run and never asks a question. The name of the sweep's folder groups the runs.
    """
    mode = cast(Literal["online", "offline", "disabled"], options.mode)
    if mode == "disabled":
        return None
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")  # the setting below is not read while logging in
    with status("loading W&B"):
        import wandb

    if mode == "online" and not _has_key():
        warn(
            "W&B has no API key, so this run is logged offline: "
            "type `wandb login`, or set logger.mode=offline"
        )
        mode = "offline"
    try:
        settings = wandb.Settings(
            console="off",  # progress bars would fill its log with escape codes
            init_timeout=15,
            x_transaction_log_flush_interval=2,  # seconds; by default a killed run loses 15
            x_disable_meta=True,  # neither the command line nor the host goes to W&B
            host="",  # without this the host is in the record of the run all the same
            save_code=False,
            silent=True,
        )
        start = partial(
            wandb.init, project=options.project, entity=options.entity,
            name=options.name or folder.name, tags=options.tags, notes=options.notes,
            group=sweep.name if sweep else None, job_type="train", id=run_id, resume="allow",
            dir=str(folder), config=config, settings=settings,
        )  # fmt: skip
        before = set(folder.glob("wandb/run-*"))
        try:
            with status("starting W&B"):
                run = start(mode=mode)
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            if mode == "offline":
                raise
            warn(f"W&B cannot be used online, so this run is logged offline: {_first_line(error)}")
            wandb.teardown()  # its service holds on to the id of the run that did not start
            for left_behind in set(folder.glob("wandb/run-*")) - before:
                shutil.rmtree(left_behind, ignore_errors=True)
            run = start(mode="offline")
    except Exception as error:
        warn(f"W&B cannot be used, so this run is logged to {METRICS} only: {_first_line(error)}")
        return None
    run.define_metric("tokens")
    run.define_metric("*", step_metric="tokens")
    run.define_metric("val/loss", step_metric="tokens", summary="min,last")
    if sweep is not None and run.settings.sync_dir:
        _link(sweep / "wandb", Path(run.settings.sync_dir))
    return run


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _link(folder: Path, run: Path) -> None:
    # All runs of a sweep in one folder, which `wandb leet run` and `wandb sync` take as it is.
    folder.mkdir(exist_ok=True)
    link = folder / run.name
    if not link.is_symlink():
        link.symlink_to(os.path.relpath(run, folder))


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    base = os.environ.get("WANDB_BASE_URL")
    hosts = [urllib.parse.urlparse(base).hostname] if base else None
    try:
        known = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    if hosts:
        return any(host in known for host in hosts)
    # Without an address of one's own the key is under W&B's, which has changed over the years.
    return any("wandb" in host or "coreweave" in host for host in known)
