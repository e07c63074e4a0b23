"""Our recipe against nanoGPT's on tiny Shakespeare, on the CPU, for :mod:`benchmarks.vs_nanogpt`.

- ``time_to_loss``: seconds of training to a mean loss of 1.88 over all seeds, at the shape of
  nanoGPT's README command for a CPU. The user says how many steps each side needs for it
  (``--steps``, ``--nanogpt-steps``); the schedules have that length, and the final losses are
  printed. ``ratio`` is nanoGPT's seconds over ours.
- ``loss_at_time``: the loss after ``--minutes`` of training, each side with a schedule as long as
  the steps that it makes in this time. ``ratio`` is nanoGPT's loss minus ours.

The loss is measured with the final weights on the whole validation split (the last tenth of the
characters), in the same windows for both. The seconds include batches and, for a recipe that
compiles, compilation without a cache; they exclude imports and evaluation.
"""

import math
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.nanogpt import NanoGPT
from benchmarks.rows import Row, alternate, row
from benchmarks.training import Ours, Shape, Training, cold_compiler, train, validation_loss
from llm.config.inside import compose_training
from llm.data.dataset import Dataset
from llm.data.prepare import prepare
from llm.settings.schema import TrainSettings

DATA = ["data=tinyshakespeare_char"]
README_CPU = Shape(n_layer=4, n_head=4, n_embed=128, block_size=64, batch_size=12, vocab_size=65)
# This width of a gated MLP gives ours at most the 804,096 parameters of nanoGPT.
NARROW = "model.intermediate_size=336"
LARGER = Shape(n_layer=6, n_head=4, n_embed=256, block_size=128, batch_size=16, vocab_size=65)
TARGET = 1.88  # in nanoGPT's README, for its CPU command
ENDLESS = 1_000_000  # steps; such a run is stopped long before
# Schedules fill this share of the minutes, so that a slow second does not cut off their end.
SHARE_OF_MINUTES = 0.98


@dataclass(frozen=True)
class Result:
    """The result of one run."""

    seconds: float  # of training
    steps: int
    loss: float  # of the final weights, nats per character
    parameters: int


class Contest:
    """Both sides on the same data at the same shape."""

    def __init__(
        self, shape: Shape, nanogpt: Path, text: Path, folder: Path, overrides: list[str]
    ) -> None:
        self.nanogpt, self.overrides = nanogpt, [*DATA, *overrides, *shape.overrides()]
        data = replace(compose_training(*self.overrides).data, path=str(text), dir=str(folder))
        self.dataset = Dataset.open(prepare(data))
        self.shape = replace(shape, vocab_size=self.dataset.tokenizer.vocab_size)

    def settings(self, seed: int, steps: int) -> TrainSettings:
        """The settings of our run."""
        return compose_training(*self.overrides, f"seed={seed}", f"trainer.max_steps={steps}")

    def ours(self, seed: int, steps: int, seconds: float = math.inf) -> Result:
        """Train ours for ``steps``, or until ``seconds`` are over."""
        settings = self.settings(seed, steps)
        with cold_compiler(settings.trainer.compile):
            training = Ours(settings, self.dataset)
            return self.result(training, steps, seconds)

    def theirs(self, seed: int, steps: int, seconds: float = math.inf) -> Result:
        """Train nanoGPT for ``steps``, or until ``seconds`` are over."""
        training = NanoGPT(
            self.nanogpt, self.shape, self.dataset.folder / "train.bin", max_iters=steps, seed=seed
        )
        return self.result(training, steps, seconds)

    def result(self, training: Training, steps: int, seconds: float) -> Result:
        """Train, then evaluate."""
        spent, done = train(training, steps, seconds)
        loss = validation_loss(training, self.dataset.val, self.shape.block_size)
        return Result(spent, done, loss, training.n_parameters())


def time_to_loss(contest: Contest, seeds: list[int], steps: int, nanogpt_steps: int) -> Row:
    """Seconds of training of each recipe for its number of steps."""
    ours, theirs = Results("ours"), Results("nanoGPT")
    pairs = alternate(
        lambda i: ours.keep(seeds[i], contest.ours(seeds[i], steps)).seconds,
        lambda i: theirs.keep(seeds[i], contest.theirs(seeds[i], nanogpt_steps)).seconds,
        len(seeds),
    )
    what = f"seconds of training for a mean loss of {TARGET}; {ours}; {theirs}"
    return row("time_to_loss", what, pairs, lambda ours, other: other / ours)


def loss_at_time(contest: Contest, seeds: list[int], minutes: float) -> Row:
    """Loss of each recipe after the same minutes.

    The length of the schedule is measured right before each run, because the speed of a shared
    machine changes from minute to minute.
    """
    seconds = 60 * minutes
    probe = min(20.0, seconds / 5)
    ours, theirs = Results("ours"), Results("nanoGPT")

    def run_ours(i: int) -> float:
        settings = contest.settings(seeds[i], ENDLESS)
        with cold_compiler(settings.trainer.compile):
            steps = fitting_steps(Ours(settings, contest.dataset), probe, seconds)
        return ours.keep(seeds[i], contest.ours(seeds[i], steps, seconds)).loss

    def run_theirs(i: int) -> float:
        file = contest.dataset.folder / "train.bin"
        timed = NanoGPT(contest.nanogpt, contest.shape, file, max_iters=ENDLESS)
        steps = fitting_steps(timed, probe, seconds)
        return theirs.keep(seeds[i], contest.theirs(seeds[i], steps, seconds)).loss

    pairs = alternate(run_ours, run_theirs, len(seeds))
    what = f"loss after {minutes:g} minutes; {ours}; {theirs}"
    return row("loss_at_time", what, pairs, lambda ours, other: other - ours, statistics.fmean)


def fitting_steps(training: Training, probe: float, seconds: float) -> int:
    """How many steps fit into ``seconds``, extrapolated from ``probe`` seconds.

    The first step is timed apart, because it compiles.
    """
    first, _ = train(training, steps=1)
    spent, done = train(training, ENDLESS, probe)
    return max(1, int((SHARE_OF_MINUTES * seconds - first) * done / spent))


class Results:
    """The results of one side."""

    def __init__(self, side: str) -> None:
        self.side = side
        self.results: list[Result] = []

    def keep(self, seed: int, result: Result) -> Result:
        """Add and print a result."""
        self.results.append(result)
        print(
            f"  {self.side}, seed {seed}: loss {result.loss:.4f} after {result.steps} steps in "
            f"{result.seconds:.2f} s",
            flush=True,
        )
        return result

    def __str__(self) -> str:
        mean = {
            key: statistics.fmean(getattr(result, key) for result in self.results)
            for key in ("loss", "steps", "seconds", "parameters")
        }
        return (
            f"{self.side}: mean loss {mean['loss']:.4f} after {mean['steps']:.0f} steps in "
            f"{mean['seconds']:.1f} s, {mean['parameters']:,.0f} parameters"
        )
