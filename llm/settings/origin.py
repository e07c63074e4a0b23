"""``init_from``: the network gets the shape of the weights that it starts from."""

import contextlib
from collections.abc import Collection
from dataclasses import fields
from typing import Any

from llm.checkpoint.find import find_checkpoint, read_manifest, read_model_config
from llm.data.config import padded
from llm.errors import Refused, require
from llm.model.config import GPTConfig
from llm.sealed import Plain
from llm.settings.schema import Model, TrainSettings

SHAPE = [field.name for field in fields(GPTConfig) if field.name not in ("dropout", "loss")]


def shape_of_origin(settings: TrainSettings, typed: Collection[str]) -> Plain:
    """The values of the weights of ``init_from`` for the keys of ``model`` that are not given.

    A key is given if it is among ``typed`` or differs from its default. Raises
    :class:`llm.errors.Refused` if a given value differs from the weights. If they cannot be read,
    :func:`llm.checkpoint.checkpoint.start_from` says why later.
    """
    theirs = _shape_of_weights(settings) if settings.init_from and not settings.resume else {}
    missing = {}
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


def _shape_of_weights(settings: TrainSettings) -> Plain:
    """The shape of the weights of ``init_from``, or of the run that has started from them; empty if
    neither can be read.
    """
    from llm.data.tokenizer import from_json  # imports numpy: not needed without init_from

    run = settings.run
    started = run.dir or (f"outputs/{run.name}" if run.name else None)
    for place in filter(None, (settings.init_from, started)):
        with contextlib.suppress(Refused, OSError):
            checkpoint = find_checkpoint("init_from", place)
            manifest = read_manifest(checkpoint)
            shape = vars(read_model_config(manifest, checkpoint))
            tokenizer = from_json(manifest.tokenizer)
            keys = {key: shape[key] for key in SHAPE}
            # The data gives the usual vocab_size, and another alphabet is refused later by name.
            usual = padded(tokenizer.vocab_size, tokenizer.kind)
            if settings.model.vocab_size is None and shape["vocab_size"] == usual:
                del keys["vocab_size"]
            return keys
    return {}
