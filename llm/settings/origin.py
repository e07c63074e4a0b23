"""``init_from``: a run that starts from other weights takes their shape."""

import contextlib
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from llm.checkpoint.find import MANIFEST, find_checkpoint, read_manifest
from llm.checkpoint.shapes import read_shape
from llm.data.config import padded
from llm.errors import Refused, require
from llm.model.config import GPTConfig
from llm.sealed import Plain
from llm.settings.schema import Model, TrainSettings

# What may differ from the run that trained the weights.
FREE = ("dropout", "loss")
SHAPE = [field.name for field in fields(GPTConfig) if field.name not in FREE]


def shape_of_origin(settings: TrainSettings, typed: Collection[str]) -> Plain:
    """The keys of ``model`` that are not given, with the values of ``init_from``'s weights.

    A key is given if it is among ``typed``, or has another value than by default. Raises
    :class:`llm.errors.Refused` for a given one that differs, naming both. What cannot be read is
    left to :func:`llm.checkpoint.checkpoint.start_from`, which names the reason.
    """
    theirs = _shape_of(settings) if settings.init_from and not settings.resume else None
    if theirs is None:
        return {}
    taken = {}
    for key in SHAPE:
        value, wanted = getattr(settings.model, key), getattr(theirs.model, key)
        if not _is_given(settings.model, key, typed):
            taken[key] = wanted
            continue
        free = key == "block_size" and theirs.model.position == "rotary"  # no weight depends on it
        require(
            free or value == wanted,
            f"init_from={settings.init_from} has model.{key}={wanted}, and model.{key}={value} is "
            "asked for: leave it out, the shape is that of the weights",
        )
    if theirs.usual:  # it follows from the data; another alphabet is refused later, by its name
        taken.pop("vocab_size", None)
    return taken


def _is_given(model: Model, key: str, typed: Collection[str]) -> bool:
    value: Any = getattr(model, key)
    named = f"model.{key}" in typed or "model" in typed
    return value is not None and (named or value != getattr(Model(), key))


class _Origin(NamedTuple):
    model: GPTConfig
    usual: bool  # its vocab_size follows from its tokenizer


def _shape_of(settings: TrainSettings) -> _Origin | None:
    """The shape of the weights to start from, or of a run that has begun with them; None if neither
    can be read.
    """
    run = settings.run
    begun = run.dir or (f"outputs/{run.name}" if run.name else None)
    for place in filter(None, (settings.init_from, begun)):
        with contextlib.suppress(Refused, OSError):
            return _read(find_checkpoint("init_from", place))
    return None


def _read(checkpoint: Path) -> _Origin:
    from llm.data.tokenizer import from_json  # which a plan without init_from can do without

    manifest = read_manifest(checkpoint)
    shape = read_shape(manifest.model, checkpoint / MANIFEST)
    tokenizer = from_json(manifest.tokenizer)
    return _Origin(shape, shape.vocab_size == padded(tokenizer.vocab_size, tokenizer.kind))
