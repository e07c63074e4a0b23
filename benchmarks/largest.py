"""Predictions beside torch's MemTracker: rows ``prediction_error_*`` and ``largest_in_4gib`` of
:mod:`benchmarks.memory`. All tensors are fake ones without data, so large sizes cost nothing.

The largest GPT is searched among those with heads of 64 channels, n_embed = 64 k and n_layer =
n_embed / 40, rounded: about the usual shape (GPT-2 has 64 channels per layer at 768, 33 at 1600).
To the widest one, layers are added while it fits, because a step of k is coarse. Each side has its
own architecture: nanoGPT has GPT-2's without biases, ours the defaults of conf/model.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.nanogpt import network
from benchmarks.rows import Row, row
from benchmarks.tracked import drawn, memory_tracker, tracked_peak
from llm.memory.fit import bisected
from llm.memory.options import ASSUMED_RESERVE_MIB
from llm.memory.predict import Setup, predict, training_step
from llm.memory.weights import n_parameters
from llm.model.config import GPTConfig

RESERVE = ASSUMED_RESERVE_MIB * 2**20  # memory outside tensors, on both sides
BUDGET = 4 * 2**30
BLOCK_SIZE, VOCAB_SIZE, HEAD_SIZE = 512, 50_304, 64
MOST = 64  # of k; far too wide to fit


def errors() -> Iterator[Row]:
    """The predictions that are furthest too high and too low, of all random setups."""
    found = []
    for setup in drawn():
        predicted = max(sum(lines.values()) for lines in training_step(setup).values())
        found.append((predicted, tracked_peak(setup)))
    found.sort(key=lambda pair: pair[0] / pair[1])
    for id, pair, which in (("max", found[-1], "highest"), ("min", found[0], "lowest")):
        what = f"bytes predicted of a step; MemTracker's; ratio: the error, {which} of {len(found)}"
        yield row(f"prediction_error_{id}", what, [pair], lambda a, b: a / b - 1)


@dataclass(frozen=True)
class Size:
    """A size that both sides can have."""

    k: int
    further: int = 0  # additional layers

    @property
    def n_embed(self) -> int:
        """Channels."""
        return HEAD_SIZE * self.k

    @property
    def n_layer(self) -> int:
        """Layers."""
        return max(1, round(self.n_embed / 40)) + self.further

    def __str__(self) -> str:
        return f"{self.n_layer} layers of {self.n_embed}"


def ours(size: Size, device: str = "cuda") -> Setup:
    """Our model of that size, with all settings that save memory."""
    model = GPTConfig(
        n_layer=size.n_layer, n_embed=size.n_embed, head_size=HEAD_SIZE, block_size=BLOCK_SIZE,
        vocab_size=VOCAB_SIZE, loss="chunked",
    )  # fmt: skip
    return Setup(
        model.resolve(), state_bits=8, precision="bf16_weights", batch_size=1, micro_batch=1,
        activation_checkpointing="full", step_in_backward=True, device=device,
    )  # fmt: skip


class TheirStep:
    """nanoGPT's network of that size, and a step of its train.py in mixed precision."""

    def __init__(self, clone: Path, size: Size) -> None:
        with FakeTensorMode(allow_non_fake_inputs=True):
            self.model = network(
                clone, n_layer=size.n_layer, n_head=size.k, n_embd=size.n_embed,
                block_size=BLOCK_SIZE, vocab_size=VOCAB_SIZE, bias=False,
            )  # fmt: skip
            self.parameters = sum(parameter.numel() for parameter in self.model.parameters())

    def fits(self) -> bool:
        """Whether a step fits. Tracking is slow, so it is skipped where weights, gradients and
        AdamW's means alone are too large.
        """
        room = BUDGET - RESERVE
        return 16 * self.parameters <= room and self.peak() <= room

    def peak(self) -> int:
        """Peak bytes, as MemTracker counts them."""
        with FakeTensorMode(allow_non_fake_inputs=True):
            return self.track()

    def track(self) -> int:
        """Peak bytes of two steps; in the second, the optimizer has its state."""
        model, cpu = self.model, torch.device("cpu")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        tokens = torch.zeros(1, BLOCK_SIZE, dtype=torch.long)
        tracker = memory_tracker()
        tracker.track_external(model, optimizer, tokens)
        with tracker:
            for _ in range(2):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    _, loss = model(tokens, tokens)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        return int(tracker.get_tracker_snapshot("peak")[cpu]["Total"])


def largest_of(fits: Callable[[Size], bool]) -> Size:
    """The widest size that fits, then the deepest of its width."""
    k = bisected(lambda k: fits(Size(k)), MOST)
    return Size(k, bisected(lambda further: fits(Size(k, further)), MOST))


def largest(clone: Path) -> Iterator[Row]:
    """Parameters of each side's largest model whose step fits 4 GiB; the predicted peak of ours
    beside MemTracker's.
    """
    size = largest_of(lambda size: predict(ours(size), {"reserve": RESERVE}).total <= BUDGET)
    their_size = largest_of(lambda size: TheirStep(clone, size).fits())
    theirs = TheirStep(clone, their_size)
    what = (
        f"parameters of the largest GPT whose step fits 4 GiB less {RESERVE // 2**20} MiB, one "
        f"sequence of {BLOCK_SIZE}: {size}; nanoGPT's, in bf16 autocast: {their_size}, "
        f"{theirs.peak() / 2**30:.2f} GiB"
    )
    pair = (float(n_parameters(ours(size).model)), float(theirs.parameters))
    yield row("largest_in_4gib", what, [pair], lambda a, b: a / b)
    predicted, tracked = predict(ours(size), {}), tracked_peak(ours(size, device="cpu"))
    what = (
        f"bytes predicted of its step ({predicted.total / 2**30:.2f} GiB with what CUDA cannot "
        "fill); MemTracker's"
    )
    yield row("largest_in_4gib_tracked", what, [(predicted.tensors, tracked)], lambda a, b: a / b)
