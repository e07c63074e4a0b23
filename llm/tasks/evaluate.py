"""Evaluate networks on tasks, for ``run_eval.py``. The results of a run are stored as
``eval.json`` in its folder.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path

from llm.answer import answer
from llm.commands import command_line
from llm.data.batches import Batch
from llm.data.config import is_json
from llm.data.corpus import Document
from llm.data.meta import META
from llm.errors import Refused, Stop, did_you_mean, require
from llm.evaluation.causal import is_causal, largest_change
from llm.evaluation.int8 import rounded
from llm.experiment.console import count_progress, say
from llm.experiment.eval_file import write_results
from llm.experiment.introduce import introduce
from llm.sealed import Plain, read_bounded
from llm.settings.eval import EvalSettings
from llm.tasks.lm_eval import PREFIX, open_lm_eval
from llm.tasks.losses import SplitTask, Task, TextTask
from llm.tasks.questions import open_blimp, open_grammar, open_questions
from llm.tasks.subject import Subject
from llm.tasks.wandb import log_scores

LARGEST_TEXT = 1 << 28  # bytes


def open_tasks(settings: EvalSettings) -> list[Task]:
    """The tasks that were typed.

    Raises :class:`llm.errors.Refused` for an unknown task, a file that cannot be used, and two
    results with one name.
    """
    tasks = [_open_task(name, settings) for name in dict.fromkeys(settings.names())]
    names = [task.name for task in tasks]
    twice = next((name for name in names if names.count(name) > 1), None)
    require(
        twice is None,
        f"tasks has two results with the name {twice}, and eval.json would keep one: rename a file",
        key="tasks",
    )
    return tasks


def _open_task(name: str, settings: EvalSettings) -> Task:
    if name in BUILT_IN:
        return BUILT_IN[name](settings)
    if name.startswith(PREFIX):
        return open_lm_eval(name, settings)
    known = ", ".join(BUILT_IN)
    close = get_close_matches(name, BUILT_IN, n=2)
    require(
        os.path.isfile(name),
        f"tasks={name:.60} is unknown: take {known} or the path of a file"
        f"{did_you_mean(name, BUILT_IN)}",
        key="tasks", suggestions=[f"tasks={one}" for one in close],
    )  # fmt: skip
    path = Path(name)
    if path.suffix.lower() == ".jsonl":
        return open_questions(path, settings)
    return _open_text("tasks", path, settings)


def _open_loss(settings: EvalSettings) -> Task:
    if settings.data_path is None:
        return SplitTask(settings)
    path = Path(settings.data_path)
    if os.path.isfile(path / META):  # Path.is_file raises if the name is too long
        return SplitTask(settings, path)
    require(
        os.path.isfile(path),
        f"data_path={path} is neither a text file nor a prepared folder (run_prepare.py)",
        key="data_path",
    )
    return _open_text("data_path", path, settings)


BUILT_IN: dict[str, Callable[[EvalSettings], Task]] = {
    "loss": _open_loss, "grammar": open_grammar, "blimp": open_blimp,
}  # fmt: skip


def _open_text(key: str, path: Path, settings: EvalSettings) -> TextTask:
    words = ("data=chat", f"data.path={path}", f"data.tokenizer={settings.ckpt}")
    require(
        not is_json(path),
        f"{key}={path} is JSON: questions and pairs are read by tasks=[FILE.jsonl], and "
        f"conversations by {command_line('run_prepare.py', *words)}, "
        "whose folder is then given as data_path",
        key=key,
    )
    try:
        raw = read_bounded(path, LARGEST_TEXT)
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from None
    text = "".join(Document(str(path), raw).pieces())  # as training reads a text
    return TextTask(path.name, text, settings)


def evaluate_all(
    subjects: Sequence[Subject], tasks: Sequence[Task], settings: EvalSettings
) -> None:
    """Evaluate each network. A network that is refused gets a ``reason`` instead of results.

    Raises :class:`llm.errors.Refused` if all networks are refused.
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
    # Its name is printed once, before the first batch: a refusal is one line, and comes earlier.
    introduced = cache(partial(introduce, [subject.source]))
    model = subject.load(settings.device)
    small, n_bytes = rounded(model) if settings.int8 else (None, 0)
    for task in tasks:
        with count_progress(f"{subject.place}: {task.name}") as on_progress:
            reading = partial(_reading, introduced, on_progress)
            result = task.evaluate(subject, model, reading)
            if result["kind"] == "loss":
                result["sizes"] = {"stored": _size(subject.bytes_on_disk(), result)}
                if small is not None:
                    again = task.evaluate(subject, small, reading)
                    result["sizes"]["int8"] = _size(n_bytes, again)
            subject.results[task.name] = result
    introduced()  # lm-eval reads its batches by itself
    if subject.run is not None:
        digest = subject.source.digest()
        write_results(subject.run, subject.checkpoint, digest, subject.results)
        log_scores(subject)


def _size(n_bytes: int, result: Plain) -> Plain:
    return {"bytes": n_bytes, "loss": result["loss"], "bits_per_byte": result["bits_per_byte"]}


def verify_causal(subjects: Sequence[Subject], device: str) -> None:
    """Check that no logit depends on a later token, and print a line for each network.

    Raises :class:`llm.errors.Stop` for a network that fails.
    """
    found: list[Plain] = []
    for subject in subjects:
        change, scale = largest_change(subject.load(device))
        passed = is_causal(change, scale)
        found.append(
            {"place": subject.place, "change": change, "largest_logit": scale, "causal": passed}
        )
        verdict = "causal" if passed else f"NOT causal: {_failure(change)}"
        say(f"{subject.place}: {verdict} (largest change {change:.2g}, largest logit {scale:.3g})")
    answer(verify_causal=found)
    broken = [one["place"] for one in found if not one["causal"]]
    if broken:
        reason = f"in {', '.join(broken)} {_failure(max(one['change'] for one in found))}"
        raise Stop(reason)


def _failure(change: float) -> str:
    return "logits depend on later tokens" if math.isfinite(change) else "logits are not finite"


def _reading(
    introduced: Callable[[], None],
    on_progress: Callable[[int, int], None],
    batches: Iterator[Batch],
    count: int,
) -> Iterator[Batch]:
    introduced()
    for done, batch in enumerate(batches):
        yield batch
        on_progress(done + 1, count)
