"""The panels before the first step and after the last."""

from pathlib import Path
from typing import Any

from llm.commands import command_line, for_shell
from llm.data.conversation_dataset import ConversationDataset
from llm.data.dataset import Dataset
from llm.device import describe
from llm.experiment.console import duration, panel, say
from llm.training.state import Progress
from llm.training.trainer import Trainer
from llm.units import format_bytes, minutes, plural


def show_start(
    folder: Path, trainer: Trainer, dataset: Dataset, precision: str, memory: str,
    note: str | None = None, init_from: str | None = None,
) -> None:  # fmt: skip
    """Device, precision and why, size, tokens per step, memory, data, run folder, note.

    ``init_from``: the name of the weights that training starts from, for a checkpoint with its
    step.
    """
    options, config = trainer.options, trainer.model.config
    tokens = options.batch_size * config.block_size
    micro_batches = options.batch_size // options.micro_batch
    length = f"{minutes(options.max_minutes or 0)} of training"
    if (steps := trainer.progress.last_step(options)) is not None:
        epochs = dataset.epochs(steps * options.batch_size, config.block_size)
        length = f"{plural(steps, 'step')} make {epochs:.2g} epochs"
    facts = {
        "device": describe(trainer.device),
        "precision": precision,
        "model": f"{trainer.model.n_parameters():,} parameters: {plural(config.n_layer, 'layer')}, "
        f"width {config.n_embed}, {plural(config.n_head or 0, 'head')} of {config.head_size}, "
        f"{config.vocab_size:,} tokens",
        "step": f"{tokens:,} tokens: {plural(options.batch_size, 'sequence')} of "
        f"{config.block_size}",
        "memory": memory,
        "data": f"{dataset.folder}: {len(dataset.train):,} training tokens, {length}",
        "run folder": str(folder),
    }
    weights = list(trainer.model.parameters())
    trained = sum(one.numel() for one in weights if one.requires_grad)
    if not all(one.requires_grad for one in weights):
        facts["trained"] = f"{trained:,} of the parameters"
        if trainer.checkpoints.finetune.has_adapters:
            facts["trained"] = f"{trained:,} parameters, of the adapters"
    if isinstance(dataset, ConversationDataset) and dataset.mix and dataset.general is not None:
        general = f"{len(dataset.general):,} tokens of general text"
        facts["mixed in"] = f"{100 * dataset.mix:.3g}% of the rows are from {general}"
    if init_from:
        facts["init_from"] = init_from
    if note:
        facts["note"] = note
    if flops := trainer.throughput.peak:
        facts["device"] += f", {flops / 1e12:.2f} TFLOP/s measured just now"
    if micro_batches > 1:
        facts["step"] += f" in {micro_batches} micro-batches"
    if options.overfit_batches:
        facts["data"] += f" (only {plural(options.overfit_batches, 'batch', 'batches')}, repeated)"
    if options.deterministic:
        facts["deterministic"] = "the same bits each time, on this machine with these versions"
    if trainer.progress.step:
        after = f"after step {trainer.progress.step:,}"
        if options.eval_only:
            facts["evaluates"] = f"the weights {after}"
        else:
            facts["continues"] = after
    panel("training", facts)


def show_end(
    folder: Path, progress: Progress, summary: dict[str, Any], is_chat: bool = False
) -> None:
    """Best loss, throughput, where the time went, where the files are, and what to type next.

    ``is_chat``: the run was trained on conversations.
    """
    other = summary["wall_seconds"] - progress.seconds
    facts = {}
    if reason := summary.get("reason"):
        facts["ended early"] = f"at step {progress.step:,}: {reason}"
    if progress.best_val_loss is not None:
        facts["best val loss"] = f"{progress.best_val_loss:.4f} at step {progress.best_step:,}"
        if (bits := summary["bits_per_byte"]) is not None:
            facts["best val loss"] += f" ({bits:.3f} bits per byte)"
    horizon = progress.horizon
    if horizon.max_steps and progress.step <= horizon.max_steps:
        used = f"{progress.train_seconds / 60:.2f} of {minutes(horizon.minutes or 0)} of training"
        facts["budget"] = f"{used}: {plural(progress.step, 'step')}"
    if progress.train_seconds:
        facts["throughput"] = f"{summary['tokens_per_second']:,.0f} tokens/s"
    if progress.skipped or progress.rollbacks:
        facts["divergence"] = (
            f"{plural(progress.skipped, 'step')} skipped, {plural(progress.rollbacks, 'rollback')}"
        )
    facts["peak memory"] = format_bytes(summary["peak_memory_bytes"])
    if reserved := summary.get("reserved_memory_bytes"):  # on CUDA, where the peak is of tensors
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
    # Below the box, so that each command can be copied as one line.
    if (folder / "wandb").is_dir():
        say(f"W&B:  wandb sync {for_shell([str(folder)])}/wandb")
    if (folder / "checkpoints").is_dir():
        typed = "chat=true" if is_chat else 'prompt="..."'
        say(f"next: {command_line('run_sample.py', f'ckpt={folder}')} {typed}")


def show_already_finished(folder: Path, reason: str | None, more: str) -> None:
    """Say that no step is left, and that the override ``more`` trains longer.

    ``reason`` names the option that ended the run early, if any.
    """
    again = command_line("run_train.py", f"resume={folder}", more)
    say(f"{folder} is finished already. To train on: {again}")
    if reason:
        say(f"(it ended early: {reason}. Raise that too)")
