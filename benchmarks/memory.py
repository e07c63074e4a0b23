"""Memory: of a step beside nanoGPT's, beside its prediction, and the cost of saving it.

    python -m benchmarks.memory --nanogpt CLONE [--only ID,...] [--json FILE]

- ``step_memory``: peak bytes of a training step, ours over nanoGPT's; ``step_memory_speed`` beside
  it. Both train the same shape (model=small with GPT-2's 50,257 tokens) on the same random batch of
  12 sequences in float32, each with its own network and AdamW, in turn and each time in a fresh
  process; ours with ``tune_allocator`` and the update of run_train.py. Memory is the peak of the
  process less its memory before the network was built. Overrides such as
  trainer.activation_checkpointing=full apply to ours only; without them, these are also rows of
  :mod:`benchmarks.vs_nanogpt`. ``step_memory_all_levers``: with all settings that save memory.
- ``rss``, ``rss_smollm2``, ``compile_headroom``, ``oom_deaths``: real runs beside their prediction
  (:mod:`benchmarks.real_runs`).
- ``plan``: seconds of run_plan.py for one point and for a thousand.
- ``finetune``: what fits in 4 GiB when a network is fine-tuned, also as a table
  (:mod:`benchmarks.finetune`).
- ``levers_loss``, ``levers``, ``few_tokens``, ``auto_vs_best``: the cost of saving memory
  (:mod:`benchmarks.levers`).
- ``prediction_error``, ``largest_in_4gib``: predictions beside torch's MemTracker
  (:mod:`benchmarks.largest`).
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.rows import ALL_LEVERS, Parser, Row, alternate, clone_of_nanogpt, report, row

# The process that starts the others must stay small, because on Linux the peak of a child starts at
# the peak of its parent. So torch is imported only in `measure`, for both sides.

BATCH_SIZE, BLOCK_SIZE, VOCAB_SIZE, STEPS = 12, 128, 50_257, 4
# In the order of measuring: first rows that start processes, then rows that make tensors here.
IDS = [
    "step_memory", "step_memory_all_levers", "rss", "rss_smollm2", "compile_headroom",
    "oom_deaths", "plan", "finetune", "levers_loss", "levers", "few_tokens", "auto_vs_best",
    "prediction_error", "largest_in_4gib",
]  # fmt: skip
NEED_CLONE = ("step_memory", "step_memory_all_levers", "largest_in_4gib")


def build_ours(overrides: list[str]) -> Callable[[Any], None]:
    """Our training step on tokens (B, T), as in ``run_train.py model=small``."""
    import torch

    from llm.config.inside import compose_training
    from llm.settings.build import build
    from llm.training.options import CHECKPOINTED
    from llm.training.precision import Precision, resolve_precision, to_precision
    from llm.training.update import Update, UpdateInBackward

    settings = compose_training(
        "model=small", "data=shakespeare", "optimizer=adamw", "schedule=cosine",
        f"trainer.batch_size={BATCH_SIZE}", *overrides,
    )  # fmt: skip
    cpu = torch.device("cpu")
    precision = Precision(resolve_precision(settings.precision.name, cpu)[0], cpu)
    resolved = settings.resolve(VOCAB_SIZE, precision.name)
    resolved.model.vocab_size = VOCAB_SIZE  # nanoGPT's would be padded likewise
    trainer = resolved.trainer
    model = to_precision(build(resolved.model), precision.weights)
    model.checkpoint_every = CHECKPOINTED[trainer.activation_checkpointing]
    optimizer = build(resolved.optimizer, model=model)
    kind = UpdateInBackward if trainer.step_in_backward else Update
    update = kind(model, optimizer, precision, trainer.grad_clip)

    def step(tokens: Any) -> None:
        for part in tokens.split(trainer.micro_batch):
            with precision.autocast:
                loss = model(part, part, reduction="sum") / tokens.numel()
            update.backward(loss)
            del loss
        update.norm()
        update.step()
        update.drop()

    return step


def build_nanogpt(clone: Path) -> Callable[[Any], None]:
    """nanoGPT's training step, with its own optimizer."""
    import torch

    from benchmarks.nanogpt import network

    model = network(
        clone, n_layer=10, n_head=6, n_embd=768, block_size=BLOCK_SIZE, vocab_size=VOCAB_SIZE,
        bias=False,
    )  # fmt: skip
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")

    def step(tokens: Any) -> None:
        loss = model(tokens, tokens)[1]  # free its logits
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(which: str, clone: Path, overrides: list[str]) -> dict[str, float]:
    """Peak bytes above the start and tokens/s of some training steps, in this process."""
    import torch
    import torch._dynamo  # nanoGPT's optimizer imports it

    import benchmarks.nanogpt  # noqa: F401  (imports are not part of the memory of a step)
    import llm.config.compose
    import llm.model.gpt
    import llm.settings.build
    import llm.training.optimizer
    import llm.training.update  # noqa: F401  (as above)
    from llm.device import peak_memory_bytes, tune_allocator

    if "optimizer.state_bits=8" in overrides:
        import bitsandbytes.functional  # noqa: F401  (as above)
    if which == "ours":
        tune_allocator(768)  # as run_train.py does, before the first tensor
    before = peak_memory_bytes(torch.device("cpu"))
    step = build_ours(overrides) if which == "ours" else build_nanogpt(clone)
    tokens = torch.randint(VOCAB_SIZE, (BATCH_SIZE, BLOCK_SIZE))
    seconds = []
    # A CPU without bfloat16 instructions may take minutes for such a step; two show the peak.
    for _ in range(2 if "precision=bf16_weights" in overrides else STEPS):
        start = time.perf_counter()
        step(tokens)
        seconds.append(time.perf_counter() - start)
    peak = peak_memory_bytes(torch.device("cpu")) - before
    # Without the first step, which creates the state of the optimizer.
    return {"bytes": peak, "tokens_per_second": tokens.numel() / statistics.median(seconds[1:])}


