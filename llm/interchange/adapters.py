"""Checkpoints that hold only what was trained of a base: adapters, the head, or some weights."""

from collections.abc import Iterable, Iterator

from torch import Tensor

from llm.checkpoint.checkpoint import Checkpoint, empty_model, weight_shapes
from llm.errors import Refused, require
from llm.interchange.source import CheckpointSource, Source, open_source
from llm.model.gpt import GPT
from llm.model.layers import rotary_angles
from llm.model.lora import merged_weights


def base_of(checkpoint: Checkpoint) -> Source:
    """The weights that a checkpoint of adapters belongs to.

    Raises :class:`llm.errors.Refused` if they are not in their place any more.
    """
    assert checkpoint.base is not None
    try:
        source = open_source("init_from", checkpoint.base.init_from)
    except Refused as refusal:
        raise Refused(f"the base of {checkpoint.path} cannot be opened: {refusal}") from None
    require_base(checkpoint, source)
    return source


def require_base(checkpoint: Checkpoint, source: Source) -> None:
    """Raise :class:`llm.errors.Refused` unless ``source`` has the weights that ``checkpoint``
    belongs to.
    """
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
    """The tensors of ``GPT.state_dict()``: what the checkpoint holds, merged into its base."""
    trained = checkpoint.weights()
    if checkpoint.base is None or checkpoint.finetune is None:
        return trained
    return merged_weights(base_of(checkpoint).weights(), trained, checkpoint.finetune)


def with_adapters(
    model: GPT, source: Source, adapters: Iterable[CheckpointSource]
) -> Iterator[GPT]:  # fmt: skip
    """For each adapter the network ``model`` with that adapter merged in, in evaluation mode.

    ``model`` is the one of ``source``, and stays as it is; the networks share its other weights, so
    each takes the memory of its changed matrices only. Raises :class:`llm.errors.Refused` for an
    adapter of another base.
    """
    base = model.state_dict()
    device = model.embed.weight.device
    for adapter in adapters:
        checkpoint = Checkpoint.open(adapter.path)
        require_base(checkpoint, source)
        assert checkpoint.finetune is not None
        trained = {name: weight.to(device) for name, weight in checkpoint.weights().items()}
        weights = merged_weights(base, trained, checkpoint.finetune)
        network = empty_model(checkpoint.model)
        network.load_state_dict(weights, assign=True)  # the tensors themselves: none is copied
        network.cos, network.sin = rotary_angles(checkpoint.model)
        yield network.to(device).eval()
