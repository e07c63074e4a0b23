"""The peak memory of a training step, an evaluation and a sample, by torch's MemTracker."""

import contextlib
import random
import unittest.mock
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from llm.functional import linear as products
from llm.functional import loss as losses
from llm.memory.predict import Setup
from llm.memory.weights import ALL
from llm.model.config import CHECKPOINTED, LOSSES, MLPS, NORMS, POSITIONS, GPTConfig
from llm.model.finetune import TARGETS, FinetuneOptions
from llm.model.gpt import GPT
from llm.model.lora import adapt
from llm.sampling.generate import generate
from llm.sampling.options import SamplingOptions
from llm.training import optimizer as optimizers
from llm.training.precision import Precision, to_precision
from llm.training.update import Update, UpdateInBackward

COUNT, FINETUNED, PACKED, CHOSEN = 40, 28, 4, 4
CPU = torch.device("cpu")
# All options that change memory. Each value is used as often as the others.
MODEL = {
    "n_layer": (1, 1, 2, 2, 4, 9),
    "n_embed": (128, 256, 768),
    "head_size": (32, 64),
    "block_size": (64, 128, 256),
    "vocab_size": (96, 512, 5_000, 20_000),
    "n_kv_head": (None, None, 1, 2),
    "dropout": (0.0, 0.0, 0.1),
    "bias": (False, True),
    "norm": NORMS,
    "mlp": MLPS,
    "position": POSITIONS,
    "qk_norm": (False, True),
    "tie_embeddings": (True, False),
    "loss": LOSSES,
    "residual_scalars": (False, False, True),
    "smear": (0, 0, 3),
}
RUN = {
    "optimizer": ("adamw", "muon"),
    "state_bits": (32, 8),
    "precision": ("fp32", "bf16", "fp16", "bf16_weights"),
    "micro_batch": (1, 2, 4, 8),
    "activation_checkpointing": tuple(CHECKPOINTED),
    "step_in_backward": (False, False, True),
}
METHODS = tuple(
    FinetuneOptions(name, rank, targets=list(targets), dropout=dropout, freeze=list(freeze))
    for name, rank, targets, dropout, freeze in (
        ("lora", 4, TARGETS, 0, ()), ("lora", 16, ("q", "v", "down"), 0, ()),
        ("dora", 8, TARGETS, 0, ()), ("lora", 8, ("o", "up", "down"), 0.1, ()),
        ("qlora", 4, TARGETS, 0, ()), ("head", 8, (), 0, ()),
        ("full", 8, (), 0, ("embed", "blocks.0")),
    )
)  # fmt: skip
PART = RUN | {"finetune": METHODS, "optimizer": ("adamw",)}
PATTERNS = PART | {"finetune": tuple(
    FinetuneOptions(name, targets=["blocks.[02]", "q"]) for name in ("lora", "qlora")
)}  # fmt: skip


def drawn() -> list[Setup]:
    """``COUNT`` random setups that train all weights, ``FINETUNED`` that train a part,
    ``PACKED`` with several documents in a row, and ``CHOSEN`` with adapters in some layers.
    """
    packed = [replace(setup, documents=True) for setup in _drawn(PART, PACKED, 2027)]
    return [
        *_drawn(RUN, COUNT, 2024),
        *_drawn(PART, FINETUNED, 2026),
        *packed,
        *_drawn(PATTERNS, CHOSEN, 2028),
    ]


def _drawn(options: Mapping[str, tuple[object, ...]], count: int, seed: int) -> list[Setup]:
    """Random setups in which all values of an option are used equally often."""
    generator = random.Random(seed)

    def columns(options: Mapping[str, tuple[object, ...]]) -> list[dict[str, object]]:
        found: dict[str, list[object]] = {}
        for name, values in options.items():
            column = [values[n % len(values)] for n in range(count)]
            generator.shuffle(column)
            found[name] = column
        return [{name: found[name][n] for name in options} for n in range(count)]

    setups = []
    for shape, run in zip(columns(MODEL), columns(options), strict=True):
        heads = int(str(shape["n_embed"])) // int(str(shape["head_size"]))
        if shape["n_kv_head"] and heads % int(str(shape["n_kv_head"])):
            shape["n_kv_head"] = None
        times = 1 if run["step_in_backward"] else generator.choice((1, 1, 2))
        config = GPTConfig(**shape).resolve()  # type: ignore[arg-type]  # by name
        batch = times * int(str(run["micro_batch"]))
        setups.append(Setup(config, batch_size=batch, **run))  # type: ignore[arg-type]  # by name
    return setups


