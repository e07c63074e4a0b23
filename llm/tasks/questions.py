"""Questions and minimal pairs as tasks of ``run_eval.py``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm.errors import require
from llm.evaluation import grammar
from llm.evaluation.accuracy import answer_questions
from llm.evaluation.questions import PAIRS, Question, pair, read_questions
from llm.experiment.console import warn
from llm.model.gpt import GPT
from llm.sealed import Plain
from llm.settings.eval import EvalSettings
from llm.tasks.losses import Reading, first_token, window_of
from llm.tasks.subject import Subject
from llm.units import plural

BLIMP = Path("data/blimp")
BLIMP_FILES = 67
HOW_TO_GET = (
    "git clone https://github.com/alexwarstadt/blimp && cp -r blimp/data data/blimp "
    "(67 files of 1,000 pairs)"
)


@dataclass(frozen=True)
class QuestionTask:
    """Measures the share of questions that a network answers correctly."""

    name: str
    kind: str
    questions: Sequence[Question]
    settings: EvalSettings
    where: str  # their file, for error messages

    def evaluate(self, subject: Subject, model: GPT, reading: Reading) -> Plain:
        """The accuracy, and how it was measured."""
        tokenizer = subject.source.tokenizer
        size, _, rows = window_of(self.settings, model)
        found = answer_questions(model, tokenizer, self.questions, self.where, size, rows, reading)
        return {"kind": self.kind, **found, "starts_with": first_token(tokenizer)}


def open_grammar(settings: EvalSettings) -> QuestionTask:
    """Our own minimal pairs, see :mod:`llm.evaluation.grammar`."""
    questions = [pair(row) for row in grammar.rows()]
    return QuestionTask("grammar", PAIRS, questions, settings, "grammar")


def open_blimp(settings: EvalSettings) -> QuestionTask:
    """BLiMP (Warstadt et al. 2020) in ``data/blimp``, with one paradigm per file.

    Raises :class:`llm.errors.Refused` naming its source if the folder has no files.
    """
    paths = sorted(BLIMP.glob("*.jsonl"))
    require(paths, f"blimp needs its files in {BLIMP}: {HOW_TO_GET}", key="tasks")
    questions: list[Question] = []
    for path in paths:
        kind, found = read_questions(path)
        require(kind == PAIRS, f"{path} has no pairs of sentence_good and sentence_bad")
        questions += found
    if len(paths) < BLIMP_FILES:
        warn(f"{BLIMP} has {plural(len(paths), 'file')} of BLiMP's {BLIMP_FILES}")
    return QuestionTask("blimp", PAIRS, questions, settings, str(BLIMP))


def open_questions(path: Path, settings: EvalSettings) -> QuestionTask:
    """The questions of a JSONL file."""
    kind, questions = read_questions(path)
    return QuestionTask(path.name, kind, questions, settings, str(path))
