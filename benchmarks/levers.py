"""What saving memory costs: rows ``lever_*``, ``few_tokens``, ``auto_vs_best_*`` and
``levers_loss`` of :mod:`benchmarks.memory`.

Steps are real ones on random tokens, of models for which a step takes about a second on a CPU. What
is measured per token hardly depends on the size.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.held import trained
from benchmarks.rows import ALL_LEVERS, Row, alternate, row
from llm.device import tune_allocator
from llm.memory.fit import FEW_TOKENS, fit, levers
from llm.memory.predict import Setup, predict
from llm.model.config import CHECKPOINTED, GPTConfig
from llm.model.gpt import GPT
from llm.training import optimizer as optimizers
from llm.training.precision import Precision, to_precision
from llm.training.update import Update, UpdateInBackward

CPU = torch.device("cpu")
# Of model=small the shares of head and layers, at a sixth of its weights.
PLAIN = Setup(
    GPTConfig(
        n_layer=4, n_embed=512, head_size=128, block_size=128, vocab_size=12_800, loss="chunked"
    ).resolve()
)  # fmt: skip
FULL_LOSS = replace(PLAIN, model=replace(PLAIN.model, loss="full"))
LEVERS = {  # without and with
    "micro_batch": (PLAIN, replace(PLAIN, micro_batch=2)),
    "chunked": (FULL_LOSS, PLAIN),
    "every_2": (PLAIN, replace(PLAIN, activation_checkpointing="every_2")),
    "full": (PLAIN, replace(PLAIN, activation_checkpointing="full")),
    "in_backward": (PLAIN, replace(PLAIN, step_in_backward=True)),
    "state_bits": (PLAIN, replace(PLAIN, state_bits=8)),
    "bf16_weights": (PLAIN, replace(PLAIN, precision="bf16_weights")),
}
# Bytes are told as for a GPU, where no library takes from the budget.
SMALL = {
    "n_layer": 10, "n_embed": 768, "vocab_size": 50_304, "intermediate_size": None, "n_head": None,
}  # fmt: skip


class Step:
    """An optimizer step of a setup, as the trainer makes it; called, it tells its seconds."""

    def __init__(self, setup: Setup) -> None:
        torch.manual_seed(0)
        self.setup, config = setup, setup.model
        self.precision = Precision(setup.precision, CPU)
        self.model = to_precision(GPT(**asdict(config)), self.precision.weights)
        self.model.checkpoint_every = CHECKPOINTED[setup.activation_checkpointing]
        build = {"adamw": optimizers.adamw, "muon": optimizers.muon}[setup.optimizer]
        optimizer = build(self.model, 1e-3, 0.1, [0.9, 0.95], state_bits=setup.state_bits)
        kind = UpdateInBackward if setup.step_in_backward else Update
        self.update = kind(self.model, optimizer, self.precision, grad_clip=1.0)
        assert config.vocab_size
        self.tokens = torch.randint(config.vocab_size, (setup.batch_size, config.block_size))
        self()  # makes the optimizer's state

    def __call__(self) -> float:
        start = time.perf_counter()
        for part in self.tokens.split(self.setup.micro_batch):
            with self.precision.autocast:
                loss = self.model(part, part, reduction="sum") / self.tokens.numel()
            self.update.backward(loss)
            del loss
        self.update.norm().item()  # the trainer reads it too
        self.update.step()
        self.update.drop()
        return time.perf_counter() - start

    def fastest(self) -> float:
        """The shorter of two: whatever else runs can only make one longer."""
        return min(self(), self())


def costs(repeats: int) -> Iterator[Row]:
    """Each lever alone: time per step, and bytes predicted for model=small."""
    tune_allocator(PLAIN.model.n_embed)
    for name, (plain, saving) in LEVERS.items():
        yield _seconds(name, saving, plain, repeats)
        for tokens in (128, 512):
            what = f"predicted bytes of model=small, 8 x {tokens} tokens, with {name}; without"
            held = (predicted_of_small(saving, tokens), predicted_of_small(plain, tokens))
            yield row(f"lever_{name}_{tokens}", what, [held], lambda ours, other: ours / other)


def _seconds(name: str, saving: Setup, plain: Setup, repeats: int) -> Row:
    ours, other = Step(saving), Step(plain)
    seconds = [(ours.fastest(), other.fastest()) for _ in range(repeats)]
    what = f"seconds of a step with {name}; without ({described(plain)})"
    return row(f"lever_{name}", what, seconds, lambda ours, other: ours / other)


def predicted_of_small(setup: Setup, block_size: int) -> int:
    """Bytes that model=small takes when it is run as ``setup``."""
    shape = SMALL | {"block_size": block_size, "n_kv_head": None}
    model = replace(setup.model, **shape)  # type: ignore[arg-type]  # by name
    return predict(replace(setup, model=model.resolve(), device="cuda"), {}).total


def few_tokens(repeats: int) -> Row:
    """How many tokens cost as much as what a forward and backward pass does once, however few they
    are: ``a`` in 1 + a / tokens, fitted to whole steps in micro-batches of 1, 2, 4 and 8.
    """
    tune_allocator(PLAIN.model.n_embed)
    sizes = (1, 2, 4, 8)
    steps = [Step(replace(PLAIN, micro_batch=size)) for size in sizes]
    inverse = [1 / (size * PLAIN.model.block_size) for size in sizes]
    pairs = []
    for _ in range(repeats):
        slope, constant = np.polyfit(inverse, [step.fastest() for step in steps], 1)
        # What a step does once, the update, is in the constant with what each token costs.
        pairs.append((float(slope / constant), float(FEW_TOKENS)))
    what = "tokens that cost as much as a pass does once; as llm.memory.fit has it"
    return row("few_tokens", what, pairs, lambda ours, other: ours / other)


# What `auto` picks beside the best there is

CASES = {  # of each, most is taken by something else
    "activations": Setup(
        GPTConfig(n_layer=4, n_embed=256, block_size=256, vocab_size=257, head_size=64).resolve(),
    ),
    "logits": Setup(
        GPTConfig(
            n_layer=2, n_embed=128, block_size=128, vocab_size=12_800, head_size=32, loss="full"
        ).resolve(),
    ),
    "weights": Setup(
        GPTConfig(n_layer=4, n_embed=512, block_size=64, vocab_size=257, head_size=64).resolve(),
        batch_size=4, micro_batch=4,
    ),
}  # fmt: skip
OVER = 1.4  # the plain step takes so many times the budget


def fitting(setup: Setup, budget: int) -> list[Setup]:
    """Every way to run ``setup`` within ``budget`` bytes; in 8 bits only if none is without."""
    for bits in (setup.state_bits, 8):
        found = [
            one
            for lever in levers(replace(setup, state_bits=bits))
            for size in range(1, setup.batch_size + 1)
            if setup.batch_size % size == 0
            and (size == setup.batch_size or not lever.step_in_backward)
            and predict(one := replace(lever, micro_batch=size), {}).total <= budget
        ]
        if found:
            return found
    return []


def choices(repeats: int) -> Iterator[Row]:
    """Tokens/s of what memory.fit=auto picks beside the fastest of all that fits, found first."""
    for name, case in CASES.items():
        setup = replace(case, device="cuda")
        tune_allocator(setup.model.n_embed)
        budget = int(predict(setup, {}).total / OVER)
        picked = fit(setup, budget, {})
        every = fitting(setup, budget)
        assert picked is not None and picked.setup in every
        rates: dict[int, list[float]] = {number: [] for number in range(len(every))}
        tokens = setup.batch_size * setup.model.block_size
        for _ in range(repeats):
            for number, one in enumerate(every):
                rates[number].append(tokens / Step(one).fastest())
        medians = {number: float(np.median(found)) for number, found in rates.items()}
        best = max(medians, key=lambda n: medians[n])
        # Of many the fastest is also the luckiest: it is measured once more, in turn with ours.
        mine, theirs = Step(picked.setup), Step(every[best])
        seconds = alternate(
            lambda _, step=mine: step.fastest(), lambda _, step=theirs: step.fastest(), 3 * repeats
        )
        pairs = [(tokens / a, tokens / b) for a, b in seconds]
        what = (
            f"tokens/s with {' '.join(picked.changes)}; fastest of {len(every)} settings of "
            f"{picked.setup.state_bits} bits that fit {budget // 2**20} MiB, most being {name}: "
            f"{described(every[best])}"
        )
        yield row(f"auto_vs_best_{name}", what, pairs, lambda ours, other: ours / other)


def described(setup: Setup) -> str:
    """Shape and levers of a setup."""
    model = setup.model
    return (
        f"{model.n_layer} layers of {model.n_embed}, {model.vocab_size} tokens, batch "
        f"{setup.batch_size} x {model.block_size}, micro_batch={setup.micro_batch} "
        f"loss={model.loss} checkpointing={setup.activation_checkpointing} "
        f"in_backward={setup.step_in_backward}"
    )


# What saving memory does to the loss

# Half of nano each way: a CPU without bfloat16 instructions takes ten times as long in it.
TRAINING = [
    "model=nano", "model.n_layer=2", "model.n_embed=64", "model.block_size=64",
    "data=shakespeare_char", "optimizer=adamw", "logger=none", "trainer.device=cpu",
    "trainer.eval_interval=1000000", "trainer.checkpoint_interval=null",
]  # fmt: skip


CHANGING = {  # what does not give the same result up to rounding
    "levers_loss": ALL_LEVERS,
    "levers_loss_state_bits": ["optimizer.state_bits=8"],
    "levers_loss_bf16_weights": ["precision=bf16_weights"],
}


def losses(repeats: int, steps: int) -> Iterator[Row]:
    """The loss after some training with every lever at once, and with those alone that change the
    result, beside that in plain float32.
    """
    found: dict[str, list[float]] = {id: [] for id in ("plain", *CHANGING)}
    with tempfile.TemporaryDirectory() as name:
        for number in range(repeats):
            typed = [
                *TRAINING, f"trainer.max_steps={steps}", f"seed={1337 + number}",
                f"data.dir={Path(name) / 'data'}",
            ]  # fmt: skip
            for id, own in {"plain": [], **CHANGING}.items():
                found[id].append(trained([*typed, *own], Path(name))[1]["val_loss"])
    for id, own in CHANGING.items():
        what = (
            f"validation loss after {steps} steps (2 layers of 64) with {' '.join(own)}; with none"
        )
        pairs = list(zip(found[id], found["plain"], strict=True))
        yield row(id, what, pairs, lambda ours, other: ours / other)
