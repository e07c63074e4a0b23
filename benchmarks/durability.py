"""The cost of durable checkpoints: python -m benchmarks.durability [--json FILE]

The time of a save of ``model=nano``, the default model, beside the time of the steps between two
saves, and beside a plain torch.save of the same tensors. Then the time from the start of a command
to its first step: of a new run, and of a run resumed from a checkpoint.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.rows import Parser, Row, alternate, report, row, seconds_per_call
from benchmarks.training import Ours, random_dataset, train
from llm.checkpoint.folder import CheckpointFolder
from llm.config.inside import compose_training

ROOT = Path(__file__).resolve().parent.parent
IDENTITY = {"config_digest": "c" * 64, "data_digest": "d" * 64}
CPU = torch.device("cpu")
# Little work apart from the first step.
QUICK = [
    "data=text", "data.tokenizer=byte", "model.block_size=64", "trainer.batch_size=1",
    "trainer.eval_interval=1000", "trainer.eval_batches=1", "trainer.log_interval=1",
    "logger=none", "trainer.device=cpu",
]  # fmt: skip


def measure_saves(folder: Path, repeats: int) -> Iterator[Row]:
    """Saves beside steps, and beside plain saves."""
    settings = compose_training()
    ours = Ours(settings, random_dataset(folder, vocab_size=257))
    model, interval = ours.model, settings.trainer.checkpoint_interval
    assert interval is not None
    train(ours, 3)  # creates the state of the optimizer
    run = CheckpointFolder(folder, 2, model.config, ours.trainer.dataset.tokenizer, IDENTITY)
    tensors = ours.trainer.state_dict()["tensors"]
    saved = 0

    def durable() -> None:
        nonlocal saved
        saved += 1
        run.save(saved, model.state_dict(), tensors, {})
        run.save_best(saved, model.state_dict(), {})

    def plain() -> None:
        torch.save({"model": model.state_dict(), "training": tensors}, folder / "plain.pt")

    pairs = alternate(
        lambda _: seconds_per_call(durable, 1.0), lambda _: train(ours, interval)[0], repeats
    )
    what = f"seconds to save a checkpoint and the best; of the {interval} steps between two saves"
    yield row("durability_cost", what, pairs, lambda ours, other: ours / other)
    pairs = alternate(
        lambda _: seconds_per_call(durable, 1.0), lambda _: seconds_per_call(plain, 1.0), repeats
    )
    what = "seconds to save a checkpoint and the best; of one torch.save, no digest, no sync"
    yield row("durability_of_save", what, pairs, lambda ours, other: ours / other)


def seconds_to_first_step(cwd: Path, *options: str) -> float:
    """Seconds from the start of a command to its first new row of metrics; then it is stopped."""
    metrics = cwd / "outputs" / "run" / "metrics.jsonl"
    before = metrics.stat().st_size if metrics.exists() else 0
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run_train.py"), *options, "run.name=run"],
        cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    # A new run first writes the row of the evaluation at step 0.
    wanted = 1 if before else 2
    try:
        while not metrics.exists() or metrics.read_bytes()[before:].count(b"\n") < wanted:
            if process.poll() is not None:
                raise RuntimeError(f"run_train.py ended with status {process.returncode}")
            time.sleep(0.005)
        return time.perf_counter() - start
    finally:
        process.terminate()  # it saves a checkpoint, which the next run resumes
        process.wait()


def measure_starts(folder: Path, model: str, repeats: int) -> Iterator[Row]:
    """The start of a resumed run beside that of a new one."""
    text = folder / "text.txt"
    text.write_text("So it goes on, and on.\n" * 20_000, encoding="utf-8")
    options = [*QUICK, f"data.path={text}", f"data.dir={folder / 'data'}", f"model={model}"]
    last = folder / "warm-up"
    last.mkdir()
    seconds_to_first_step(last, *options)  # prepares the data, too

    def new(number: int) -> float:
        nonlocal last
        last = folder / f"{model}-{number}"
        last.mkdir()
        return seconds_to_first_step(last, *options)

    pairs = alternate(lambda _: seconds_to_first_step(last, *options), new, repeats)
    what = f"seconds to the first step of a resumed run, model={model}; of a new one"
    yield row(f"resume_start_{model}", what, pairs, lambda ours, other: ours - other)


def measure(typed: argparse.Namespace) -> Iterator[Row]:
    """Saves, then starts of each model."""
    with tempfile.TemporaryDirectory(dir=typed.dir) as name:
        yield from measure_saves(Path(name), typed.repeats)
        for model in typed.models.split(","):
            place = Path(name) / f"starts-{model}"
            place.mkdir()
            yield from measure_starts(place, model, typed.repeats)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print a table."""
    parser = Parser("Saving and resuming, beside training", repeats=5)
    parser.add_argument(
        "--models", default="nano,small", help="models to start and resume (nano,small)"
    )
    parser.add_argument("--dir", type=Path, help="a folder on the disk to measure (/tmp)")
    typed = parser.parse_args(arguments)
    report(measure(typed), typed.json)


if __name__ == "__main__":
    main()
