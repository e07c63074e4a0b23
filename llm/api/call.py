"""``llm.train``, ``llm.sweep`` and ``llm.plan``: the commands as functions."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from llm.api.child import error_of, run_command
from llm.api.run import Run, is_run, load
from llm.errors import Stop, require
from llm.signals import as_guest, delayed

_training = threading.Lock()  # a run changes the random state of the process, and its signals


def train(overrides: Sequence[str] = (), in_process: bool = True, quiet: bool = False) -> Run:
    """Train as ``python run_train.py`` with the words ``overrides``, and return the run.

    The same words continue or skip a run as they do on the command line. Free text needs no quotes:
    ``"run.note=wider, deeper?"``. With ``in_process=False`` the run gets a process of its own.
    ``quiet``: show nothing. The random state of torch, numpy and Python is the same afterwards.

    Raises :class:`llm.Refused`, :class:`llm.Diverged`, :class:`llm.OutOfMemory`,
    :class:`llm.DiskError`, or :class:`llm.Interrupted` after Ctrl-C, once a checkpoint is saved.
    """
    words = words_of(overrides)
    if not in_process:
        document = run_command("run_train.py", words, quiet)
        if document["exit"] != 0:
            raise error_of(document)
        require("best_val_loss" in document, "these words train no run: use llm.plan or llm.sweep")
        return load(document["folder"])
    require(_training.acquire(blocking=False), ONE)
    try:
        return _train_here(words, quiet)
    finally:
        _training.release()


ONE = "llm.train is running in this process already: wait for it, or take in_process=False"


def _train_here(words: Sequence[str], quiet: bool) -> Run:
    from llm.config.inside import as_command, compose_training

    with as_command("run_train.py", words), as_guest(), quieted(quiet):
        settings = compose_training(*words)
        require(not settings.run.dry_run, "run.dry_run=true trains nothing: use llm.plan")
        require(not settings.verify, "verify=true trains nothing: use run_train.py")
        with delayed():
            from llm.planning.setup import forget_vocabularies
            from llm.recipe import train as train_run
        forget_vocabularies()
        with _unchanged():
            return load(train_run(settings))


def plan(overrides: Sequence[str] = (), quiet: bool = False) -> list[dict[str, Any]]:
    """The plans that ``python run_plan.py`` shows, one for each point of a grid.

    Nothing is trained. Sizes are in bytes. Raises :class:`llm.Refused` for settings that cannot
    work; a run that does not fit is a plan with ``fits=False``.
    """
    from llm.config.inside import as_command, compose_plans
    from llm.planning.plain import plain_plan
    from llm.planning.points import plan_points
    from llm.planning.setup import forget_vocabularies

    forget_vocabularies()
    words = words_of(overrides)
    with as_command("run_plan.py", words), quieted(quiet):
        return [plain_plan(one) for one in plan_points(compose_plans(*words))]


def sweep(overrides: Sequence[str] = (), quiet: bool = False) -> list[Run]:
    """Run a sweep as ``python run_train.py -m`` with the words ``overrides``; returns its runs.

    A run that did not finish is among them: see ``run.status``. The sweep is a process of its own,
    and Ctrl-C is passed on to it. Raises as :func:`train` does.
    """
    words = words_of(overrides)
    document = run_command("run_train.py", ["-m", *words], quiet)
    folders = [job["folder"] for job in document.get("jobs") or []]
    have_ended = bool(folders) and all(map(is_run, folders))
    if document["exit"] not in (0, Stop.exit_status) or (document["exit"] != 0 and not have_ended):
        raise error_of(document)
    require(have_ended, "these words start no job: use llm.plan")
    return [load(folder) for folder in folders]


def words_of(overrides: Sequence[str]) -> list[str]:
    """``overrides`` as a list; a single text is refused."""
    require(
        not isinstance(overrides, str), f"{overrides!r} is one text: give a list, as in ['seed=1']"
    )
    return [str(word) for word in overrides]


@contextlib.contextmanager
def quieted(quiet: bool) -> Iterator[None]:
    """While inside, show nothing if ``quiet``."""
    from llm.experiment.console import console

    before, console.quiet = console.quiet, quiet
    try:
        yield
    finally:
        console.quiet = before


@contextlib.contextmanager
def _unchanged() -> Iterator[None]:
    """Restore the global state of torch, numpy and Python that a run changes."""
    import torch

    from llm.device import set_deterministic
    from llm.training.random_state import random_tensors, restore_random

    has_gpu: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch's
    device = torch.device("cuda" if has_gpu else "cpu")
    state, products = random_tensors(device), torch.get_float32_matmul_precision()
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        restore_random(state, device)
        set_deterministic(is_deterministic)
        torch.set_float32_matmul_precision(products)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's
            torch.cuda.set_per_process_memory_fraction(1.0)
