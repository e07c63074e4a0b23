"""What is shown before the first step and after the last."""

from pathlib import Path
from typing import Any, Protocol

import torch

from llm.commands import command_line, for_shell
from llm.data.dataset import Dataset
from llm.device import describe
from llm.experiment.console import duration, panel, say
from llm.model.gpt import GPT
from llm.training.options import TrainerOptions
from llm.training.state import Progress
from llm.training.throughput import Throughput
from llm.units import format_bytes


class Started(Protocol):
    """The parts of a trainer that the first panel tells about."""

    model: GPT
    options: TrainerOptions
    progress: Progress
    device: torch.device
    throughput: Throughput


def show_start(
    folder: Path, trainer: Started, dataset: Dataset, precision: str, memory: str
) -> None:  # fmt: skip
    """Device, precision and why, size, tokens per step, memory, data, run folder."""
    options, config = trainer.options, trainer.model.config
    tokens = options.batch_size * config.block_size
    cut = options.batch_size // options.micro_batch
    overfits = options.overfit_batches > 0
    epochs = options.max_steps * tokens / max(1, len(dataset.train))
    flops = trainer.throughput.peak
    peak = f", {flops / 1e12:.2f} TFLOP/s measured just now" if flops else ""
    facts = {
        "device": describe(trainer.device) + peak,
        "precision": precision,
        "model": f"{trainer.model.n_parameters():,} parameters: "
        f"{config.n_layer} layers, width {config.n_embed}, "
        f"{config.n_head} heads of {config.head_size}, {config.vocab_size:,} tokens",
        "step": f"{tokens:,} tokens: {options.batch_size} sequences of {config.block_size}"
        + (f" in {cut} micro-batches" if cut > 1 else ""),
        "memory": memory,
        "data": f"{dataset.folder}: {len(dataset.train):,} tokens to train on, "
        f"{options.max_steps:,} steps are {epochs:.2g} epochs"
        + (f" (only {options.overfit_batches} batches, over and over)" * overfits),
        "run folder": str(folder),
    }
    if options.deterministic:
        facts["promise"] = "the same bits each time, on this machine with these versions"
    if trainer.progress.step:
        after = f"after step {trainer.progress.step:,}"
        if options.eval_only:
            facts["evaluates"] = f"the weights {after}"
        else:
            facts["continues"] = after
    panel("training", facts)


def show_end(folder: Path, progress: Progress, summary: dict[str, Any]) -> None:
    """Best loss, throughput, where the time went, where things are, and what to type next."""
    other = summary["wall_seconds"] - progress.seconds
    facts = {}
    if reason := summary.get("reason"):
        facts["ended early"] = f"at step {progress.step:,}: {reason}"
    if progress.best_val_loss is not None:
        facts["best val loss"] = f"{progress.best_val_loss:.4f} at step {progress.best_step:,}"
        if (bits := summary["bits_per_byte"]) is not None:
            facts["best val loss"] += f" ({bits:.3f} bits per byte)"
    if progress.train_seconds:
        facts["throughput"] = f"{summary['tokens_per_second']:,.0f} tokens/s"
    if progress.skipped or progress.rollbacks:
        facts["divergence"] = (
            f"{progress.skipped:,} steps left out, {progress.rollbacks} times back"
        )
    facts["peak memory"] = format_bytes(summary["peak_memory_bytes"])
    if reserved := summary.get("reserved_memory_bytes"):  # CUDA: only tensors have been counted
        facts["peak memory"] += f" of tensors, {format_bytes(reserved)} reserved for them"
    if predicted := summary.get("predicted_memory_bytes"):
        in_all = " in all" if reserved else ""
        facts["peak memory"] += f", predicted {format_bytes(predicted)}{in_all}"
    facts["wall time"] = (
        f"{duration(summary['wall_seconds'])}: training {duration(progress.train_seconds)}, "
        f"evaluation {duration(progress.eval_seconds)}, "
        f"checkpoints {duration(progress.checkpoint_seconds)}, "
        f"start and end {duration(max(0.0, other))}"
    )
    facts["run folder"] = str(folder)
    panel("finished", facts)
    # Below the box and in one piece, to be copied.
    if (folder / "wandb").is_dir():
        say(f"W&B:  wandb sync {for_shell([str(folder)])}/wandb/*run-*")
    if (folder / "checkpoints").is_dir():
        say(f'next: {command_line("run_sample.py", f"ckpt={folder}")} prompt="..."')


def show_already_finished(folder: Path, reason: str | None) -> None:
    """Nothing is left to do. ``reason``: which option ended it before its last step, if any."""
    again = command_line("run_train.py", f"resume={folder}", "trainer.max_steps=MORE")
    say(f"{folder} is finished already. To train on: {again}")
    if reason:
        say(f"(it ended early: {reason}. Raise that too)")
