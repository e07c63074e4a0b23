"""Weights to start from: one of our checkpoints, or other people's files.

``init_from=``, ``ckpt=`` and the base of an adapter all name a place. :func:`open_source` says
which network it holds, without torch; the weights themselves are read later.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from llm.checkpoint.find import (
    find_checkpoint,
    read_manifest,
    read_model_config,
    recorded_digest,
)
from llm.data.tokenizer import Tokenizer, from_json
from llm.model.config import GPTConfig

if TYPE_CHECKING:
    from torch import Tensor


class Source(Protocol):
    """A network on the disk."""

    @property
    def kind(self) -> str:
        """``checkpoint``, ``hf``, ``gguf``, ``llama`` or ``nanogpt``."""

    @property
    def place(self) -> str:
        """As typed."""

    @property
    def model(self) -> GPTConfig:
        """The resolved options of the network."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the weights."""

    def digest(self) -> str:
        """sha256 that identifies the weights."""

    def weights(self) -> "dict[str, Tensor]":
        """The tensors of ``GPT.state_dict()`` by our names, in float32 or bfloat16.

        Raises :class:`llm.errors.Refused` for a file that is damaged or does not fit ``model``.
        """


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint of this program."""

    place: str
    model: GPTConfig
    tokenizer: Tokenizer
    kind: str = "checkpoint"

    def digest(self) -> str:
        """The recorded sha256 of the weights."""
        return recorded_digest(self.place)

    def weights(self) -> "dict[str, Tensor]":
        """See :class:`Source`."""
        from llm.checkpoint.checkpoint import Checkpoint

        return Checkpoint.open(find_checkpoint("init_from", self.place)).weights()


def open_source(key: str, place: str) -> Source:
    """The network that ``key=place`` names.

    Raises :class:`llm.errors.Refused` naming the newest runs if there is none.
    """
    checkpoint = find_checkpoint(key, place)
    manifest = read_manifest(checkpoint)
    model, tokenizer = read_model_config(manifest, checkpoint), from_json(manifest.tokenizer)
    return CheckpointSource(place, model, tokenizer)
