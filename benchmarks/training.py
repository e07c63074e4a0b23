"""Our side of a comparison: the project's own loop, stepped from outside and timed."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llm.data.batches import evaluation_batches, read_windows
from llm.data.dataset import Dataset
from llm.data.tokenizer import CharTokenizer
from llm.functional import IGNORED
from llm.settings.build import build
from llm.settings.schema import TrainSettings
from llm.training.precision import Precision, resolve_precision
from llm.training.trainer import Trainer

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Shape:
    """The shape of a network and its batches, the same for both sides of a comparison."""

    n_layer: int
    n_head: int
    n_embed: int
    block_size: int
    batch_size: int  # sequences per optimizer step
    vocab_size: int

    @property
    def tokens(self) -> int:
        """Tokens per optimizer step."""
        return self.batch_size * self.block_size

    def overrides(self) -> list[str]:
        """Overrides for ``run_train.py``, without the vocabulary."""
        return [
            f"model.n_layer={self.n_layer}",
            f"model.n_head={self.n_head}",
            f"model.n_embed={self.n_embed}",
            "model.head_size=null",
            f"model.block_size={self.block_size}",
            f"trainer.batch_size={self.batch_size}",
            "trainer.micro_batch_size=null",
            "trainer.device=cpu",
        ]


class Training(Protocol):
    """A run that is driven step by step, on either side."""

    def step(self) -> None:
        """One optimizer step, from reading the batch to clearing the gradients."""

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, vocab_size), without dropout."""

    def n_parameters(self) -> int:
        """Number of weights, each counted once."""


class Ours:
    """A run as in ``run_train.py``, on the CPU and without a folder or a logger."""

    trainer: Trainer

    def __init__(self, settings: TrainSettings, dataset: Dataset) -> None:
        precision, _ = resolve_precision(settings.precision.name, CPU)
        settings = settings.resolve(dataset.tokenizer.vocab_size, precision)
        torch.manual_seed(settings.seed)
        self.model = build(settings.model)
        self.trainer = build(
            settings.trainer,
            model=self.model,
            dataset=dataset,
            optimizer=build(settings.optimizer, model=self.model),
            schedule=build(settings.schedule),
            precision=Precision(precision, CPU),
            checkpoints=SimpleNamespace(finetune=settings.finetune),  # a step saves nothing
            logger=SimpleNamespace(warn=lambda message, kind="": None, run_id="benchmark"),
            seed=settings.seed,
        )

    def step(self) -> None:
        progress = self.trainer.progress
        self.trainer.optimizer_step(progress.step + 1)
        progress.step += 1

    def logits(self, tokens: Tensor) -> Tensor:
        self.model.eval()
        out: Tensor = self.model(tokens)
        return out

    def n_parameters(self) -> int:
        return int(self.model.n_parameters())


def train(training: Training, steps: int, seconds: float = math.inf) -> tuple[float, int]:
    """Make ``steps`` steps, or fewer if ``seconds`` run out; returns seconds and steps."""
    spent, done = 0.0, 0
    while done < steps and spent < seconds:
        start = time.perf_counter()
        training.step()
        spent += time.perf_counter() - start
        done += 1
    return spent, done


@torch.no_grad()
def validation_loss(training: Training, tokens: np.ndarray, block_size: int) -> float:
    """Mean cross-entropy (nats per token) over the whole split, in windows of ``block_size``.

    From logits, so that both sides have the same loss, whatever their own one is.
    """
    total, count = 0.0, 0
    for starts in evaluation_batches(tokens, block_size, batch_size=64, sequences=None):
        inputs, targets = (
            torch.from_numpy(part) for part in read_windows(tokens, starts, block_size)
        )
        logits = training.logits(inputs).flatten(0, 1)
        losses = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")
        total += float(losses)
        count += int((targets != IGNORED).sum())
    return total / count


def random_dataset(folder: Path, vocab_size: int, tokens: int = 1_000_000) -> Dataset:
    """A memory-mapped ``train.bin`` of random tokens, which do for measuring speed."""
    path = folder / "train.bin"
    ids = np.random.default_rng(0).integers(0, vocab_size, tokens, dtype=np.uint16)
    ids.tofile(path)
    mapped = np.memmap(path, dtype=np.uint16, mode="r")
    alphabet = CharTokenizer("".join(chr(0x10000 + i) for i in range(vocab_size)))
    return Dataset(folder, mapped, mapped, alphabet, digest="", bytes_per_token=1.0)


@contextlib.contextmanager
def cold_compiler(compiled: bool) -> Iterator[None]:
    """Without earlier results of the compiler: the runs inside compile for themselves.

    The compiler is imported first, so that its import is not timed.
    """
    if not compiled:
        yield
        return
    from torch._inductor.utils import fresh_cache

    torch.compiler.reset()
    with fresh_cache():
        yield
