"""Measure a trained model on texts and questions: python run_eval.py outputs/<run> tasks=[loss]"""

import llm.start  # noqa: F401  (first: from here on signals are handled)

# isort: split
import hydra
from omegaconf import DictConfig

from llm.answer import answer
from llm.config.cli import command, reported
from llm.config.compose import read_settings
from llm.experiment.console import status
from llm.settings.eval import EvalSettings
from llm.signals import delayed
from llm.terminal import require_output


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
@reported
def main(cfg: DictConfig) -> None:
    """Evaluate one network, or all finished runs of a folder, and print a table."""
    settings = read_settings(cfg, EvalSettings)
    # After the checks: --help and typing errors need no torch.
    with status("loading torch"), delayed():
        from llm.tasks.evaluate import evaluate_all, open_tasks, verify_causal
        from llm.tasks.subject import find_subjects
        from llm.tasks.table import show

    require_output()
    tasks = open_tasks(settings)
    subjects = find_subjects(str(settings.ckpt))
    if settings.verify_causal:
        verify_causal(subjects, settings.device)
        return
    evaluate_all(subjects, tasks, settings)
    answer(runs=[one.as_plain() for one in subjects])
    show(subjects)


if __name__ == "__main__":
    command(main)
