"""``init_from``: the network gets the shape of the weights that it starts from."""

import os
from collections.abc import Collection
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.checkpoint.find import find_checkpoint
from llm.data.config import DOWNLOADED_NAMES, TOKENIZERS, DataConfig, padded
from llm.errors import Refused, require
from llm.model.config import GPTConfig
from llm.sealed import Plain
from llm.settings.earlier import newest_manifest
from llm.settings.schema import Model, RunSection, TrainSettings
from llm.training.schedule import Schedule
from llm.units import plural

if TYPE_CHECKING:
    from llm.interchange.source import Source

SHAPE = [field.name for field in fields(GPTConfig) if field.name not in ("dropout", "loss")]
WINDOW = 512  # tokens; other people's networks get a longer block_size only if it is typed


def shape_of_origin(settings: TrainSettings, typed: Collection[str]) -> Plain:
    """The values of the weights of ``init_from`` for the keys of ``model`` that are not given.

    A key is given if it is among ``typed`` or differs from its default. Raises
    :class:`llm.errors.Refused` if a given value differs from the weights, and if they cannot be
    read, unless the run has started from them.
    """
    if not settings.init_from or settings.resume:
        return {}
    theirs, missing = _shape(_source(settings), settings), {}
    for key, wanted in theirs.items():
        value: Any = getattr(settings.model, key)
        is_typed = f"model.{key}" in typed or "model" in typed
        if value is None or not (is_typed or value != getattr(Model(), key)):
            missing[key] = wanted
            continue
        # With rotary positions, no weight depends on the block size.
        free = key == "block_size" and theirs["position"] == "rotary"
        require(
            free or value == wanted,
            f"init_from={settings.init_from} has model.{key}={wanted}, and model.{key}={value} is "
            "asked for: leave it out, the network gets the shape of the weights",
        )
    return missing


def data_of_origin(
    data: DataConfig, init_from: str | None, run: RunSection | None = None
) -> DataConfig:
    """``data`` with the place of its tokenizer, if it is null, and the size of its vocabulary.

    Null means the tokenizer of ``init_from``; without ``init_from``, GPT-2's. If ``init_from``
    does not exist any more, the checkpoints of ``run`` have its tokenizer.
    """
    tokenizer = data.tokenizer or init_from or "gpt2"
    data = replace(data, tokenizer=tokenizer)
    if tokenizer in TOKENIZERS:
        return data
    if not os.path.exists(tokenizer) and tokenizer not in DOWNLOADED_NAMES:
        started = _started(run) if run and tokenizer == init_from else None
        if not started:
            return data  # refused later, with the known names
        data = replace(data, tokenizer=started)
    from llm.interchange.source import open_tokenizer

    return replace(
        data, vocab_size=data.vocab_size or open_tokenizer(str(data.tokenizer)).vocab_size
    )


def check_tokenizer(settings: TrainSettings) -> None:
    """Raise :class:`llm.errors.Refused` if the data has another tokenizer than the weights of
    ``init_from``, before the data is prepared.
    """
    place, name = settings.init_from, settings.data.tokenizer
    if not place or settings.resume or name in (None, place):
        return
    if any(
        one not in (*TOKENIZERS, *DOWNLOADED_NAMES) and not os.path.exists(one)
        for one in (place, name)
    ):
        return  # refused later, or the run has started from weights that are gone
    from llm.interchange.source import open_tokenizer, require_tokenizer

    ours = None if name in TOKENIZERS else open_tokenizer(name)
    require_tokenizer(place, open_tokenizer(place), name, ours)


def require_more_steps(settings: TrainSettings) -> None:
    """Raise :class:`llm.errors.Refused` if ``resume`` is given a number of steps that does not even
    reach beyond the run's own warm-up, which was not typed.
    """
    schedule, last = settings.schedule, settings.trainer.max_steps
    if not settings.resume or "schedule.warmup_steps" in settings.typed or not last:
        return
    if isinstance(schedule, Schedule) and (schedule.warmup_steps or 0) >= last:
        newest, warmup = newest_manifest(Path(settings.resume)), schedule.warmup_steps or 0
        step = newest.step if newest else 0
        raise Refused(
            f"trainer.max_steps={last} is too few: {settings.resume} is already at step {step:,}, "
            f"and its warm-up takes {plural(warmup, 'step')}: give more than {max(step, warmup):,}",
            key="trainer.max_steps",
        )


def _source(settings: TrainSettings) -> "Source":
    """The weights of ``init_from``; if they are gone, of the run that started from them."""
    from llm.interchange.source import open_source  # imports numpy: not needed without init_from

    try:
        return open_source("init_from", str(settings.init_from))
    except (Refused, OSError):
        started = _started(settings.run)
        if not started:
            raise
        return open_source("run.name", started)


def _started(run: RunSection) -> str | None:
    """The folder of a run that has a checkpoint; None: it has not started."""
    folder = run.dir or (f"outputs/{run.name}" if run.name else None)
    try:
        return folder if folder and find_checkpoint("run.name", folder) else None
    except Refused:
        return None


def _shape(source: "Source", settings: TrainSettings) -> Plain:
    from llm.interchange.peft import PeftSource
    from llm.interchange.source import CheckpointSource

    keys = {key: getattr(source.model, key) for key in SHAPE}
    if isinstance(source, PeftSource):
        source = source.base
    if isinstance(source, CheckpointSource):
        named = settings.data.tokenizer in TOKENIZERS  # and not the tokenizer of these weights
        # The data gives the usual vocab_size, and another alphabet is refused later by name.
        usual = padded(source.tokenizer.vocab_size, source.tokenizer.kind)
        if named and settings.model.vocab_size is None and keys["vocab_size"] == usual:
            del keys["vocab_size"]
    elif keys["position"] == "rotary":
        keys["block_size"] = min(keys["block_size"], WINDOW)
    return keys
