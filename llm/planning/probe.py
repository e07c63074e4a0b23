"""What optimizers of the user's own keep, asked of a process with torch, or of this one if it has
torch already.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from llm.errors import Refused, require
from llm.memory.kept import Kept, from_plain
from llm.model.config import GPTConfig
from llm.settings.build import locate_custom, naming, try_custom
from llm.settings.custom import Custom, custom_section
from llm.settings.schema import TrainSettings

_KNOWN: dict[str, Kept | str] = {}  # by what was asked; a text: why it cannot be used


def kept_by(section: object, model: GPTConfig, cuda: bool) -> Kept | None:
    """What an optimizer of the user's own keeps for the weights of ``model``; None for one of ours.

    Raises :class:`llm.errors.Refused` for one that cannot be used.
    """
    if not isinstance(section, Custom):
        return None
    question = _question(section, model, cuda)
    _ask([question])
    found = _KNOWN[question]
    if isinstance(found, str):
        raise Refused(found)
    return found


def ask_ahead(runs: Iterable[tuple[TrainSettings, str]]) -> None:
    """Ask at once for all optimizers of one's own in the settings of runs, each with its device."""
    _ask([
        _question(one.optimizer, one.model.resolve(), device == "cuda")
        for one, device in runs
        if isinstance(one.optimizer, Custom)
    ])  # fmt: skip


def try_all(settings: Sequence[TrainSettings]) -> None:
    """Raise :class:`llm.errors.Refused` for what is the user's own and does not work, before a run
    begins.
    """
    tried: list[tuple[object, object, int]] = []
    for one in settings:
        parts = (one.schedule, one.logger, one.trainer.max_steps)
        if parts not in tried[-1:]:  # neighbours in a grid mostly share them
            tried.append(parts)
            try_custom(one)
    ask_ahead((one, "cpu") for one in settings)
    for one in settings:
        kept_by(one.optimizer, one.model.resolve(), False)


def _question(section: Custom, model: GPTConfig, cuda: bool) -> str:
    # Sizes are left out: those of the small network that the class is tried with are others.
    flags = asdict(replace(GPTConfig(**_fields(model)), n_layer=1, vocab_size=1, loss="auto"))
    shared = model.n_kv_head != model.n_head
    sizes = {"n_embed": 64, "n_head": 2, "head_size": 32, "n_kv_head": 1 if shared else 2}
    flags |= sizes | {"intermediate_size": 64, "block_size": 128}
    keys = [section._target_, section.option, section.arguments, flags, cuda]
    return json.dumps(keys)


def _fields(model: GPTConfig) -> dict[str, Any]:
    return {field.name: getattr(model, field.name) for field in fields(GPTConfig)}


def _ask(questions: list[str]) -> None:
    new = [question for question in dict.fromkeys(questions) if question not in _KNOWN]
    if not new:
        return
    if "torch" in sys.modules:
        answers = [_answer(question) for question in new]
    else:
        answers = _asked_elsewhere(new)
    for question, answer in zip(new, answers, strict=True):
        refusal = answer.get("refused")
        _KNOWN[question] = from_plain(answer["kept"]) if refusal is None else refusal


def _asked_elsewhere(questions: list[str]) -> list[dict[str, Any]]:
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-m", "llm.planning.probe"], input=json.dumps(questions),
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    said = done.stdout.splitlines()
    last = next(iter(reversed(done.stderr.splitlines())), f"exit status {done.returncode}")
    require(done.returncode == 0 and said, f"an optimizer of one's own cannot be tried: {last}")
    answers: list[dict[str, Any]] = json.loads(said[-1])
    return answers


def _answer(question: str) -> dict[str, Any]:
    """What is kept, or why there is no answer, as plain values."""
    import torch

    from llm.training.measure import measure

    target, option, keys, flags, cuda = json.loads(question)
    section = custom_section("optimizer", option, {"_target_": target, **keys})
    try:
        with naming(section):
            kept = measure(
                section.where, locate_custom(section), section.arguments, GPTConfig(**flags),
                torch.device("cpu"), foreach=cuda,
            )  # fmt: skip
    except Refused as refusal:
        return {"refused": str(refusal)}
    return {"kept": asdict(kept)}


if __name__ == "__main__":
    print(json.dumps([_answer(question) for question in json.load(sys.stdin)]))
