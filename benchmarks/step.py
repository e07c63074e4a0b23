"""Training speed on this machine: python -m benchmarks.step [--nanogpt DIR] [--json FILE]

Full training steps on the CPU in float32, from assembling the batch (out of a memory-mapped file)
to clearing the gradients. Two kinds of rows:

- ``step_*``: tokens/s of this project's loop and of nanoGPT's, both with GPT-2's architecture and
  the same shape; ``ratio`` is ours over nanoGPT's. Needs a clone of nanoGPT. ``step_compiled_*`` is
  the same with torch.compile on both sides, compiled before the clock starts; it takes minutes and
  is measured only with ``--all`` or by name.
- ``peak_share*``: tokens/s, the FLOP/s of a matrix product measured in turn with it, and as
  ``ratio`` the share of those FLOP/s that the step reaches.

Everything is measured in pairs, because other work on a machine disturbs both sides.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.nanogpt import NanoGPT
from benchmarks.rows import (
    Row,
    alternate,
    row,
    seconds_per_call,
    show,
    show_header,
    write_json,
)
from benchmarks.training import Ours, Shape, Training, random_dataset
from llm.config.compose import compose_training
from llm.training.throughput import flops_per_token, measured_matmul_flops

ENDLESS = 1_000_000  # steps: no measurement comes near, so the schedule is nowhere near its end
SHAPES = {
    "0.8M": Shape(
        n_layer=4, n_head=4, n_embed=128, block_size=64, batch_size=12, vocab_size=65
    ),  # the README's command for a CPU
    "10.7M": Shape(
        n_layer=6, n_head=6, n_embed=384, block_size=256, batch_size=8, vocab_size=65
    ),  # config/train_shakespeare_char.py with fewer sequences
    "124M": Shape(
        n_layer=12, n_head=12, n_embed=768, block_size=256, batch_size=2, vocab_size=50304
    ),  # GPT-2
}
PRESETS = {  # model option: the data whose vocabulary it has, sequences per step
    "nano": ("shakespeare_char", 8),
    "tiny": ("shakespeare_char", 8),
    "small": ("shakespeare", 4),
}
QUICK = [f"step_{size}" for size in SHAPES] + [f"peak_share_{preset}" for preset in PRESETS]
QUICK += ["peak_share"]
COMPILED = ["step_compiled_0.8M", "step_compiled_10.7M"]


def ours(folder: Path, *overrides: str) -> Ours:
    """A run over random tokens."""
    settings = compose_training(
        "optimizer=adamw",
        "schedule=cosine",
        *overrides,
        "trainer.device=cpu",
        f"trainer.max_steps={ENDLESS}",
    )
    vocab_size = settings.model.vocab_size or settings.data.declared_vocab_size() or 0
    settings = replace(settings, model=replace(settings.model, vocab_size=vocab_size))
    return Ours(settings, random_dataset(folder, vocab_size))


def ours_as_gpt2(folder: Path, shape: Shape, compiled: bool = False) -> Ours:
    """A run of ``shape`` in GPT-2's architecture as nanoGPT has it: no biases, exact GELU."""
    data = "tinyshakespeare_char" if shape.vocab_size == 65 else "shakespeare"
    return ours(
        folder,
        "model=gpt2",
        "model.bias=false",
        "model.mlp=gelu_exact",
        f"model.vocab_size={shape.vocab_size}",
        f"data={data}",  # only its vocabulary counts: it must fit into the model's
        f"trainer.compile={str(compiled).lower()}",
        *shape.overrides(),
    )


def rate(training: Training, tokens: int, seconds: float) -> float:
    """Tokens per second, by the median step of a slice of ``seconds``."""
    return tokens / seconds_per_call(training.step, seconds)


def against_nanogpt(
    id: str, shape: Shape, compiled: bool, nanogpt: Path, repeats: int, seconds: float
) -> Row:
    """Tokens per second of both, slice by slice in turn."""
    with tempfile.TemporaryDirectory() as folder:
        mine = ours_as_gpt2(Path(folder), shape, compiled)
        theirs = NanoGPT(nanogpt, shape, Path(folder) / "train.bin", ENDLESS, compiled=compiled)
        for training in (mine, theirs):  # compiles, fills the optimizer's state, warms caches
            training.step()
            training.step()
        pairs = alternate(
            lambda _: rate(mine, shape.tokens, seconds),
            lambda _: rate(theirs, shape.tokens, seconds),
            repeats,
        )
        what = (
            f"tokens/s, {'compiled' if compiled else 'eager'}, batches of {shape.batch_size} x "
            f"{shape.block_size} tokens; ours ({mine.n_parameters():,} parameters); nanoGPT "
            f"({theirs.n_parameters():,})"
        )
    if compiled:
        torch.compiler.reset()
    return row(id, what, pairs, lambda ours, other: ours / other)


def against_peak(id: str, name: str, training: Ours, repeats: int, seconds: float) -> Row:
    """Tokens per second and FLOP/s of a matrix product, in turn; the share of it as the ratio."""
    trainer = training.trainer
    flops = flops_per_token(training.model)
    training.step()
    pairs = alternate(
        lambda _: rate(training, trainer.batch_size * trainer.block_size, seconds),
        lambda _: measured_matmul_flops(),
        repeats,
    )
    what = f"tokens/s of {name}, {trainer.batch_size} x {trainer.block_size} tokens; matmul FLOP/s"
    return row(id, what, pairs, lambda rate, peak: rate * flops / peak)


def measure(id: str, nanogpt: Path | None, repeats: int, seconds: float) -> Row:
    """The row called ``id``."""
    kind, _, size = id.rpartition("_")
    if kind in ("step", "step_compiled"):
        assert nanogpt is not None
        compiled = kind == "step_compiled"
        return against_nanogpt(id, SHAPES[size], compiled, nanogpt, repeats, seconds)
    with tempfile.TemporaryDirectory() as folder:
        if id == "peak_share":
            training = ours_as_gpt2(Path(folder), SHAPES["124M"])
            return against_peak(id, "GPT-2", training, repeats, seconds)
        data, batch_size = PRESETS[size]
        training = ours(
            Path(folder), f"model={size}", f"data={data}", f"trainer.batch_size={batch_size}"
        )
        return against_peak(id, f"model={size}", training, repeats, seconds)


def main(arguments: list[str] | None = None) -> None:
    """Measure what was asked for and print a table."""
    parser = argparse.ArgumentParser(description="Training speed on this machine")
    parser.add_argument("--nanogpt", type=Path, metavar="DIR", help="a clone of nanoGPT")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    parser.add_argument("--repeats", type=int, default=3, help="pairs per row")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each half of a pair")
    parser.add_argument("--only", metavar="ID,...", help=", ".join(QUICK + COMPILED))
    parser.add_argument("--all", action="store_true", help="the compiled rows too")
    typed = parser.parse_args(arguments)
    ids = typed.only.split(",") if typed.only else QUICK + (COMPILED if typed.all else [])
    if unknown := [id for id in ids if id not in QUICK + COMPILED]:
        parser.error(f"--only {','.join(unknown)}: take from {', '.join(QUICK + COMPILED)}")
    if typed.nanogpt is None:
        ids = [id for id in ids if not id.startswith("step")]
        if not ids:
            parser.error("the step rows need --nanogpt DIR")
    rows = []
    show_header()
    for id in ids:
        rows.append(measure(id, typed.nanogpt, typed.repeats, typed.seconds))
        show(rows[-1])
        write_json(rows, typed.json)  # after each, so that an interruption leaves what there is


if __name__ == "__main__":
    main()
