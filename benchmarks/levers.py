"""The cost of saving memory: rows ``lever_*``, ``few_tokens``, ``auto_vs_best_*`` and
``levers_loss`` of :mod:`benchmarks.memory`. A lever is a setting that saves memory.

These are real steps on random tokens, of models for which a step takes about a second on a CPU; the
costs hardly depend on the size of the model.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.real_runs import trained
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
# Head and layers have the same shares as in model=small, with a sixth of its weights.
PLAIN = Setup(
    GPTConfig(
        n_layer=4, n_embed=512, head_size=128, block_size=128, vocab_size=12_800, loss="chunked"
    ).resolve()
)  # fmt: skip
FULL_LOSS = replace(PLAIN, model=replace(PLAIN.model, loss="full"))
LEVERS = {  # setups without and with the lever
    "micro_batch": (PLAIN, replace(PLAIN, micro_batch=2)),
    "chunked": (FULL_LOSS, PLAIN),
    "every_2": (PLAIN, replace(PLAIN, activation_checkpointing="every_2")),
    "full": (PLAIN, replace(PLAIN, activation_checkpointing="full")),
    "in_backward": (PLAIN, replace(PLAIN, step_in_backward=True)),
    "state_bits": (PLAIN, replace(PLAIN, state_bits=8)),
    "bf16_weights": (PLAIN, replace(PLAIN, precision="bf16_weights")),
}
# The shape of model=small. Its bytes are predicted for a GPU, without the memory of libraries.
SMALL = {
    "n_layer": 10, "n_embed": 768, "vocab_size": 50_304, "intermediate_size": None, "n_head": None,
}  # fmt: skip


class Step:
    """An optimizer step of a setup, as in the trainer; a call makes one and returns its seconds."""

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
        """Seconds of the faster of two: other work on the machine only slows a step down."""
        return min(self(), self())


def costs(repeats: int) -> Iterator[Row]:
    """For each lever alone: time per step, and predicted bytes of model=small."""
    tune_allocator(PLAIN.model.n_embed)
    for name, (plain, saving) in LEVERS.items():
        yield _seconds(name, saving, plain, repeats)
        for tokens in (128, 512):
            what = f"predicted bytes of model=small, 8 x {tokens} tokens, with {name}; without"
            pair = (predicted_of_small(saving, tokens), predicted_of_small(plain, tokens))
            yield row(f"lever_{name}_{tokens}", what, [pair], lambda ours, other: ours / other)


def _seconds(name: str, saving: Setup, plain: Setup, repeats: int) -> Row:
    ours, other = Step(saving), Step(plain)
    seconds = [(ours.fastest(), other.fastest()) for _ in range(repeats)]
    what = f"seconds of a step with {name}; without ({described(plain)})"
    return row(f"lever_{name}", what, seconds, lambda ours, other: ours / other)


def predicted_of_small(setup: Setup, block_size: int) -> int:
    """Predicted bytes of model=small with the levers of ``setup``."""
    shape = SMALL | {"block_size": block_size, "n_kv_head": None}
    model = replace(setup.model, **shape)  # type: ignore[arg-type]  # by name
    return predict(replace(setup, model=model.resolve(), device="cuda"), {}).total


def few_tokens(repeats: int) -> Row:
    """The fixed cost of a forward and backward pass, in tokens: ``a`` in 1 + a / tokens, fitted to
    whole steps in micro-batches of 1, 2, 4 and 8.
    """
    tune_allocator(PLAIN.model.n_embed)
    sizes = (1, 2, 4, 8)
    steps = [Step(replace(PLAIN, micro_batch=size)) for size in sizes]
    inverse = [1 / (size * PLAIN.model.block_size) for size in sizes]
    pairs = []
    for _ in range(repeats):
        slope, constant = np.polyfit(inverse, [step.fastest() for step in steps], 1)
        # The update, once per step, is in the constant together with the cost of the tokens.
        pairs.append((float(slope / constant), float(FEW_TOKENS)))
    what = "fixed cost of a pass, in tokens; the value in llm.memory.fit"
    return row("few_tokens", what, pairs, lambda ours, other: ours / other)


# The choice of memory.fit=auto beside the best one

CASES = {  # by what takes most of the memory
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
OVER = 1.4  # bytes of the plain step / budget


def fitting(setup: Setup, budget: int) -> list[Setup]:
    """Every way to run ``setup`` within ``budget`` bytes; with an 8-bit state only if needed."""
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
    """Tokens/s of the choice of memory.fit=auto beside the fastest of all setups that fit."""
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
        # The fastest of many was also lucky, so it is measured again, in turn with ours.
        mine, theirs = Step(picked.setup), Step(every[best])
        seconds = alternate(
            lambda _, step=mine: step.fastest(), lambda _, step=theirs: step.fastest(), 3 * repeats
        )
        pairs = [(tokens / a, tokens / b) for a, b in seconds]
        what = (
            f"tokens/s with {' '.join(picked.changes)}; fastest of {len(every)} settings of "
            f"{picked.setup.state_bits} bits that fit {budget // 2**20} MiB, mostly {name}: "
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


# The loss with levers

# Half of nano in depth and width: without bfloat16 instructions, a CPU is ten times slower in it.
TRAINING = [
    "model=nano", "model.n_layer=2", "model.n_embed=64", "model.block_size=64",
    "data=shakespeare_char", "optimizer=adamw", "logger=none", "trainer.device=cpu",
    "trainer.eval_interval=1000000", "trainer.checkpoint_interval=null",
]  # fmt: skip


CHANGING = {  # levers that change the result by more than rounding
    "levers_loss": ALL_LEVERS,
    "levers_loss_state_bits": ["optimizer.state_bits=8"],
    "levers_loss_bf16_weights": ["precision=bf16_weights"],
}


def losses(repeats: int, steps: int) -> Iterator[Row]:
    """The loss after some training with all levers, and with each lever that changes the result,
    beside the loss in plain float32.
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