def tracked_peak(setup: Setup) -> int:
    """Peak bytes of an optimizer step with the real network, optimizer and update."""
    with _fake_tensors(setup):
        model, precision, optimizer = _built(setup)
        model.checkpoint_every = CHECKPOINTED[setup.activation_checkpointing]
        kind = UpdateInBackward if setup.step_in_backward else Update
        update = kind(model, optimizer, precision, grad_clip=1.0)
        tokens, tracker = _tracked(setup, model, optimizer)
        documents = tokens if setup.documents else None
        with tracker, warnings.catch_warnings():
            # MemTracker reads each gradient after the backward pass has used and freed it.
            warnings.filterwarnings("ignore", "Expected a tensor or a traceable wrapper")
            for _ in range(setup.batch_size // setup.micro_batch):
                with precision.autocast:
                    loss = model(tokens, tokens, documents, "sum") / tokens.numel()
                update.backward(loss)
                del loss
            update.norm()
            update.step()
            update.drop()
    return _peak(tracker)


def tracked_evaluation(setup: Setup) -> int:
    """Peak bytes of an evaluation between two steps."""
    with _fake_tensors(setup):
        model, precision, optimizer = _built(setup)
        tokens, tracker = _tracked(setup, model.eval(), optimizer)
        documents = tokens if setup.documents else None
        with tracker, torch.no_grad(), precision.autocast:
            model(tokens, tokens, documents, "sum")
    return _peak(tracker)


def tracked_sample(setup: Setup) -> int:
    """Peak bytes of a text that outgrows the window; its tensors are real ones."""
    model, _, optimizer = _built(setup)
    _, tracker = _tracked(setup, model.eval(), optimizer)
    assert setup.model.vocab_size
    options = SamplingOptions(max_new_tokens=setup.model.block_size + 2)
    with tracker:
        for _ in generate(model, [0], options, 1, setup.model.vocab_size):
            pass
    return _peak(tracker)


@contextlib.contextmanager
def _fake_tensors(setup: Setup) -> Iterator[None]:
    """Tensors without values, which oneDNN's products refuse.

    All targets count; with documents their rows are copied all the same, as for conversations, in
    which only answers count.
    """
    rows = torch.arange(setup.micro_batch * setup.model.block_size) if setup.documents else None
    counted = unittest.mock.patch.object(losses, "counted_rows", lambda targets: rows)
    by_mkl = unittest.mock.patch.object(products, "has_slow_mkl", lambda: False)
    with FakeTensorMode(allow_non_fake_inputs=True), counted, by_mkl:
        yield


def _built(setup: Setup) -> tuple[GPT, Precision, optimizers.Optimizer]:
    model, precision = GPT(**asdict(setup.model)), Precision(setup.precision, CPU)
    if setup.precision == "fp16":  # a fake tensor has no scale to read
        precision.scaler = torch.amp.GradScaler("cpu", enabled=False)
    if setup.finetune != ALL:
        adapt(model, setup.finetune)
    to_precision(model, precision.weights)
    build = {"adamw": optimizers.adamw, "muon": optimizers.muon}[setup.optimizer]
    return model, precision, build(model, 1e-3, 0.1, [0.9, 0.95], state_bits=setup.state_bits)


def _tracked(
    setup: Setup, model: GPT, optimizer: optimizers.Optimizer
) -> tuple[torch.Tensor, MemTracker]:
    """Tokens, and a tracker that counts them, the weights and the state of the optimizer."""
    tokens = torch.zeros(setup.micro_batch, setup.model.block_size, dtype=torch.long)
    tracker = memory_tracker()
    # The state exists from the second step on.
    states = [tensor for p in optimizer.group_of for tensor in optimizer.state_of(p).values()]
    tracker.track_external(model, tokens, *states)
    return tokens, tracker


def _peak(tracker: MemTracker) -> int:
    return int(tracker.get_tracker_snapshot("peak")[CPU]["Total"])


def memory_tracker() -> MemTracker:
    """A MemTracker without accounts per module: their hooks keep gradients that torch frees."""
    tracker = MemTracker()
    tracker._mod_tracker = _NoModules()
    return tracker


class _NoModules(contextlib.nullcontext[None]):
    """Replaces torch's ModTracker."""

    def register_user_hooks(self, *hooks: object) -> None:
        """Register no hook."""

    clear_user_hooks = register_user_hooks
    is_bw = False
