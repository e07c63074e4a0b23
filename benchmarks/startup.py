"""The time of commands that do not train: help, completion, a refusal.

    python -m benchmarks.startup

None of them imports torch (tests/test_help.py); Python and Hydra take the time.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rows import Parser, Row, alternate, report, row

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = ["-c", "import hydra, omegaconf"]  # every command needs them
KINDS = {
    "help": ("--help", ["--help"], ""),
    "config": ("--cfg job", ["--cfg", "job"], ""),
    "completion": ("completion of a key", ["-sc", "query=bash"], "python run_train.py trainer.max"),
    "refusal": ("a mistyped key", ["trainer.max_step=3"], ""),
}


def seconds_of(arguments: list[str], cwd: Path, line: str = "") -> float:
    """Seconds of Python with these arguments; ``line`` is the command line to complete."""
    environment = os.environ | ({"COMP_LINE": line} if line else {})
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True)
    return time.perf_counter() - start


def starts(repeats: int) -> Iterator[Row]:
    """Seconds of each kind of command, beside the import of Hydra."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for id, (what, typed, line) in KINDS.items():
            command = [str(ROOT / "run_train.py"), *typed]
            pairs = alternate(
                lambda _, command=command, line=line: seconds_of(command, folder, line),
                lambda _: seconds_of(IMPORTS, folder),
                repeats,
            )
            what = f"seconds of run_train.py, {what}; to import Hydra; ratio: the first again"
            yield row(f"start_{id}", what, pairs, lambda ours, other: ours)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print a table."""
    typed = Parser("Commands that do not train").parse_args(arguments)
    report(starts(typed.repeats), typed.json)


if __name__ == "__main__":
    main()
