"""Tasks of lm-eval, an optional extra, from local task files: ``tasks=[lm_eval:NAME]``."""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from llm.errors import require
from llm.model.gpt import GPT
from llm.sealed import Plain
from llm.settings.eval import EvalSettings
from llm.tasks.losses import Reading, window_of
from llm.tasks.subject import Subject

PREFIX = "lm_eval:"
MISSING = "tasks=lm_eval:NAME needs the library lm-eval: pip install 'one-gpu-llm[lm_eval]'"


@dataclass(frozen=True)
class LmEvalTask:
    """A task of lm-eval; ``name`` is ``lm_eval:NAME``."""

    name: str
    folder: Path
    settings: EvalSettings

    def evaluate(self, subject: Subject, model: GPT, reading: Reading) -> Plain:
        """The metrics that lm-eval computes."""
        from llm.evaluation.lm_eval_adapter import Adapter, run

        size, _, rows = window_of(self.settings, model)
        adapter = Adapter(model, subject.source.tokenizer, size, rows)
        found = run(adapter, self.name.removeprefix(PREFIX), self.folder)
        return {"kind": "lm_eval", **found, "window": size}


def open_lm_eval(name: str, settings: EvalSettings) -> LmEvalTask:
    """The task; :class:`llm.errors.Refused` without lm-eval or without a folder of task files."""
    require(find_spec("lm_eval") is not None, MISSING, key="tasks")
    folder = settings.include_path
    require(
        folder and os.path.isdir(folder),
        f"{name:.60} needs include_path=FOLDER, the folder of its task file (YAML)",
        key="include_path",
    )
    # The libraries read this when they are imported, and then download nothing.
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return LmEvalTask(name, Path(str(folder)), settings)
