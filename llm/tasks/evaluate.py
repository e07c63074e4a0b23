"""Evaluate networks on tasks, for ``run_eval.py``. The results of a run are stored as
``eval.json`` in its folder.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from llm.data.batches import Batch
from llm.data.meta import META
from llm.errors import Refused, did_you_mean, require
from llm.experiment.console import count_progress
from llm.experiment.eval_file import write_results
from llm.sealed import read_bounded
from llm.settings.eval import EvalSettings
from llm.tasks.losses import SplitTask, Task, TextTask
from llm.tasks.questions import open_blimp, open_grammar, open_questions
from llm.tasks.subject import Subject

LARGEST_TEXT = 1 << 28  # bytes


def open_tasks(settings: EvalSettings) -> list[Task]:
    """The tasks that were typed; raises :class:`llm.errors.Refused` for one that is unknown or
    whose file cannot be used.
    """
    return [_open_task(name, settings) for name in dict.fromkeys(settings.names())]


def _open_task(name: str, settings: EvalSettings) -> Task:
    if name in BUILT_IN:
        return BUILT_IN[name](settings)
    known = ", ".join(BUILT_IN)
    close = get_close_matches(name, BUILT_IN, n=2)
    require(
        os.path.isfile(name),
        f"tasks={name:.60} is unknown: take {known} or the path of a file"
        f"{did_you_mean(name, BUILT_IN)}",
        key="tasks", suggestions=[f"tasks={one}" for one in close],
    )  # fmt: skip
    path = Path(name)
    return open_questions(path, settings) if path.suffix == ".jsonl" else _open_text(path, settings)


def _open_loss(settings: EvalSettings) -> Task:
    if settings.data_path is None:
        return SplitTask(settings)
    path = Path(settings.data_path)
    if (path / META).is_file():
        return SplitTask(settings, path)
    require(path.is_file(), f"data_path={path} is neither a text file nor a prepared folder")
    return _open_text(path, settings)


BUILT_IN: dict[str, Callable[[EvalSettings], Task]] = {
    "loss": _open_loss, "grammar": open_grammar, "blimp": open_blimp,
}  # fmt: skip


def _open_text(path: Path, settings: EvalSettings) -> TextTask:
    try:
        text = read_bounded(path, LARGEST_TEXT).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"{path} is not UTF-8 text: byte {error.start} is invalid") from None
    return TextTask(path.name, text, settings)


def evaluate_all(
    subjects: Sequence[Subject], tasks: Sequence[Task], settings: EvalSettings
) -> None:
    """Evaluate each network. If one of several is refused, its ``reason`` says why.

    Raises :class:`llm.errors.Refused` if all are refused.
    """
    for subject in subjects:
        try:
            evaluate_subject(subject, tasks, settings)
        except Refused as refusal:
            subject.reason, subject.results = str(refusal), {}
            if all(one.reason is not None for one in subjects):
                raise


def evaluate_subject(subject: Subject, tasks: Sequence[Task], settings: EvalSettings) -> None:
    """Evaluate one network on all tasks, and store the results in the folder of its run."""
    model = subject.load(settings.device)
    for task in tasks:
        with count_progress(f"{subject.place}: {task.name}") as on_progress:
            subject.results[task.name] = task.evaluate(
                subject, model, partial(_reading, on_progress)
            )
    if subject.run is not None:
        digest = subject.source.digest()
        write_results(subject.run, subject.checkpoint, digest, subject.results)


def _reading(
    on_progress: Callable[[int, int], None], batches: Iterator[Batch], count: int
) -> Iterator[Batch]:
    for done, batch in enumerate(batches):
        yield batch
        on_progress(done + 1, count)
