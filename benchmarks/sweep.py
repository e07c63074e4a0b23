"""The cost of a sweep around its training: python -m benchmarks.sweep [--only ID] [--repeats N]

Each row runs ``run_train.py -m`` as a user types it, with jobs of one step where training must not
count. ``other`` is what the time is compared with.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.rows import Pair, Parser, Row, alternate, report, row
from llm.experiment.rundir import read_summary, write_summary

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = ["-c", "import torch, wandb, hydra"]
HYDRA = ["-c", "import hydra, omegaconf"]
TINY = [
    "model.n_layer=1", "model.n_embed=32", "model.head_size=16", "model.block_size=16",
    "trainer.max_steps=1", "trainer.batch_size=4", "trainer.eval_batches=1", "trainer.device=cpu",
]  # fmt: skip
# Linux counts the memory of the parent into a child's peak, so a small process starts the command.
MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
JOBS, FINISHED = 4, 200
# 25 x 20 x 10 jobs, of 500 networks
GRID = ["model.n_layer=range(1,26)", "model.n_embed=range(32,672,32)", "seed=range(0,10)"]
TRAINED = ["model=nano", "logger=none", "trainer.max_steps=300", "trainer.eval_interval=300"]


def run(arguments: list[str], cwd: Path) -> tuple[float, float]:
    """Seconds of Python with these arguments, and its largest memory in MiB."""
    start = time.perf_counter()
    command = [sys.executable, "-c", MEASURE, sys.executable, *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}: {done.stderr[-2000:]}")
    return time.perf_counter() - start, int(done.stdout) / 2**10


def sweep(*typed: str, cwd: Path) -> tuple[float, float]:
    """The same of ``run_train.py -m``."""
    return run([str(ROOT / "run_train.py"), "-m", *typed], cwd)


def job_overhead(folder: Path, repeats: int) -> Iterator[Row]:
    """Seconds of a job of one step, beside the imports that every job needs."""

    def jobs(count: int, number: int) -> float:
        seeds = ",".join(map(str, range(count)))
        return sweep(*TINY, f"seed={seeds}", f"run.sweep=jobs-{count}-{number}", cwd=folder)[0]

    def one(number: int) -> float:
        # The command itself takes time, too: the difference is the time of the jobs alone.
        return (jobs(JOBS + 1, number) - jobs(1, number)) / JOBS

    pairs = alternate(one, lambda _: run(IMPORTS, folder)[0], repeats)
    what = "seconds of a job of one step; to import torch, wandb and hydra; ratio: the difference"
    yield row("job_overhead", what, pairs, lambda ours, other: ours - other)


def skip_200(folder: Path, repeats: int) -> Iterator[Row]:
    """Seconds of a command whose 200 jobs have all finished before."""
    first, seeds = folder / "multirun/skip/seed-0", f"seed=range(0,{FINISHED})"
    sweep(*TINY, "seed=range(0,1)", "run.sweep=skip", cwd=folder)
    make_finished(first, FINISHED)
    pairs = alternate(
        lambda _: sweep(*TINY, seeds, "run.sweep=skip", cwd=folder)[0],
        lambda _: run(HYDRA, folder)[0],
        repeats,
    )
    what = f"seconds to skip {FINISHED} finished jobs; to import Hydra; ratio: the first again"
    yield row("skip_200", what, pairs, lambda ours, other: ours)


def make_finished(first: Path, count: int) -> None:
    """Copy a finished job to the folders of other seeds, with the digests that they would have."""
    from llm.settings.identity import config_digest
    from llm.settings.saved import load_plain

    summary = read_summary(first) or {}
    config = (first / "config.yaml").read_text(encoding="utf-8")
    plain = load_plain(first)
    for seed in range(1, count):
        other = first.with_name(f"seed-{seed}")
        shutil.copytree(first, other, symlinks=True)
        (other / "config.yaml").write_text(
            config.replace("\nseed: 0\n", f"\nseed: {seed}\n"), encoding="utf-8"
        )
        digest = config_digest(plain | {"seed": seed}, summary["data_digest"])
        write_summary(other, **summary | {"config_digest": digest})


def preflight_5000(folder: Path, repeats: int) -> Iterator[Row]:
    """Seconds and memory of the plan of 5,000 jobs."""
    done: list[tuple[float, float]] = []

    def ours(_: int) -> float:
        done.append(sweep(*GRID, "run.dry_run=true", cwd=folder))
        return done[-1][0]

    pairs = alternate(ours, lambda _: run(HYDRA, folder)[0], repeats)
    what = "seconds to check and plan 5,000 jobs; to import Hydra; ratio: the first again"
    yield row("preflight_5000", what, pairs, lambda ours, other: ours)
    memory: list[Pair] = [(mib, run(HYDRA, folder)[1]) for _, mib in done]
    what = "MiB of that command at its peak; after importing Hydra; ratio: the first again"
    yield row("preflight_5000_mib", what, memory, lambda ours, other: ours)


def two_at_once(folder: Path, repeats: int) -> Iterator[Row]:
    """Two jobs together, of one thread each, against one after the other with two threads."""
    sweep(*TINY, "seed=0", "run.sweep=prepare", cwd=folder)  # the data

    def jobs(n_jobs: int, number: int) -> float:
        name = f"run.sweep=at-once-{n_jobs}-{number}"
        launcher = f"hydra.launcher.n_jobs={n_jobs}"
        return 2 * 3600 / sweep(*TRAINED, "seed=1,2", launcher, name, cwd=folder)[0]

    pairs = alternate(lambda n: jobs(2, n), lambda n: jobs(1, n), repeats)
    what = "jobs per hour of model=nano, two at once; one after the other"
    yield row("two_at_once", what, pairs, lambda ours, other: ours / other)


ROWS: dict[str, Callable[[Path, int], Iterator[Row]]] = {
    "job_overhead": job_overhead,
    "skip_200": skip_200,
    "preflight_5000": preflight_5000,
    "two_at_once": two_at_once,
}


def rows(only: list[str], repeats: int) -> Iterator[Row]:
    """The chosen rows, each in a new folder."""
    for id in only:
        with tempfile.TemporaryDirectory() as folder:
            yield from ROWS[id](Path(folder), repeats)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print a table."""
    typed = Parser("The cost of a sweep", list(ROWS)).parse_args(arguments)
    report(rows(typed.only, typed.repeats), typed.json)


if __name__ == "__main__":
    main()
