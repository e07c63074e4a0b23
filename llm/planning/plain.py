"""Plans and planned jobs as plain values, for the JSON document of a command."""

from collections.abc import Sequence
from pathlib import Path

from llm.experiment.watch import Rates, estimate
from llm.planning.plan import Plan
from llm.planning.preflight import PlannedJob
from llm.sealed import Plain


def plain_plan(plan: Plan) -> Plain:
    """A plan: its size, its peak in bytes with the parts of that, and how it fits.

    ``changes`` are the words that make it fit: empty if it fits as it is, null if none do.
    """
    fitted, largest = plan.fitted, plan.largest
    return {
        "values": plan.values,
        "parameters": plan.parameters,
        "peak_bytes": plan.taken.total,
        "budget_bytes": plan.budget,
        "fits": plan.started is not None,
        "peak": plan.taken.peak,
        "parts": plan.taken.lines,
        "changes": None if fitted is None else fitted.changes,
        "largest": None if largest is None else {"key": largest.key, "value": largest.value},
    }


def plain_jobs(
    folders: Sequence[Path], jobs: Sequence[PlannedJob], rates: Rates, at_once: int
) -> Plain:
    """The jobs of a sweep before they start, and the seconds that all take; null: unknown."""
    seconds = [job.seconds(rates) for job in jobs]
    return {
        "jobs": [
            {"folder": folder, "seconds": time} | _plain_job(job)
            for folder, job, time in zip(folders, jobs, seconds, strict=True)
        ],
        "seconds": estimate(seconds, at_once),
    }


def _plain_job(job: PlannedJob) -> Plain:
    known = job.forecast
    return {
        "values": job.values,
        "state": job.state,
        "parameters": known and known.parameters,
        "max_steps": known and known.max_steps,
        "max_minutes": known and known.minutes,
        "tokens": known and known.tokens,
        "peak_bytes": known and known.peak,
        "budget_bytes": known and known.budget,
        "fits": known and known.fits,
    }
