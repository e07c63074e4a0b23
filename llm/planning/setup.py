"""Convert the settings of a run to a :class:`Setup`, and a changed one back, without torch."""

from dataclasses import astuple, replace
from functools import cache
from typing import Any

from llm.data.config import WITH_TEMPLATE, DataConfig
from llm.data.meta import read_meta
from llm.errors import Refused
from llm.memory.fit import Fitted
from llm.memory.predict import Setup
from llm.memory.weights import for_memory, n_trained, names_of
from llm.planning.custom_optimizer import optimizer_state
from llm.settings.custom import Custom, state_bits
from llm.settings.schema import Optimizer, TrainSettings


def setup_of(settings: TrainSettings, device: str) -> Setup:
    """The setup of a run on ``device`` (a torch device type).

    Raises :class:`llm.errors.Refused` if the vocabulary is unknown before the text is read.
    """
    vocab_size = vocabulary(settings)
    if vocab_size is None:
        raise Refused(
            "data.vocab_size is unknown before the text is read: give data.vocab_size=N, or "
            "prepare the data first"
        )
    cuda, precision = device == "cuda", settings.precision.name
    if precision == "auto":
        precision = "bf16" if cuda else "fp32"  # GPUs since 2020 have bfloat16
    resolved = settings.resolve(vocab_size, precision)
    trainer, optimizer = resolved.trainer, resolved.optimizer
    finetune = for_memory(resolved.finetune)
    if finetune.has_adapters or finetune.frozen:
        finetune.check_names(names_of(resolved.model))
    if not n_trained(resolved.model, finetune):
        key = "targets" if finetune.has_adapters else "freeze"
        names = ", ".join(finetune.target_names if finetune.has_adapters else finetune.frozen)
        raise Refused(f"finetune.{key}={names} leaves nothing to train")
    return Setup(
        model=resolved.model,
        optimizer=optimizer.option if isinstance(optimizer, Custom) else optimizer.name,
        custom=optimizer_state(optimizer, resolved.model, cuda),
        state_bits=state_bits(optimizer),
        precision=precision,
        batch_size=trainer.batch_size,
        micro_batch=trainer.micro_batch,
        activation_checkpointing=trainer.activation_checkpointing,
        step_in_backward=trainer.step_in_backward,
        compile=trainer.compile,
        device="cuda" if cuda else "cpu",
        samples=trainer.sample_interval is not None,
        eval_only=trainer.eval_only,
        saves_memory=saves_memory(settings),
        finetune=finetune,
        documents=resolved.data.corpus in WITH_TEMPLATE,
        reads_whole=settings.init_from is not None and _reads_whole(settings.init_from),
    )


def apply_changes(settings: TrainSettings, fitted: Fitted) -> TrainSettings:
    """``settings`` with the changes that make the run fit."""
    setup, optimizer = fitted.setup, settings.optimizer
    if isinstance(optimizer, Optimizer):
        optimizer = replace(optimizer, state_bits=setup.state_bits)
    trainer = replace(
        settings.trainer,
        micro_batch_size=setup.micro_batch,
        activation_checkpointing=setup.activation_checkpointing,
        step_in_backward=setup.step_in_backward,
    )
    model = replace(settings.model, loss=setup.model.loss)
    return replace(settings, model=model, optimizer=optimizer, trainer=trainer)


def saves_memory(settings: TrainSettings) -> bool:
    """Whether :func:`llm.device.tune_allocator` also maps smaller tensors, which costs some speed
    in narrow networks. Without it the heap has large gaps after the two backward passes of
    ``step_in_backward``, after files of weights are read, and around the keys and values of few
    heads, as other people's networks have them. Adapters take their tensors from the heap all the
    same, because the speed is worth the gaps, unless activation checkpointing asks for memory.
    """
    trainer, has_adapters = settings.trainer, settings.finetune.has_adapters
    is_checkpointed = trainer.activation_checkpointing != "none"
    reads_weights = settings.init_from is not None
    return (
        settings.memory.is_enforced or trainer.step_in_backward
        or (is_checkpointed if has_adapters else reads_weights)
    )  # fmt: skip


@cache
def _reads_whole(place: str) -> bool:
    from llm.interchange.source import open_source

    return open_source("init_from", place).kind in ("checkpoint", "peft")


def vocabulary(settings: TrainSettings) -> int | None:
    """The vocabulary's size, declared or read from the prepared dataset; None if unknown yet."""
    try:
        return settings.data.declared_vocab_size() or _prepared_vocabulary(astuple(settings.data))
    except Refused:  # no such dataset, or no such text
        return None


@cache  # the digest of the text is the same for all points of a grid
def _prepared_vocabulary(data: tuple[Any, ...]) -> int:
    from llm.data.prepare import folder_of

    return read_meta(folder_of(DataConfig(*data))).vocab_size


def forget_vocabularies() -> None:
    """Read prepared datasets again: in a long-lived process they may have changed."""
    _prepared_vocabulary.cache_clear()
