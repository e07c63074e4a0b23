"""All settings of ``run_report.py``."""

from dataclasses import dataclass, field
from pathlib import Path

from llm.disk import check_path
from llm.errors import require
from llm.options import option

MULTIRUN, SWEEP = Path("multirun"), "sweep.json"
METRICS = ("best", "last")


@dataclass
class ReportSettings:
    """All settings of ``run_report.py``."""

    runs: list[str] = field(default_factory=list)
    out: str | None = None
    metric: str = option("best", one_of=METRICS)
    plots: bool = False
    test: bool = False
    gate: bool = False

    def cross_check(self) -> None:
        """Raise :class:`llm.errors.Refused` without a path, or with an empty one."""
        example = newest_sweep() or MULTIRUN / "width_depth"
        require(
            self.runs, f"no runs: give folders, as in python run_report.py {example}",
            key="runs", suggestions=[f"runs={example}"],
        )  # fmt: skip
        require(all(self.runs), "runs= has an empty path: give a folder, or leave it out")
        require(self.out != "", "out is empty: give a folder, or leave it out")
        check_path("out", self.out or "")


def newest_sweep() -> Path | None:
    """The folder below ``multirun/`` whose sweep started last; None if there is no sweep."""
    found = [(path.stat().st_mtime_ns, path.parent) for path in MULTIRUN.glob(f"*/{SWEEP}")]
    return max(found)[1] if found else None
