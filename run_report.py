"""Compare runs, and say which difference is real: python run_report.py multirun/width_depth"""

import llm.start  # noqa: F401  (first: from here on signals are handled)

# isort: split
import hydra
from omegaconf import DictConfig

from llm.answer import answer
from llm.config.cli import command, reported
from llm.config.compose import read_settings
from llm.errors import require
from llm.experiment.console import count_progress, status, warn
from llm.settings.report import ReportSettings


@hydra.main(version_base="1.3", config_path="conf", config_name="report")
@reported
def main(cfg: DictConfig) -> None:
    """Read the runs, write the report and show its answer."""
    settings = read_settings(cfg, ReportSettings)
    # Imports after the checks: --help and typing errors need no scipy.
    with status("loading scipy"):
        from llm.report import gate, plots, terminal
        from llm.report.writing import MISSING, Reporter, can_report, make_report_folder

    require(can_report(), MISSING)
    require(not settings.plots or plots.can_draw(), plots.MISSING)
    reporter = Reporter(settings.runs, settings.metric)
    with count_progress("reading runs") as on_progress:
        reporter.read(on_progress)
    report = reporter.analyse()
    if settings.test:
        with count_progress("evaluating on the test split") as on_progress:
            reporter.test(report, on_progress)
        report = reporter.analyse()
    document, extra = reporter.document(report), reporter.page_data()
    if settings.gate:
        gate.require_two_points(document)
    folder = make_report_folder(settings.out, reporter.sweep)
    with status("writing the report"):
        paths = reporter.write(folder, document, extra)
    if settings.plots:
        with status("drawing"):
            paths += plots.save(folder, document, extra)
    for note in extra["notes"]:
        warn(note)
    terminal.show(document, paths)
    answer(**document)
    if settings.gate:
        gate.check_gate(document, reporter.records)


if __name__ == "__main__":
    command(main)
