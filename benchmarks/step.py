"""How near training comes to this machine's peak: python -m benchmarks.step [--json FILE]

Full training steps on the CPU in float32, from reading the batch (out of a memory-mapped file) to
clearing the gradients. A row has tokens/s, the FLOP/s of a matrix product, measured in turn, and as
``ratio`` the share of these FLOP/s that the step reaches.

The same steps beside nanoGPT's are measured here for :mod:`benchmarks.vs_nanogpt`.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.nanogpt import NanoGPT
from benchmarks.rows import Parser, Row, alternate, report, row, seconds_per_call
from benchmarks.training import Ours, Shape, Training, random_dataset
from llm.config.inside import compose_training
from llm.memory.weights import flops_per_token
from llm.training.throughput import measured_matmul_flops

ENDLESS = 1_000_000  # steps: no measurement reaches the end of the schedule
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
PRESETS = {  # model option: the data for its vocabulary, sequences per step
    "nano": ("shakespeare_char", 8),
    "tiny": ("shakespeare_char", 8),
    "small": ("shakespeare", 4),
}
IDS = ["peak_share", *(f"peak_share_{preset}" for preset in PRESETS)]


def ours(folder: Path, *overrides: str) -> Ours:
    """Our run, on random tokens."""
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
    """Our run of ``shape`` in nanoGPT's variant of GPT-2: no biases, exact GELU."""
    data = "tinyshakespeare_char" if shape.vocab_size == 65 else "shakespeare"
    return ours(
        folder,
        "model=gpt2",
        "model.bias=false",
        "model.mlp=gelu_exact",
        f"model.vocab_size={shape.vocab_size}",
        f"data={data}",  # only for its vocabulary, which must fit into the model's
        f"trainer.compile={str(compiled).lower()}",
        *shape.overrides(),
    )


def rate(training: Training, tokens: int, seconds: float) -> float:
    """Tokens per second of the median step in a slice of ``seconds``."""
    return tokens / seconds_per_call(training.step, seconds)


def against_nanogpt(
    id: str, size: str, nanogpt: Path, repeats: int, seconds: float, compiled: bool = False
) -> Row:
    """Tokens per second of both, slice by slice in turn, with GPT-2's architecture.

    ``compiled``: both sides are compiled, before the clock starts.
    """
    shape = SHAPES[size]
    with tempfile.TemporaryDirectory() as folder:
        mine = ours_as_gpt2(Path(folder), shape, compiled)
        theirs = NanoGPT(nanogpt, shape, Path(folder) / "train.bin", ENDLESS, compiled=compiled)
        for training in (mine, theirs):  # compile, create the optimizer's state, warm the caches
            for _ in range(4):
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
    """Tokens per second beside the FLOP/s of a matrix product; ``ratio`` is the share reached."""
    trainer = training.trainer
    flops = flops_per_token(training.model.config)
    training.step()
    pairs = alternate(
        lambda _: rate(training, trainer.batch_size * trainer.block_size, seconds),
        lambda _: measured_matmul_flops(),
        repeats,
    )
    what = f"tokens/s of {name}, {trainer.batch_size} x {trainer.block_size} tokens; matmul FLOP/s"
    return row(id, what, pairs, lambda rate, peak: rate * flops / peak)


def measure(id: str, repeats: int, seconds: float) -> Row:
    """The row called ``id``."""
    with tempfile.TemporaryDirectory() as folder:
        if id == "peak_share":
            training = ours_as_gpt2(Path(folder), SHAPES["124M"])
            return against_peak(id, "GPT-2", training, repeats, seconds)
        preset = id.removeprefix("peak_share_")
        data, batch_size = PRESETS[preset]
        training = ours(
            Path(folder), f"model={preset}", f"data={data}", f"trainer.batch_size={batch_size}"
        )
        return against_peak(id, f"model={preset}", training, repeats, seconds)


def main(arguments: list[str] | None = None) -> None:
    """Measure the selected rows and print a table."""
    parser = Parser("How near training comes to this machine's peak", IDS)
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="seconds for each side of a pair (4)"
    )
    typed = parser.parse_args(arguments)
    report((measure(id, typed.repeats, typed.seconds) for id in typed.only), typed.json)


if __name__ == "__main__":
    main()
