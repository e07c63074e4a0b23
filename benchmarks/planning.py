"""How long run_plan.py takes: rows ``plan_*`` of :mod:`benchmarks.memory`."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rows import Row, alternate, row

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = ["-c", "import hydra, omegaconf"]  # what a command cannot do without
ONE = ["model=small", "data=shakespeare", "precision=fp16"]
GRID = ["model.n_layer=range(1,26)", "model.n_embed=range(128,5248,128)"]  # 25 x 40 points


def seconds_of(arguments: list[str], cwd: Path) -> float:
    """Python with these arguments, from its start to its end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=cwd, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def plans(repeats: int) -> Iterator[Row]:
    """Seconds of a whole command for one point, and for a grid with its picture."""
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
