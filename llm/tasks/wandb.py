"""Adds the results of ``run_eval.py`` to a run in W&B, as summary keys ``eval/NAME``."""

from llm.checkpoint.find import FOLDER, read_manifest
from llm.errors import Refused
from llm.experiment.console import warn
from llm.experiment.eval_file import scores
from llm.experiment.rundir import SUMMARY
from llm.experiment.wandb_run import start_wandb
from llm.lock import locked
from llm.options import from_plain
from llm.settings.custom import OPTION
from llm.settings.saved import load_plain
from llm.settings.schema import LoggerSection
from llm.tasks.subject import Subject
from llm.training.state import read_run_id


def log_scores(subject: Subject) -> None:
    """Add the main numbers of a finished run to its run in W&B, if it has one.

    A failure only prints a warning, because the results are in eval.json already.
    """
    folder = subject.run
    if folder is None or not (folder / "wandb").is_dir() or not (folder / SUMMARY).is_file():
        return
    try:
        plain = load_plain(folder)
        section = plain.get("logger")
        if not isinstance(section, dict) or OPTION in section:
            return  # a custom logger
        options = from_plain(LoggerSection, section, f"{folder}: logger.")
        run_id = read_run_id(read_manifest(folder / FOLDER / "last").state.get("run_id"))
        sweep = folder.parent if (plain.get("run") or {}).get("sweep") else None
        with locked(folder):
            service = start_wandb(folder, run_id, plain, options, sweep)
            if service is not None:
                numbers = {f"eval/{key}": value for key, value in scores(subject.results).items()}
                service.run.summary.update(numbers)
                service.close(0)
    except Refused as refusal:
        warn(f"the results are not in W&B: {refusal}")
