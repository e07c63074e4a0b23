"""Predictions beside torch's MemTracker: rows ``prediction_error_*`` and ``largest_in_4gib`` of
:mod:`benchmarks.memory`. No tensor in it has numbers, so the sizes cost nothing.

The largest GPT is looked for among those of heads of 64 channels, n_embed = 64 k and n_layer =
n_embed / 40, rounded: about what is usual (GPT-2 has 64 channels a layer at 768, 33 at 1600). Each
side has its own architecture: nanoGPT's is GPT-2's, without biases, ours what conf/model has in
common.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from benchmarks.nanogpt import network
from benchmarks.rows import Row, row
from benchmarks.tracked import drawn, tracked_peak
from llm.memory.fit import bisected
from llm.memory.options import ASSUMED_RESERVE_MIB
from llm.memory.predict import Setup, n_parameters, predict, training_step
from llm.model.config import GPTConfig

RESERVE = ASSUMED_RESERVE_MIB * 2**20  # for what is no tensor, on both sides
BUDGET = 4 * 2**30
BLOCK_SIZE, VOCAB_SIZE, HEAD_SIZE = 512, 50_304, 64
MOST = 64  # times HEAD_SIZE: wider than what fits by far


def errors() -> Iterator[Row]:
    """The prediction that is most too high, and the one most too low, of all that are drawn."""
    found = []
    for setup in drawn():
        predicted = max(sum(lines.values()) for lines in training_step(setup).values())
        found.append((predicted, tracked_peak(setup)))
    found.sort(key=lambda pair: pair[0] / pair[1])
    for id, pair, which in (("max", found[-1], "highest"), ("min", found[0], "lowest")):
        what = f"bytes predicted of a step; MemTracker's; ratio: the error, {which} of {len(found)}"
        yield row(f"prediction_error_{id}", what, [pair], lambda a, b: a / b - 1)


def n_layer(k: int) -> int:
    """Layers of the model of width 64 ``k``, on both sides."""
    return max(1, round(HEAD_SIZE * k / 40))


def ours(k: int, device: str = "cuda") -> Setup:
    """Our model of width 64 ``k``, with everything that saves memory."""
    model = GPTConfig(
        n_layer=n_layer(k), n_embed=HEAD_SIZE * k, head_size=HEAD_SIZE, block_size=BLOCK_SIZE,
        vocab_size=VOCAB_SIZE, loss="chunked",
    )  # fmt: skip
    return Setup(
        model.resolve(), state_bits=8, precision="bf16_weights", batch_size=1, micro_batch=1,
        activation_checkpointing="full", step_in_backward=True, device=device,
    )  # fmt: skip


class TheirStep:
    """nanoGPT's network of width 64 ``k`` and a step of its train.py in mixed precision, under
    MemTracker.
    """

    def __init__(self, clone: Path, k: int) -> None:
        with FakeTensorMode(allow_non_fake_inputs=True):
            self.model = network(
                clone, n_layer=n_layer(k), n_head=k, n_embd=HEAD_SIZE * k, block_size=BLOCK_SIZE,
                vocab_size=VOCAB_SIZE, bias=False,
            )  # fmt: skip
            self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
            self.peak = self.track()

    def track(self) -> int:
        """Bytes at the peak of two steps, the second of which has the optimizer's state."""
        model, cpu = self.model, torch.device("cpu")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        tokens = torch.zeros(1, BLOCK_SIZE, dtype=torch.long)
        tracker = MemTracker()
        tracker.track_external(model, optimizer, tokens)
        with tracker:
            for _ in range(2):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    _, loss = model(tokens, tokens)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                tracker.reset_mod_stats()
        return int(tracker.get_tracker_snapshot("peak")[cpu]["Total"])


def largest(clone: Path) -> Iterator[Row]:
    """Parameters of the largest model of each side whose step fits 4 GiB, and our prediction of
    its peak beside MemTracker's.
    """

    def fits(k: int) -> bool:
        return predict(ours(k), {"reserve": RESERVE}).total <= BUDGET

    def theirs_fits(k: int) -> bool:
        return TheirStep(clone, k).peak + RESERVE <= BUDGET

    k, their_k = bisected(fits, MOST), bisected(theirs_fits, MOST)
    theirs = TheirStep(clone, their_k)
    parameters = n_parameters(ours(k).model)
    what = (
        f"parameters of the largest GPT whose step fits 4 GiB less {RESERVE // 2**20} MiB, one "
        f"sequence of {BLOCK_SIZE}: {n_layer(k)} layers of {HEAD_SIZE * k}; nanoGPT's, in bf16 "
        f"autocast: {n_layer(their_k)} of {HEAD_SIZE * their_k}, {theirs.peak / 2**30:.2f} GiB"
    )
    pair = (float(parameters), float(theirs.parameters))
    yield row("largest_in_4gib", what, [pair], lambda a, b: a / b)
    predicted, tracked = predict(ours(k), {}), tracked_peak(ours(k, device="cpu"))
    what = (
        f"bytes predicted of its step ({predicted.total / 2**30:.2f} GiB with what CUDA cannot "
        "fill); MemTracker's"
    )
    yield row("largest_in_4gib_tracked", what, [(predicted.tensors, tracked)], lambda a, b: a / b)
