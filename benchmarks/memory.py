"""Memory: what a step takes beside nanoGPT's, whether predictions of it hold, what saving costs.

    python -m benchmarks.memory --nanogpt CLONE [--only ID,...] [--json FILE]

- ``step_memory``: peak bytes of a training step, ours over nanoGPT's; ``step_memory_speed`` beside
  it. Both train the same shape (model=small with GPT-2's 50,257 tokens) on the same random batch of
  12 sequences in float32, each with its own network and AdamW, in turn and each time in a fresh
  process; ours with ``tune_allocator`` and the update of run_train.py. Memory is what that process
  held at most, less what it held before the network was built. Settings to try, such as
  trainer.activation_checkpointing=full, count for ours only; without any, these are rows of
  :mod:`benchmarks.vs_nanogpt` too. ``step_memory_all_levers``: with all that saves memory.
- ``rss``, ``compile_headroom``, ``oom_deaths``: real runs held to their prediction
  (:mod:`benchmarks.held`).
- ``plan``: seconds of run_plan.py for one point and for a thousand.
- ``levers_loss``, ``levers``, ``few_tokens``, ``auto_vs_best``: what saving memory costs
  (:mod:`benchmarks.levers`).
- ``prediction_error``, ``largest_in_4gib``: predictions beside torch's MemTracker
  (:mod:`benchmarks.largest`).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.rows import Parser, Row, alternate, clone_of_nanogpt, report, row

# The process that starts the others must stay small: on Linux a child's peak starts at its
# parent's, so nothing imports torch before `measure`, and what both sides need is imported there.

BATCH_SIZE, BLOCK_SIZE, VOCAB_SIZE, STEPS = 12, 128, 50_257, 4


def build_ours(overrides: list[str]) -> tuple[Any, Any]:
    """Our network and optimizer, as ``run_train.py model=small`` builds them."""
    from llm.config.build import build
    from llm.config.compose import compose_training
    from llm.config.settings import resolve
    from llm.training.options import CHECKPOINTED

    settings = compose_training(
        "model=small", "data=shakespeare", "optimizer=adamw", "schedule=cosine", *overrides
    )
    model_settings = resolve(settings, VOCAB_SIZE, "fp32").model
    model_settings.vocab_size = VOCAB_SIZE  # nanoGPT's would be padded likewise
    model = build(model_settings)
    model.checkpoint_every = CHECKPOINTED[settings.trainer.activation_checkpointing]
    return model, build(settings.optimizer, model=model)


def build_nanogpt(clone: Path) -> tuple[Any, Any]:
    """The same shape of nanoGPT, with its own optimizer."""
    from benchmarks.nanogpt import network

    model = network(
        clone, n_layer=10, n_head=6, n_embd=768, block_size=BLOCK_SIZE, vocab_size=VOCAB_SIZE,
        bias=False,
    )  # fmt: skip
    return model, model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")


def measure(which: str, clone: Path, overrides: list[str]) -> dict[str, float]:
    """Peak bytes above the start and tokens/s of some training steps, in this process."""
    import torch
    import torch._dynamo  # else the first optimizer imports it

    import benchmarks.nanogpt  # noqa: F401  (nor is what it imports)
    import llm.config.build
    import llm.config.compose
    import llm.config.settings
    import llm.model.gpt
    import llm.training.optimizer  # noqa: F401  (all of these: not part of what a step takes)
    from llm.device import peak_memory_bytes, tune_allocator

    if which == "ours":
        tune_allocator(768)  # as run_train.py does, before the first tensor
    before = peak_memory_bytes(torch.device("cpu"))
    model, optimizer = build_ours(overrides) if which == "ours" else build_nanogpt(clone)
    tokens = torch.randint(VOCAB_SIZE, (BATCH_SIZE, BLOCK_SIZE))
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        found = model(tokens, tokens)
        loss = found[1] if isinstance(found, tuple) else found  # nanoGPT returns its logits too
        del found
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    peak = peak_memory_bytes(torch.device("cpu")) - before
    # The first step makes the optimizer's state.
    return {"bytes": peak, "tokens_per_second": tokens.numel() / statistics.median(seconds[1:])}


def in_fresh_process(which: str, clone: Path, overrides: list[str]) -> dict[str, float]:
    """What :func:`measure` finds in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "--nanogpt", str(clone), "--side", which]
    output = subprocess.run([*command, *overrides], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(output.stdout.splitlines()[-1])  # nanoGPT prints too
    return found


def compare(clone: Path, overrides: list[str], repeats: int) -> list[Row]:
    """Peak bytes and tokens/s of both, measured in turn."""
    pairs = alternate(
        lambda _: in_fresh_process("ours", clone, overrides),
        lambda _: in_fresh_process("nanogpt", clone, overrides),
        repeats,
    )
    rows = []
    for id, what, key in (
        ("step_memory", "peak bytes of a training step; ours by nanoGPT's", "bytes"),
        ("step_memory_speed", "tokens/s of it", "tokens_per_second"),
    ):
        values = [(mine[key], theirs[key]) for mine, theirs in pairs]
        shape = f"model=small, {BATCH_SIZE} sequences, float32: {what}"
        rows.append(row(id, shape, values, lambda ours, other: ours / other))
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure both in turn and print a table."""
    parser = Parser("Memory of a training step beside nanoGPT's")
    parser.add_argument(
        "--nanogpt", type=clone_of_nanogpt, required=True, metavar="CLONE", help="a clone of it"
    )
    parser.add_argument("--side", choices=["ours", "nanogpt"], help="measure one, in this process")
    parser.add_argument("overrides", nargs="*", help="settings of ours, as for run_train.py")
    typed = parser.parse_args(arguments)
    if typed.side:
        print(json.dumps(measure(typed.side, typed.nanogpt, typed.overrides)))
    else:
        report(compare(typed.nanogpt, typed.overrides, typed.repeats), typed.json)


if __name__ == "__main__":
    main()
