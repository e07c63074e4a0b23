"""Weights to start from: one of our checkpoints, or other people's files.

``init_from=``, ``ckpt=`` and the base of an adapter all name a place. :func:`open_source` says
which network it holds, without torch; the weights themselves are read later.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from llm.checkpoint.find import (
    MANIFEST,
    WEIGHTS,
    Manifest,
    find_checkpoint,
    named,
    read_manifest,
    read_model_config,
    warning_of,
    without_link,
)
from llm.data import tokenizer as tokenizers
from llm.data.assets import smollm2
from llm.data.config import TOKENIZERS
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

# The file that identifies a folder of each format, and the function that opens it.
FORMATS: dict[str, Callable[[str, Path], "Source"]] = {
    peft.CONFIG: peft.open_peft,  # first: the base may be in the same folder
    hf.CONFIG: hf.open_folder,
    llama.WEIGHTS: llama.open_folder,
    nanogpt.WEIGHTS: nanogpt.open_file,
}
ENDINGS = {".pth": llama.open_folder, ".pt": nanogpt.open_file}  # of a file that is typed
# Names that stand for a download, unless a file or folder has this name.
DOWNLOADED: dict[str, Callable[[], Path]] = {"smollm2": smollm2}


class Source(Protocol):
    """A network on the disk."""

    @property
    def kind(self) -> str:
        """``checkpoint``, ``hf``, ``gguf``, ``llama``, ``nanogpt`` or ``peft``."""

    @property
    def place(self) -> str:
        """The place as typed."""

    @property
    def path(self) -> Path:
        """The folder of the checkpoint, or of other programs' files the place."""

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
        """The chat template; None if the network was not trained on conversations, or if other
        programs cannot make the same ids.
        """

    @property
    def context(self) -> int:
        """The context length of the weights in tokens, at least ``model.block_size``."""

    def digest(self) -> str:
        """sha256 that identifies the weights."""

    def weights(self) -> "dict[str, Tensor]":
        """The tensors of ``GPT.state_dict()`` by our names, in float32 or bfloat16.

        Raises :class:`llm.errors.Refused` for a file that is damaged or does not fit ``model``.
        """

    def tensors(self) -> "Iterator[tuple[str, Tensor]]":
        """Yields :meth:`weights` by name, in any order.

        Files of other programs are read one tensor at a time.
        """


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
        """The recorded sha256 of the weights. If only a part was trained, a sha256 of the part's
        digest, the base's digest and the options of ``finetune``.
        """
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

    Raises :class:`llm.errors.Refused` for an architecture that this program does not support, and
    for a place without weights; the message then names the newest runs.
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


def introduction(source: Source) -> list[str]:
    """The line that names the weights of ``source``, for a checkpoint with its step, and a warning
    if they may not be those that the user expects.
    """
    if source.kind != "checkpoint":
        return [source.place]
    warning = warning_of(source.path)
    return [named(source.path), *([warning] if warning else [])]


def checkpoint_path(source: Source) -> Path:
    """The path of ``source``, with the step of a checkpoint in its name."""
    return without_link(source.path) if source.kind == "checkpoint" else source.path


def open_tokenizer(place: str) -> Tokenizer:
    """The tokenizer of the weights that ``data.tokenizer=place`` names."""
    changed = os.stat(place).st_mtime_ns if os.path.exists(place) else 0
    return _tokenizer_at(place, changed)


@lru_cache(maxsize=4)  # a run asks several times, and a large vocabulary takes a second
def _tokenizer_at(place: str, changed: int) -> Tokenizer:
    return open_source("data.tokenizer", place).tokenizer


tokenizers.open_place = open_tokenizer


def whole_model(source: Source) -> GPTConfig:
    """The options of the network with the whole context that it was made for."""
    model = source.model
    if model.rope_scaling != "none":  # else the original size would change with the context
        model = replace(model, rope_original_size=model.rope_original_size or model.block_size)
    return replace(model, block_size=source.context)


def load_model(source: Source, device: "torch.device") -> "GPT":
    """The network with its weights in float32, in evaluation mode, on ``device``."""
    from llm.checkpoint.checkpoint import empty_model

    model = empty_model(source.model)
    fill(model, source)
    return model.to(device).eval()


def start_from(
    model: "GPT", source: Source, tokenizer: Tokenizer, finetune: FinetuneOptions | None = None
) -> None:
    """Give ``model`` the weights of ``init_from``: see :func:`fill`. ``tokenizer``: the data's.

    Raises :class:`llm.errors.Refused` if the weights were trained with another tokenizer, whose ids
    have other meanings, and naming the first weight of another shape. No weight is read before.
    """
    from llm.checkpoint.checkpoint import require_shapes, weight_shapes

    require_tokenizer(source.place, source.tokenizer, tokenizer.kind, tokenizer)
    require_shapes(model, weight_shapes(source.model), source.path)
    fill(model, source, finetune)


def require_tokenizer(
    place: str, theirs: Tokenizer, name: str, ours: Tokenizer | None = None
) -> None:
    """Raise :class:`llm.errors.Refused` if the weights of ``init_from=place`` were trained with
    another tokenizer than the data's, whose ids have other meanings.

    ``theirs``: the tokenizer of the weights. ``ours``: the data's; None: the usual one of the kind
    ``name`` (for ``char`` the characters are not known before the text is read).
    """
    if ours is not None:
        is_same, has = theirs.is_same(ours), ours.described(theirs)
    else:
        is_same, size = theirs.kind == name, TOKENIZERS[name]
        has = f"the {size:,} tokens of {name}" if size else "the characters of the text"
    require(
        is_same,
        f"init_from={place} was trained on {theirs.described(ours or theirs)}, and "
        f"data.tokenizer={name} has {has}: set data.tokenizer=null to take the "
        "tokenizer of these weights, or leave out init_from",
    )


def fill(model: "GPT", source: Source, finetune: FinetuneOptions | None = None) -> None:
    """Give ``model``, which may be on torch's meta device, the weights of ``source`` on the CPU.

    Each weight is converted to the dtype of ``model``, or quantised if ``finetune`` asks for it,
    before the next one is read: memory never holds the network twice.
    """
    import torch

    from llm.model.layers import rotary_angles
    from llm.model.quantised import Quantised

    bits = finetune.stored_bits if finetune else None
    for name, tensor in source.tensors():
        module, _, parameter = name.rpartition(".")
        layer = model.get_submodule(module)
        dtype = getattr(layer, parameter).dtype
        if bits and finetune and parameter == "weight" and finetune.adapts(module):
            delattr(layer, parameter)
            # The numbers in the file are quantised, as merging does, not those rounded to dtype
            layer.weight = Quantised(tensor, bits, dtype)
        else:
            # Memory that torch allocates is aligned for its kernels
            copy = torch.empty(tensor.shape, dtype=dtype).copy_(tensor)
            setattr(layer, parameter, torch.nn.Parameter(copy))
        del tensor
    model.cos, model.sin = rotary_angles(model.config)
