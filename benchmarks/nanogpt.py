"""The other side of a comparison: nanoGPT (https://github.com/karpathy/nanoGPT), trained as its
``train.py`` does.

Network and optimizer are loaded from a clone (``--nanogpt CLONE``). Its loop is a script that
cannot be imported, so it is rewritten here, for one device, float32 and one micro-batch: random
batches, warm-up and cosine, clipping, AdamW, ``zero_grad(set_to_none=True)``.
"""

import contextlib
import functools
import importlib.util
import io
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.training import Shape

# From config/train_shakespeare_char.py and the defaults of train.py. Dropout is off, as in the
# README's command for a CPU.
LEARNING_RATE, MIN_LR, WARMUP_ITERS = 1e-3, 1e-4, 100
WEIGHT_DECAY, BETAS, GRAD_CLIP = 0.1, (0.9, 0.99), 1.0


@functools.cache
def load_model_module(directory: Path) -> Any:
    """``model.py`` of a clone, as a module.

    Raises ``FileNotFoundError`` if it does not exist.
    """
    path = directory / "model.py"
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # the compiler looks modules up by name
    spec.loader.exec_module(module)
    return module


def network(directory: Path, **shape: Any) -> Any:
    """Its ``GPT`` without dropout; drops the number of parameters that it prints."""
    module = load_model_module(directory)
    with contextlib.redirect_stdout(io.StringIO()):
        return module.GPT(module.GPTConfig(dropout=0.0, **shape))


def learning_rate(iteration: int, max_iters: int, warmup_iters: int) -> float:
    """``get_lr`` of train.py with ``lr_decay_iters = max_iters``; iterations count from 0."""
    if iteration < warmup_iters:
        return LEARNING_RATE * (iteration + 1) / (warmup_iters + 1)
    if iteration > max_iters:
        return MIN_LR
    decayed = (iteration - warmup_iters) / (max_iters - warmup_iters)
    return MIN_LR + 0.5 * (1 + math.cos(math.pi * decayed)) * (LEARNING_RATE - MIN_LR)


class NanoGPT:
    """One training run on the CPU, driven step by step."""

    def __init__(
        self,
        directory: Path,
        shape: Shape,
        train_file: Path,
        max_iters: int,
        seed: int = 1337,
        compiled: bool = False,
    ) -> None:
        self.shape, self.train_file, self.max_iters = shape, train_file, max_iters
        self.warmup_iters = min(WARMUP_ITERS, max_iters // 10)
        torch.manual_seed(seed)
        self.model = network(
            directory,
            n_layer=shape.n_layer,
            n_head=shape.n_head,
            n_embd=shape.n_embed,
            block_size=shape.block_size,
            vocab_size=shape.vocab_size,
            bias=False,
        )
        with contextlib.redirect_stdout(io.StringIO()):  # as in :func:`network`
            self.optimizer = self.model.configure_optimizers(
                WEIGHT_DECAY, LEARNING_RATE, BETAS, "cpu"
            )
        self.network = torch.compile(self.model) if compiled else self.model
        self.iteration = 0
        self.batch = self.get_batch()

    def get_batch(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) from random places."""
        # A new map for every batch, as in nanoGPT, which avoids a memory leak of numpy that way.
        data = np.memmap(self.train_file, dtype=np.uint16, mode="r")
        length = self.shape.block_size
        places = torch.randint(len(data) - length, (self.shape.batch_size,))
        x = torch.stack([torch.from_numpy(data[i : i + length].astype(np.int64)) for i in places])
        y = torch.stack(
            [torch.from_numpy(data[i + 1 : i + 1 + length].astype(np.int64)) for i in places]
        )
        return x, y

    def step(self) -> None:
        """One iteration; as in nanoGPT, it gets the next batch between forward and backward."""
        rate = learning_rate(self.iteration, self.max_iters, self.warmup_iters)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        _, loss = self.network(*self.batch)
        self.batch = self.get_batch()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRAD_CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.iteration += 1

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, vocab_size); without targets, nanoGPT returns only the last position."""
        self.model.eval()
        out: Tensor = self.model(tokens, tokens)[0]
        self.model.train()  # its loop does not do it at every step
        return out

    def n_parameters(self) -> int:
        """Number of weights, each counted once; includes the position embedding."""
        return sum(parameter.numel() for parameter in self.model.parameters())
