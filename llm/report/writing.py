"""A report on the disk: report.html, plotly.min.js, report.json and summary.csv in one folder."""

import json
import os
from collections.abc import Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

from llm.answer import plain
from llm.disk import cannot_use
from llm.errors import Refused, require
from llm.experiment import ledger
from llm.experiment.rundir import claim, make_folder, replace_text
from llm.experiment.sweep_csv import NUMBERS, SUMMARY_CSV, CsvRow, write_csv
from llm.experiment.sweep_file import SWEEP, read_sweep_file
from llm.experiment.watch import WAITING
from llm.report.curves import extra as runs_data
from llm.report.curves import logs
from llm.report.measure import BEST, comparable
from llm.report.numbers import Report, analyse, as_plain
from llm.report.page import write_page
from llm.report.points import as_text
from llm.report.reading import LARGEST_NUMBER
from llm.report.record import RunRecord
from llm.report.runs import OnProgress, Reader
from llm.sealed import Plain, read_json

JSON = "report.json"
NEEDED = ("plotly", "scipy")
MISSING = f"the report needs plotly and scipy: pip install -c constraints.txt {' '.join(NEEDED)}"
LONGEST_QUESTION = 300  # characters
FEW_POINTS = 3  # so few that test=true evaluates all of them
REPORTS, NAME = Path("outputs/reports"), "%Y-%m-%d_%H-%M-%S"


def can_report() -> bool:
    """Whether the packages that a report needs are installed; they are not imported."""
    return all(find_spec(name) is not None for name in NEEDED)


class Reporter:
    """Reads the runs in ``paths`` and writes their report, again whenever they have changed.

    ``metric``: the evaluation that counts, ``best`` or ``last``.
    """

    def __init__(self, paths: Sequence[str | Path], metric: str = BEST) -> None:
        self.paths, self.metric = [Path(path) for path in paths], metric
        self.reader = Reader(self.paths)
        self.records: list[RunRecord] = []
        self.notes: list[str] = []  # for the page, beside the notes of the reader

    @property
    def sweep(self) -> Path | None:
        """The folder of the sweep that is the only path; None for other paths."""
        is_one = len(self.paths) == 1 and (self.paths[0] / SWEEP).is_file()
        return self.paths[0] if is_one else None

    def read(
        self, on_progress: OnProgress = lambda done, total: None, has_ended: bool = False
    ) -> None:
        """Read all runs; raises :class:`llm.errors.Refused` for a path without runs.

        ``has_ended``: the sweep is over although its folder is still locked, so no job waits.
        """
        records = self.reader.read(on_progress)
        waiting = {WAITING} if has_ended else set()
        self.records = [record for record in records if record.status not in waiting]

    def analyse(self, question: str | None = None) -> Report:
        """The numbers of the runs that were read. ``question``: of the sweep file."""
        names = [path.resolve().name for path in self.paths]
        more = f" and {len(names) - 3:,} more" * (len(names) > 3)
        title = ", ".join(names[:3]) + more
        return analyse(
            self.records, metric=self.metric, title=title, question=question or self._question(),
            default=self._default(),
            earlier=lambda: earlier_losses(self.records, self.metric),
        )  # fmt: skip

    def _question(self) -> str | None:
        """The question of the sweep in its last report: only its command knows the sweep file."""
        if self.sweep is None:
            return None
        try:
            found = read_json(self.sweep / JSON).get("question")
        except (Refused, OSError):
            return None
        return found[:LONGEST_QUESTION] if isinstance(found, str) else None

    def _default(self) -> dict[str, str] | None:
        """The values that the swept keys have if nothing is typed."""
        if self.sweep is None:
            return None
        try:
            return read_sweep_file(self.sweep / SWEEP).default or None
        except (Refused, OSError):  # the reader has a note about it
            return None

    def test(self, report: Report, on_progress: OnProgress) -> None:
        """Evaluate runs on the test split of their data: those of the best and of the default
        point, or of all points if there are at most three.

        Raises :class:`llm.errors.Refused` if none of them can be evaluated.
        """
        from llm.report.testing import test_runs  # it imports torch

        require(report.points, "test=true: no finished run can be compared", key="test")
        few = len(report.points) <= FEW_POINTS
        points = range(len(report.points)) if few else {report.best, report.default} - {None}
        chosen = [n for index in points for n in report.points[index or 0].runs]
        require(chosen, "test=true: no finished run can be compared")
        tested, reasons = test_runs([self.records[n] for n in chosen], on_progress)
        for n, record in zip(chosen, tested, strict=True):
            self.records[n] = record
        lines = [
            f"{folder} has no loss on the test split: {why}" for folder, why in reasons.items()
        ]
        require(len(reasons) < len(chosen), f"test=true: {next(iter(reasons.values()), '')}")
        self.notes += lines

    def document(self, report: Report) -> Plain:
        """The document of report.json."""
        document = as_plain(report)
        for index, text in logs(self.records).items():
            document["runs"][index]["log"] = text
        return document

    def page_data(self) -> Plain:
        """The data of the page beside the document: curves, samples and notes."""
        found = runs_data(self.reader, self.records)
        return found | {"notes": [*found["notes"], *self.notes]}

    def write(
        self, folder: Path, document: Plain, extra: Plain, with_csv: bool = True
    ) -> list[Path]:
        """Write the report into ``folder``; returns the paths of its files.

        ``extra``: :meth:`page_data`. ``with_csv=False``: the screen of a sweep writes summary.csv.
        Raises :class:`llm.errors.Refused` or :class:`llm.errors.DiskError` if that fails.
        """
        try:
            replace_text(folder / JSON, json.dumps(plain(document), indent=1) + "\n")
            if with_csv:
                rows = csv_rows(self.records, document, self.sweep is not None)
                write_csv(folder, rows, "job" if self.sweep else "folder")
            page = write_page(folder, document, extra)
        except OSError as error:
            raise cannot_use(folder, error, "report folder ") from None
        return [page, folder / JSON, folder / SUMMARY_CSV]