def in_fresh_process(which: str, clone: Path, overrides: list[str]) -> dict[str, float]:
    """The result of :func:`measure` in a new process."""
    command = [sys.executable, "-m", "benchmarks.memory", "--nanogpt", str(clone), "--side", which]
    output = subprocess.run([*command, *overrides], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(output.stdout.splitlines()[-1])  # nanoGPT prints too
    return found


def compare(
    clone: Path, overrides: list[str], repeats: int, id: str = "step_memory"
) -> Iterator[Row]:
    """Peak bytes and tokens/s of both, measured in turn."""
    pairs = alternate(
        lambda _: in_fresh_process("ours", clone, overrides),
        lambda _: in_fresh_process("nanogpt", clone, overrides),
        repeats,
    )
    own = f" ({' '.join(overrides)})" if overrides else ""
    for suffix, what, key in (
        ("", f"peak bytes of a training step; ours{own} by nanoGPT's", "bytes"),
        ("_speed", "tokens/s of it", "tokens_per_second"),
    ):
        values = [(mine[key], theirs[key]) for mine, theirs in pairs]
        shape = f"model=small, {BATCH_SIZE} sequences: {what}"
        yield row(id + suffix, shape, values, lambda ours, other: ours / other)


def rows_of(id: str, typed: argparse.Namespace) -> Iterator[Row]:
    """The rows that ``id`` stands for."""
    if id == "step_memory":
        yield from compare(typed.nanogpt, typed.overrides, typed.repeats)
    elif id == "step_memory_all_levers":
        yield from compare(typed.nanogpt, ALL_LEVERS, typed.repeats, id)
    elif id in ("rss", "rss_smollm2", "compile_headroom", "oom_deaths"):
        from benchmarks import real_runs

        rows = {
            "rss": real_runs.resident,
            "rss_smollm2": real_runs.finetuned,
            "compile_headroom": real_runs.compiled,
        }
        if id == "oom_deaths":
            yield real_runs.deaths(typed.jobs)
        else:
            yield from rows[id](typed.repeats)
    elif id == "plan":
        from benchmarks.planning import plans

        yield from plans(typed.repeats)
    elif id == "finetune":
        from benchmarks import finetune

        yield from finetune.rows()
        print("\n".join(finetune.table()))
    elif id in ("prediction_error", "largest_in_4gib"):
        from benchmarks import largest

        yield from largest.errors() if id == "prediction_error" else largest.largest(typed.nanogpt)
    else:
        from benchmarks import levers

        if id == "levers_loss":
            yield from levers.losses(typed.repeats, typed.steps)
        elif id == "few_tokens":
            yield levers.few_tokens(typed.repeats)
        else:
            yield from {"levers": levers.costs, "auto_vs_best": levers.choices}[id](typed.repeats)


def main(arguments: list[str] | None = None) -> None:
    """Measure the selected rows and print a table."""
    parser = Parser(
        "Memory: beside nanoGPT's, beside its prediction, and the cost of saving it", IDS
    )
    parser.add_argument("--nanogpt", type=clone_of_nanogpt, metavar="CLONE", help="a clone of it")
    parser.add_argument("--jobs", type=int, default=30, help="runs of oom_deaths (30)")
    parser.add_argument("--steps", type=int, default=300, help="steps per run of levers_loss (300)")
    parser.add_argument(
        "--side", choices=["ours", "nanogpt"], help="measure one side, in this process"
    )
    parser.add_argument(
        "overrides", nargs="*", help="settings of ours in step_memory, as for run_train.py"
    )
    typed = parser.parse_args(arguments)
    needing = [id for id in NEED_CLONE if id in typed.only]
    if needing and typed.nanogpt is None:
        parser.error(f"{needing[0]} needs --nanogpt CLONE")
    if typed.side:
        print(json.dumps(measure(typed.side, typed.nanogpt, typed.overrides)))
    else:
        report((row for id in typed.only for row in rows_of(id, typed)), typed.json)


if __name__ == "__main__":
    main()
