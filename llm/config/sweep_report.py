"""The report of a sweep: refreshed while its jobs run, and made once more when they have ended."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from llm.errors import Refused, Stop
from llm.experiment.console import log, say, say_sentence, status, warn
from llm.experiment.rundir import SUMMARY
from llm.experiment.sweep_answer import REPORT
from llm.experiment.watch import Watched
from llm.sealed import Plain, read_json

if TYPE_CHECKING:  # scipy and plotly may be missing, and importing them takes a second
    from llm.report.writing import Reporter

SECONDS = 15.0  # between two refreshes, at least
SHARE = 0.05  # of the time, at most, goes into refreshing
NICE = 10  # priority of the thread: jobs come first
SENTENCES = 3  # on the screen: the best settings, and which differences are shown
STUCK = 60.0  # seconds to wait for the thread at the end


class SweepReport:
    """A context manager around the screen of a sweep. ``question``: of the sweep file.

    An error here becomes a warning: it must not end the sweep.
    """

    def __init__(self, folder: Path, jobs: Sequence[Watched], question: str | None = None) -> None:
        self.folder, self.jobs, self.question = folder, jobs, question
        self._reporter: Reporter | None = None  # does not read again the runs that have ended
        self._seen: list[tuple[str, float | None]] = []  # states and steps in the last report
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._refresh, daemon=True, name="sweep report")

    def __enter__(self) -> Self:
        if any(job.will_run for job in self.jobs):
            from llm.report.writing import can_report

            if can_report():
                say(f"report while the jobs run: {self.folder / REPORT}")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(STUCK)
        try:
            self._end()
        except Exception as error:
            log.exception("the report failed")
            reason = error if isinstance(error, Stop) else f"{type(error).__name__}: {error}"
            warn(f"no report: {reason}")

    def _refresh(self) -> None:
        if sys.platform == "linux":  # where each thread has a priority of its own
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        pause = SECONDS
        while not self._stop.wait(pause):
            seen = [(job.state, job.number("step")) for job in self.jobs]
            start = time.monotonic()
            if seen != self._seen:
                self._seen = seen
                try:
                    self._write()
                except Exception:  # such as a full disk: the next refresh may succeed
                    log.exception("the report could not be refreshed")
            pause = max(SECONDS, (time.monotonic() - start) / SHARE)

    def _end(self) -> None:
        if self._thread.is_alive():
            raise TimeoutError("a refresh of the report does not end")
        page = self.folder / REPORT
        if not self._is_current(page):
            from llm.report.writing import MISSING, can_report

            if not can_report():
                say(f"no report: {MISSING}")
                return
            with status("comparing the jobs"):
                document = self._write(has_ended=True)
            for sentence in document["answer"]["sentences"][:SENTENCES]:
                say_sentence(sentence)
        say(f"report: {page}")

    def _is_current(self, page: Path) -> bool:
        """Whether no job has run, in this command or elsewhere, since the report was made."""
        if any(job.will_run for job in self.jobs):
            return False
        try:
            made = page.stat().st_mtime_ns
            ends = [(job.folder / SUMMARY).stat().st_mtime_ns for job in self.jobs]
            # A command that was killed may have left a report of jobs that still ran.
            is_whole = read_json(page.with_suffix(".json")).get("is_running") is False
        except (OSError, Refused):
            return False
        return is_whole and all(end < made for end in ends)

    def _write(self, has_ended: bool = False) -> Plain:
        from llm.report.writing import MISSING, Reporter, can_report

        if not can_report():
            raise Refused(MISSING)
        if self._reporter is None:
            self._reporter = Reporter([self.folder])
        reporter = self._reporter
        reporter.read(has_ended=has_ended)
        document = reporter.document(reporter.analyse(self.question))
        reporter.write(self.folder, document, reporter.page_data(), with_csv=False)
        return document
