"""The jobs of a sweep in the JSON document of its command."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from llm.answer import answer
from llm.experiment.sweep_csv import NUMBERS, SUMMARY_CSV
from llm.experiment.sweep_table import SweepTable
from llm.experiment.watch import FINISHED, Watched
from llm.sealed import Plain

REPORT = "report.html"


def answer_sweep(folder: Path, jobs: Sequence[Watched]) -> None:
    """Answer with the jobs, in the state in which they were last read, and the best of them."""
    plain = [_plain(job) for job in jobs]
    best = SweepTable(folder.name, jobs, at_once=1).best(finished=True)
    files = {"table": folder / SUMMARY_CSV, "report": folder / REPORT}
    answer(
        folder=folder,
        jobs=plain,
        best=None if best is None else best.folder,
        counts=Counter(job["status"] for job in plain),
        **{key: path if path.exists() else None for key, path in files.items()},
    )


def _plain(job: Watched) -> Plain:
    facts: Plain = {
        "folder": job.folder,
        "values": job.values,
        "status": FINISHED if job.is_finished else job.state,
        "reason": job.reason or None,
    }
    return facts | {key: job.number(key) for key in NUMBERS}
