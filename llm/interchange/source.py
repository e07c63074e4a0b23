"""Weights to start from: one of our checkpoints, or other people's files.

``init_from=``, ``ckpt=`` and the base of an adapter all name a place. :func:`open_source` says
which network it holds, without torch; the weights themselves are read later.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from llm.checkpoint.find import (
    MANIFEST,
    WEIGHTS,
    Manifest,
    find_checkpoint,
    read_manifest,
    read_model_config,
)
from llm.data import tokenizer as tokenizers
from llm.data.assets import smollm2
from llm.data.tokenizer import Tokenizer, from_json
from llm.errors import require
from llm.interchange import gguf, hf, llama, nanogpt, peft
from llm.interchange.chat_template import Chat, chat_of
from llm.model.config import GPTConfig
from llm.model.finetune import FinetuneOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from llm.model.gpt import GPT

# The file in a folder by which other people's weights are known, and what reads it.
FORMATS: dict[str, Callable[[str, Path], "Source"]] = {
    peft.CONFIG: peft.open_peft,  # first: the folder may have its base too
    hf.CONFIG: hf.open_folder,
    llama.WEIGHTS: llama.open_folder,
    nanogpt.WEIGHTS: nanogpt.open_file,
}
ENDINGS = {".pth": llama.open_folder, ".pt": nanogpt.open_file}  # of a file that is typed itself
# Names of weights to download, unless there is a file or folder of that name.
DOWNLOADED: dict[str, Callable[[], Path]] = {"smollm2": smollm2}


class Source(Protocol):
    """A network on the disk."""

    @property
    def kind(self) -> str:
        """``checkpoint``, ``hf``, ``gguf``, ``llama``, ``nanogpt`` or ``peft``."""

    @property
    def place(self) -> str:
        """As typed."""

    @property
    def path(self) -> Path:
        """The checkpoint in the place, or the place."""

    @property
    def model(self) -> GPTConfig:
        """The resolved options of the network.

        Other people's networks have a ``block_size`` of at most 2048 if no weight depends on it.
        """

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the weights; :class:`llm.errors.Refused` if it is missing or wrong."""

    @property
    def chat(self) -> Chat | None:
        """How messages are formatted for the network; None: it was not trained on conversations, or
        no other program can do it.
        """

    @property
    def context(self) -> int:
        """Tokens that the network was made for, at least ``model.block_size``."""

    def digest(self) -> str:
        """sha256 that identifies the weights."""

    def weights(self) -> "dict[str, Tensor]":
        """The tensors of ``GPT.state_dict()`` by our names, in float32 or bfloat16.

        Raises :class:`llm.errors.Refused` for a file that is damaged or does not fit ``model``.
        """

    def tensors(self) -> "Iterator[tuple[str, Tensor]]":
        """The same by name, in any order. Files of other programs are read one tensor at a time."""


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint of this program."""

    place: str
    path: Path
    manifest: Manifest
    model: GPTConfig
    kind: str = "checkpoint"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """See :class:`Source`."""
        return from_json(self.manifest.tokenizer)

    @property
    def chat(self) -> Chat | None:
        """See :class:`Source`."""
        return chat_of(self.manifest.template, self.tokenizer)

    @property
    def context(self) -> int:
        """See :class:`Source`."""
        return self.manifest.context or self.model.block_size

    def digest(self) -> str:
        """The recorded sha256 of the weights; with that of the base, if they are a part of it."""
        files, finetune, base = self.manifest.files, self.manifest.finetune, self.manifest.base
        require(WEIGHTS in files, f"{self.path / MANIFEST} has no usable files")
        if finetune is None or base is None:
            return files[WEIGHTS]
        parts = [files[WEIGHTS], base.digest, asdict(finetune)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def weights(self) -> "dict[str, Tensor]":
        """See :class:`Source`."""
        from llm.checkpoint.checkpoint import Checkpoint
        from llm.interchange.adapters import whole_weights

        return whole_weights(Checkpoint.open(self.path))

    def tensors(self) -> "Iterator[tuple[str, Tensor]]":
        """See :class:`Source`."""
        weights = self.weights()
        for name in list(weights):
            yield name, weights.pop(name)


def open_source(key: str, place: str) -> Source:
    """The network that ``key=place`` names.

    Raises :class:`llm.errors.Refused` for a network that this program does not have, and, naming
    the newest runs, if there is none.
    """
    if place in DOWNLOADED and not os.path.exists(place):
        return gguf.open_gguf(place, DOWNLOADED[place]())
    if gguf.is_gguf(place):
        return gguf.open_gguf(place)
    for name, opened in FORMATS.items():
        if os.path.isfile(Path(place) / name):  # Path.is_file raises if the name is too long
            return opened(place, Path(place) / name)
    ending = Path(place).suffix
    if ending in ENDINGS and os.path.isfile(place):
        return ENDINGS[ending](place, Path(place))
    path = find_checkpoint(key, place, others=FORMATS)
    manifest = read_manifest(path)
    return CheckpointSource(place, path, manifest, read_model_config(manifest, path))


def open_tokenizer(place: str) -> Tokenizer:
    """The tokenizer of the weights that ``data.tokenizer=place`` names."""
    changed = os.stat(place).st_mtime_ns if os.path.exists(place) else 0
    return _tokenizer_at(place, changed)


@lru_cache(maxsize=4)  # a run asks several times, and a large vocabulary takes a second
def _tokenizer_at(place: str, changed: int) -> Tokenizer:
    return open_source("data.tokenizer", place).tokenizer


tokenizers.open_place = open_tokenizer


def load_model(source: Source, device: "torch.device") -> "GPT":
    """The network with its weights in float32, in evaluation mode, on ``device``."""
    from llm.checkpoint.checkpoint import empty_model

    model = empty_model(source.model)
    fill(model, source)
    return model.to(device).eval()


def start_from(
    model: "GPT", source: Source, tokenizer: Tokenizer, finetune: FinetuneOptions | None = None
) -> None:
    """Give ``model`` the weights of ``init_from``: see :func:`fill`.

    Raises :class:`llm.errors.Refused` naming the first weight of another shape, before any is read,
    and for weights that were trained with another tokenizer than the data's, ``tokenizer``: their
    ids have other meanings.
    """
    from llm.checkpoint.checkpoint import require_shapes, weight_shapes

    theirs = source.tokenizer
    require(
        theirs.digest() == tokenizer.digest(),
        f"init_from={source.place} was trained on {theirs.described(tokenizer)}, and "
        f"data.tokenizer={tokenizer.kind} has {tokenizer.described(theirs)}: take the data it was "
        "trained on, or its tokenizer (data.tokenizer=null), or train without init_from",
    )
    require_shapes(model, weight_shapes(source.model), source.path)
    fill(model, source, finetune)


def fill(model: "GPT", source: Source, finetune: FinetuneOptions | None = None) -> None:
    """Give ``model``, which may be on torch's meta device, the weights of ``source`` on the CPU.

    Each weight is converted to the type that the model's has, or quantised if ``finetune`` says so,
    before the next one is read: the network never exists twice.
    """
    import torch

    from llm.model.layers import rotary_angles
    from llm.model.quantised import Quantised

    bits = finetune.stored_bits if finetune else None
    for name, tensor in source.tensors():
        place, _, own = name.rpartition(".")
        layer = model.get_submodule(place)
        dtype = getattr(layer, own).dtype
        if bits and finetune and own == "weight" and finetune.adapts(place):
            delattr(layer, own)
            layer.weight = Quantised(tensor.to(dtype), bits)
        else:
            # In memory that torch allocates, aligned for its kernels
            copy = torch.empty(tensor.shape, dtype=dtype).copy_(tensor)
            setattr(layer, own, torch.nn.Parameter(copy))
        del tensor
    model.cos, model.sin = rotary_angles(model.config)
