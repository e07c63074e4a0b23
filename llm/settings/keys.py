"""The keys of every command, and suggestions for a key that is unknown."""

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from llm.settings.custom import GROUPS
from llm.settings.schema import SETTINGS

# Other programs' names (mostly nanoGPT's) for our keys. A name that only lacks its section, such as
# n_layer, needs no entry.
ELSEWHERE = {
    "n_embd": "model.n_embed", "d_model": "model.n_embed", "hidden_size": "model.n_embed",
    "n_inner": "model.intermediate_size", "d_ff": "model.intermediate_size",
    "ffn_dim": "model.intermediate_size", "num_layers": "model.n_layer",
    "n_layers": "model.n_layer", "num_hidden_layers": "model.n_layer",
    "num_heads": "model.n_head", "n_heads": "model.n_head", "num_attention_heads": "model.n_head",
    "context_length": "model.block_size", "seq_len": "model.block_size",
    "sequence_length": "model.block_size", "max_seq_len": "model.block_size",
    "learning_rate": "optimizer.lr", "max_lr": "optimizer.lr", "beta1": "optimizer.betas",
    "beta2": "optimizer.betas", "min_lr": "schedule.min_lr_ratio",
    "warmup_iters": "schedule.warmup_steps", "decay_lr": "schedule",
    "lr_decay_iters": "trainer.max_steps", "max_iters": "trainer.max_steps",
    "num_iterations": "trainer.max_steps", "iters": "trainer.max_steps",
    "steps": "trainer.max_steps", "epochs": "trainer.max_steps", "num_epochs": "trainer.max_steps",
    "eval_iters": "trainer.eval_batches", "gradient_accumulation_steps": "trainer.micro_batch_size",
    "grad_accum_steps": "trainer.micro_batch_size", "device_batch_size": "trainer.micro_batch_size",
    "save_interval": "trainer.checkpoint_interval", "always_save_checkpoint": "trainer.keep_last",
    "dtype": "precision", "dataset": "data", "out_dir": "run.name", "output_dir": "run.name",
    "wandb_log": "logger.mode", "wandb_project": "logger.project", "wandb_run_name": "logger.name",
    "start": "prompt", "max_tokens": "max_new_tokens", "max_length": "max_new_tokens",
    "checkpoint": "ckpt", "data": "data_path", "load_from": "init_from",
    "n_jobs": "hydra.launcher.n_jobs",
}  # fmt: skip


def keys_of(section: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of a class of settings, and their types."""
    for field in fields(section):
        kind = next(iter(get_args(field.type)), field.type)  # the built-in section, not Custom
        if isinstance(kind, type) and is_dataclass(kind):
            yield from keys_of(kind, f"{prefix}{field.name}.")
        elif not field.name.startswith("_"):
            yield prefix + field.name, field.type


JSON = {"json": bool}  # of every command; it is taken off the command line before Hydra reads it
ALL_KEYS: dict[str, Any] = {key: kind for one in SETTINGS.values() for key, kind in keys_of(one)}
KEYS: dict[str, dict[str, Any]] = {
    command: dict(keys_of(settings)) | JSON for command, settings in SETTINGS.items()
}


def keys_here() -> dict[str, Any]:
    """The keys of the running command with their types; in any other program, all keys."""
    command = Path(sys.argv[0]).stem.removeprefix("run_")
    return KEYS.get(command, ALL_KEYS | JSON)


def is_key(key: str) -> bool:
    """Whether ``key`` is a key of this command, or the name of a section or group."""
    sections = {known.partition(".")[0] for known in keys_here()} | {"experiment", "sweep"}
    custom = key.startswith(tuple(f"{group}." for group in GROUPS))  # may have any keys
    return key in keys_here() or key in sections or custom or key.startswith("hydra")


def suggestion(key: str, siblings: Iterable[str] = ()) -> str:
    """The end of a sentence about an unknown ``key``: ``"; did you mean ...?"``, or nothing.

    ``siblings`` are the known keys of the same section.
    """
    if key in keys_here():
        return f"; +{key}=... passes it to a custom class"
    close = _close_keys(key, siblings)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def words_instead(key: str, value: str, siblings: Iterable[str] = ()) -> list[str]:
    """The words to suggest for ``key=value`` with an unknown key: ``model.n_layer=4``."""
    section, siblings = key.rpartition(".")[0], list(siblings)
    close = [key] if key in keys_here() else _close_keys(key, siblings)
    full = (f"{section}.{one}" if section and one in siblings else one for one in close)
    return [f"{one}={value}" for one in full]


def _close_keys(key: str, siblings: Iterable[str] = ()) -> list[str]:
    """The keys of this command that an unknown ``key`` may stand for, at most three; a sibling
    without its section.
    """
    word, known = key.rpartition(".")[2], keys_here()
    same = [name for name in known if name.rpartition(".")[2] == word]
    other = ELSEWHERE.get(word)
    is_launcher = str(other).startswith("hydra.") and "run.sweep" in known
    if other and (other in known or f"{other}.name" in known or is_launcher):
        same.append(other)
    same = same or get_close_matches(word, list(siblings), n=1)
    if not same:  # the word may be close to the last part of a key: n_layr to model.n_layer
        by_word = {name.rpartition(".")[2]: name for name in known}
        same = [by_word[close] for close in get_close_matches(word, by_word, n=1)]
    return same[:3]


def key_in(message: str) -> str | None:
    """The key or group that a message begins with: ``model.n_layer=0 must be at least 1``."""
    match = re.match(r"([\w.]+)([=: ])", message)
    if match is None or not (match[1] in keys_here() or (match[2] == "=" and is_key(match[1]))):
        return None
    return match[1]
