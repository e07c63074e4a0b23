"""Checkpoints with only the trained part of a network: adapters, the head, or some weights."""

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from llm.checkpoint.checkpoint import Checkpoint, empty_model, weight_shapes
from llm.checkpoint.find import MANIFEST
from llm.errors import Refused, require
from llm.interchange.peft import CONFIG, PeftSource, open_peft
from llm.interchange.peft_reading import adapters_in, recorded_digests
from llm.interchange.peft_reading import require_base as require_peft_base
from llm.interchange.source import DOWNLOADED, CheckpointSource, Source, open_source
from llm.model.gpt import GPT
from llm.model.layers import rotary_angles
from llm.model.lora import merged_weights


def base_of(checkpoint: Checkpoint, place: str | None = None) -> Source:
    """The weights on which a checkpoint's part was trained. ``place``: where they are now.

    Raises :class:`llm.errors.Refused` if their place no longer has them.
    """
    assert checkpoint.base is not None
    try:
        source = _with_digest(place or checkpoint.base.init_from, checkpoint.base.digest)
    except Refused as refusal:
        raise Refused(f"the base of {checkpoint.path} cannot be opened: {refusal}") from None
    require_base(checkpoint, source)
    return source


def _with_digest(place: str, digest: str) -> Source:
    """The weights at ``place``; of a run the checkpoint that has this digest, if it is still there.

    The best checkpoint of a run is another one after the run was continued.
    """
    source = open_source("init_from", place)
    if not isinstance(source, CheckpointSource) or source.digest() == digest:
        return source
    for manifest in sorted(source.path.parent.glob(f"*/{MANIFEST}")):
        with suppress(Refused):  # a damaged one cannot be the base
            other = open_source("init_from", str(manifest.parent))
            if isinstance(other, CheckpointSource) and other.digest() == digest:
                return replace(other, place=place)
    return source


def require_base(checkpoint: Checkpoint, source: Source) -> None:
    """Raise :class:`llm.errors.Refused` unless ``checkpoint`` was trained on ``source``."""
    base = checkpoint.base
    require(base is not None, f"{checkpoint.path} holds a whole network, not an adapter")
    assert base is not None
    require(
        source.digest() == base.digest,
        f"{checkpoint.path} is an adapter for another base: it needs the weights that "
        f"{base.init_from} had when it was trained, and {source.place} has others",
    )
    fits = weight_shapes(source.model) == weight_shapes(checkpoint.model)
    require(fits, f"{checkpoint.path} describes another network than {source.place} has")


def whole_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors of ``GPT.state_dict()``: the checkpoint's, merged into its base if it has one."""
    trained = checkpoint.weights()
    if checkpoint.base is None or checkpoint.finetune is None:
        return trained
    return merged_weights(base_of(checkpoint).weights(), trained, checkpoint.finetune)


def open_adapter(key: str, place: str, base: Source) -> Source:
    """The checkpoint or folder of PEFT that ``key=place`` names, an adapter for ``base``.

    Raises :class:`llm.errors.Refused` for a whole network, and for an adapter for another base.
    """
    config = Path(place) / CONFIG
    if not os.path.isfile(config):
        source = open_source(key, place)
        is_run = isinstance(source, CheckpointSource)
        require(is_run, f"{key}: {place} holds a whole network, not an adapter", key=key)
        require_base(Checkpoint.open(source.path), base)
        return source
    adapter = open_peft(place, config, base)
    adapters_in(adapter)  # refuses other names and shapes
    require_peft_base(adapter)
    named = adapter.config.base_model_name_or_path
    require(
        recorded_digests(adapter) or not _has_other_weights(named, base),
        f"{place} is an adapter for another base: it names {named:.200}, and {base.place} has "
        "other weights",
        key=key,
    )
    return adapter


def _has_other_weights(named: str, base: Source) -> bool:
    """Whether the place ``named`` has weights on this machine that differ from ``base``."""
    if not os.path.exists(named) and named not in DOWNLOADED:
        return False
    try:
        return open_source("base_model_name_or_path", named).digest() != base.digest()
    except Refused:  # a folder without weights that happens to have this name
        return False


def with_adapter(model: GPT, adapter: Source) -> GPT:
    """The network ``model`` with ``adapter`` (:func:`open_adapter`) merged in, for evaluation.

    ``model`` is the network of its base, and stays as it is. Both share the weights that the
    adapter does not change.
    """
    base, device = model.state_dict(), model.embed.weight.device
    if isinstance(adapter, PeftSource):
        weights = adapter.merged(base)
    else:
        checkpoint = Checkpoint.open(adapter.path)
        assert checkpoint.finetune is not None
        trained = {name: weight.to(device) for name, weight in checkpoint.weights().items()}
        weights = merged_weights(base, trained, checkpoint.finetune)
    network = empty_model(adapter.model)
    network.load_state_dict(weights, assign=True)  # nothing is copied
    network.cos, network.sin = rotary_angles(adapter.model)
    return network.to(device).eval()
