"""The time of planning and checking: python -m benchmarks.planning [--repeats N] [--json FILE]

Seconds to plan the memory of one run and of a grid (also rows of :mod:`benchmarks.memory`), and to
check the jobs of a sweep.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rows import Parser, Row, alternate, report, row

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = ["-c", "import hydra, omegaconf"]  # every command needs these
ONE = ["model=small", "data=shakespeare", "precision=fp16"]
GRID = ["model.n_layer=range(1,26)", "model.n_embed=range(128,5248,128)"]  # 25 x 40 points


# 20 x 25 x 10 good jobs; the impossible rate of the others keeps the sweep from starting.
SWEEP = ["optimizer.lr=" + ",".join(f"{n}e-4" for n in [*range(1, 21), -1])]
SWEEP += ["model.n_layer=range(1,26)", "seed=range(0,10)"]


def seconds_of(arguments: list[str], cwd: Path, status: int = 0) -> float:
    """Seconds of Python with these arguments, which must end with this exit status."""
    start = time.perf_counter()
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode != status:
        raise RuntimeError(f"exit status {done.returncode}: {done.stderr}")
    return time.perf_counter() - start


def plans(repeats: int) -> Iterator[Row]:
    """Seconds of run_plan.py for one point, and for a grid with its picture."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        picture = f"picture={folder / 'plan.png'}"
        command = [str(ROOT / "run_plan.py"), *ONE]
        for id, what, own in (
            ("plan_one", "of one run", []),
            ("plan_1000", "of 1,000 points, with a picture", [*GRID, picture]),
        ):
            pairs = alternate(
                lambda _, own=own: seconds_of([*command, *own], folder),
                lambda _: seconds_of(IMPORTS, folder),
                repeats,
            )
            what = f"seconds to plan the memory {what}; to import Hydra; ratio: the first again"
            yield row(id, what, pairs, lambda ours, other: ours)


def checks(repeats: int) -> Iterator[Row]:
    """Seconds of run_train.py to check 5,000 jobs and refuse the first one after them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [str(ROOT / "run_train.py"), "-m", *SWEEP]
        pairs = alternate(
            lambda _: seconds_of(command, folder, status=2),
            lambda _: seconds_of(IMPORTS, folder),
            repeats,
        )
        what = "seconds to check 5,000 jobs of a sweep; to import Hydra; ratio: the first again"
        yield row("check_5000", what, pairs, lambda ours, other: ours)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print a table."""
    typed = Parser("How long planning and checking take", repeats=5).parse_args(arguments)
    report((*plans(typed.repeats), *checks(typed.repeats)), typed.json)


if __name__ == "__main__":
    main()
