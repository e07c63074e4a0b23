"""This project beside nanoGPT (https://github.com/karpathy/nanoGPT), on the CPU in float32:

    python -m benchmarks.vs_nanogpt --nanogpt CLONE --data tinyshakespeare.txt [--json FILE]

- ``step_memory``: peak bytes of a training step, ours over nanoGPT's; ``step_memory_speed`` beside
  it (:mod:`benchmarks.memory`).
- ``time_to_loss``, ``loss_at_time``: our recipe beside nanoGPT's on ``--data``
  (:mod:`benchmarks.recipe`).
- ``step_*``: tokens/s of training, both with GPT-2's architecture and the same shape, ours over
  nanoGPT's (:mod:`benchmarks.step`). ``step_compiled_*`` is the same with torch.compile on both
  sides, which takes minutes; ``step_compiled`` repeats the row with the smaller ratio.
- ``decode_124M_nanogpt``: tokens/s of decoding, ours over nanoGPT's (:mod:`benchmarks.decoding`).
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks import memory
from benchmarks.rows import Parser, Row, clone_of_nanogpt, report

# In the order of measuring. step_memory comes before this process imports torch (benchmarks.memory
# says why), so functions import the modules that need torch.
RECIPE = ["time_to_loss", "loss_at_time"]
STEPS = ["step_0.8M", "step_10.7M", "step_124M"]
IDS = ["step_memory", *RECIPE, *STEPS, "step_compiled", "decode_124M_nanogpt"]


def measure(id: str, typed: argparse.Namespace) -> Iterator[Row]:
    """The rows of ``id``."""
    if id == "step_memory":
        yield from memory.compare(typed.nanogpt, [], typed.repeats)
    elif id in RECIPE:
        yield recipes(id, typed)
    elif id in STEPS:
        yield step(id, typed)
    elif id == "step_compiled":
        yield from compiled_steps(typed)
    else:
        from benchmarks import decoding

        yield decoding.against_nanogpt(id, typed.nanogpt, typed.repeats)


def recipes(id: str, typed: argparse.Namespace) -> Row:
    """Seconds to a loss, or the loss after some minutes."""
    from benchmarks import recipe

    experiment = [] if typed.experiment == "null" else [f"experiment={typed.experiment}"]
    overrides = [*experiment, *typed.overrides]
    time_to_loss = id == "time_to_loss"
    shape = recipe.README_CPU if time_to_loss else recipe.LARGER
    own = [recipe.NARROW, *overrides] if time_to_loss else overrides
    with tempfile.TemporaryDirectory() as folder:
        contest = recipe.Contest(shape, typed.nanogpt, typed.data, Path(folder), own)
        if time_to_loss:
            return recipe.time_to_loss(contest, typed.seeds, typed.steps, typed.nanogpt_steps)
        return recipe.loss_at_time(contest, typed.seeds, typed.minutes)


def step(id: str, typed: argparse.Namespace, compiled: bool = False) -> Row:
    """Tokens/s of training steps; ``id`` ends with the size."""
    from benchmarks.step import against_nanogpt

    size = id.rpartition("_")[2]
    return against_nanogpt(id, size, typed.nanogpt, typed.repeats, typed.seconds, compiled)


def compiled_steps(typed: argparse.Namespace) -> Iterator[Row]:
    """Compiled steps of two sizes, then the smaller ratio again as ``step_compiled``."""
    rows = []
    for size in ("0.8M", "10.7M"):
        rows.append(step(f"step_compiled_{size}", typed, compiled=True))
        yield rows[-1]
    yield replace(min(rows, key=lambda row: row.ratio), id="step_compiled")


def main(arguments: list[str] | None = None) -> None:
    """Measure the selected rows and print a table."""
    typed = parse(arguments)
    report((row for id in typed.only for row in measure(id, typed)), typed.json)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = Parser("This project beside nanoGPT on a CPU", IDS)
    parser.add_argument(
        "--nanogpt", type=clone_of_nanogpt, required=True, metavar="CLONE", help="a clone of it"
    )
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help=f"the text for {' and '.join(RECIPE)}"
    )
    parser.add_argument(
        "--seeds",
        type=integers,
        default=[1337, 1338, 1339],
        help="one pair of runs of the recipes for each",
    )
    parser.add_argument(
        "--experiment", default="fast", help="our recipe: conf/experiment/NAME, or null (fast)"
    )
    parser.add_argument("--steps", type=int, default=165, help="our steps in time_to_loss (165)")
    parser.add_argument(
        "--nanogpt-steps", type=int, default=2250, help="its steps in time_to_loss (2250)"
    )
    parser.add_argument("--minutes", type=float, default=3.0, help="minutes of loss_at_time (3)")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="seconds for each side of a pair of steps (4)"
    )
    parser.add_argument(
        "overrides", nargs="*", help="further settings of our recipe, as typed for run_train.py"
    )
    typed = parser.parse_args(arguments)
    needing = [id for id in RECIPE if id in typed.only]
    if needing and typed.data is None:
        parser.error(f"{needing[0]} needs --data FILE, the text of tiny Shakespeare")
    if typed.data and not typed.data.is_file():
        parser.error(f"--data {typed.data} is not a file")
    return typed


def integers(text: str) -> list[int]:
    """``1337,1338`` as numbers."""
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main()