def earlier_losses(records: Sequence[RunRecord], metric: str) -> list[tuple[str, float]]:
    """Points and losses of other finished runs on the same data, from the ledger.

    Each point and seed counts once, because the same run may have ended several times.
    """
    digests = {record.data_digest for record in records if record.data_digest}
    own = {os.path.abspath(record.folder) for record in records}
    key = comparable(records, metric)[0].key
    found: dict[tuple[str, int], float] = {}
    for line in ledger.read(digests) if digests else ():
        point, loss, seed = line.get("point"), line.get(key), line.get("seed")
        if line.get("status") != "finished" or line.get("data_digest") not in digests:
            continue
        is_own = os.path.abspath(str(line.get("folder"))) in own
        if not isinstance(loss, float) or not abs(loss) < LARGEST_NUMBER:
            continue
        if isinstance(point, str) and type(seed) is int and not is_own:
            found.setdefault((point, seed), loss)
    return [(point, loss) for (point, _), loss in found.items()]


def make_report_folder(out: str | None, sweep: Path | None) -> Path:
    """The folder to write into: ``out``, else the sweep's, else a new one.

    Raises :class:`llm.errors.Refused` for a folder that cannot be written.
    """
    if out is None and sweep is None:
        return claim(REPORTS / f"{datetime.now():{NAME}}")
    folder = Path(out) if out is not None else sweep
    assert folder is not None
    try:
        return make_folder(folder, kind="report")
    except Refused as error:
        hint = "" if out is not None else ": take out=FOLDER for another"
        raise Refused(f"{error}{hint}") from None


def csv_rows(records: Sequence[RunRecord], document: Plain, of_sweep: bool) -> list[CsvRow]:
    """A row for each run, the lowest loss first; the first run that is compared is the best."""
    key = document["measure"]["key"]

    def loss(index: int) -> tuple[bool, float]:
        value = getattr(records[index], key)
        return value is None, value or 0.0

    ordered = sorted(range(len(records)), key=loss)
    compared = (n for n in ordered if document["runs"][n]["point"] is not None)
    best = next(compared, None)
    return [
        _csv_row(records[n], document["runs"][n]["changes"], of_sweep, n == best) for n in ordered
    ]


def _csv_row(record: RunRecord, changes: Plain, of_sweep: bool, is_best: bool) -> CsvRow:
    seed = {} if record.seed is None else {"seed": record.seed}
    values = {key: as_text(value) for key, value in (changes | seed).items()}
    name = record.name if of_sweep else record.folder
    numbers = {key: getattr(record, key) for key in NUMBERS}
    return CsvRow(
        name,
        record.values if of_sweep else values,
        record.status,
        record.reason,
        numbers,
        is_best,
        record.scores,
    )
