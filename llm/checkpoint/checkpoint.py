"""Checkpoints: folders of tensors (safetensors) and plain values (JSON), each complete in itself.

    checkpoints/step-00000500/checkpoint.json       format, step, model, tokenizer, digests
                              model.safetensors     the weights
                              training.safetensors  optimizer and random state, to continue from
    checkpoints/best-00000400/                      weights of the lowest validation loss only
    checkpoints/last -> step-00000500, checkpoints/best -> best-00000400

A checkpoint may be damaged or come from a stranger. Nothing in it is unpickled or instantiated.
Each file is compared with its digest, and each tensor's name, shape and type with those of the
model, before any of it is loaded.
"""

import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from llm.checkpoint.empty import Shapes, empty_model, weight_shapes
from llm.checkpoint.find import (
    MANIFEST,
    find_checkpoint,
    read_manifest,
    read_model_config,
)
from llm.checkpoint.tensors import (
    Layout,
    allowed_training,
    allowed_weights,
    read_tensors,
    require_size,
)
from llm.data.tokenizer import Tokenizer, from_json
from llm.errors import Refused, require
from llm.model.config import GPTConfig
from llm.model.gpt import GPT
from llm.model.layers import rotary_angles
from llm.sealed import Plain

WEIGHTS, TRAINING = "model.safetensors", "training.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose manifest has been read and checked."""

    path: Path
    step: int
    model: GPTConfig
    tokenizer: Tokenizer
    state: Plain  # the trainer's counters; plain values
    identity: Plain  # config_digest, data_digest
    files: dict[str, str]  # file name -> sha256
    verified: set[str] = field(default_factory=set, compare=False)  # files with the right digest

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """Read and check ``path/checkpoint.json``; raises :class:`llm.errors.Refused`."""
        manifest = read_manifest(path)
        model = read_model_config(manifest, path)
        tokenizer = from_json(manifest.tokenizer)
        require(
            tokenizer.vocab_size <= (model.vocab_size or 0),
            f"{path}: a tokenizer of {tokenizer.vocab_size} ids and a model of {model.vocab_size}",
        )
        files = manifest.files
        known = set(files) <= {WEIGHTS, TRAINING} and WEIGHTS in files
        require(known, f"{path / MANIFEST} has no usable files")
        state, identity = manifest.state, manifest.identity
        return cls(path, manifest.step, model, tokenizer, state, identity, files)

    @functools.cached_property
    def shapes(self) -> Shapes:
        """The shapes of the weights, which follow from the model's options."""
        return weight_shapes(self.model)

    def weights(self) -> dict[str, Tensor]:
        """The tensors of ``GPT.state_dict()``; :class:`llm.errors.Refused` unless all are there."""
        weights = self._read(WEIGHTS)
        for name in self.shapes:
            require(name in weights, f"{self.path / WEIGHTS} has no tensor {name}")
        return weights

    def training(self, custom: Layout | None = None) -> dict[str, Tensor]:
        """The optimizer's and the random generators' tensors, to continue training from.

        ``custom``: what a custom optimizer keeps; None for a built-in one. Raises
        :class:`llm.errors.Refused` if there are none.
        """
        found = TRAINING in self.files
        require(found, f"{self.path} holds weights only, nothing to continue training from")
        return self._read(TRAINING, custom)

    def verify(self) -> None:
        """Read every file and compare its sha256; :class:`llm.errors.Refused` names a damaged one.

        Takes about a second per gigabyte, and no memory.
        """
        for name in self.files:
            self._verify(name)

    def load_model(self, device: torch.device) -> GPT:
        """The network with its weights, in evaluation mode, on ``device``."""
        config = self.model
        assert config.head_size
        model = empty_model(config)
        # The tensors themselves become the weights: nothing is initialised or copied.
        weights = {name: tensor.float() for name, tensor in self.weights().items()}
        model.load_state_dict(weights, assign=True)
        model.cos, model.sin = rotary_angles(config.block_size, config.head_size)
        return model.to(device).eval()

    def load_into(self, model: GPT) -> None:
        """Copy the weights into ``model``.

        :class:`llm.errors.Refused` names the first tensor that does not fit, before any is read.
        """
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        for name in wanted | self.shapes:
            require(name in self.shapes, f"{self.path} has no tensor {name}")
            require(name in wanted, f"{self.path} has a tensor {name} that this model lacks")
            found, needed = self.shapes[name], wanted[name]
            require(
                found == needed,
                f"{self.path}: {name} has shape {found}, this model needs {needed}",
            )
        model.load_state_dict(self.weights())

    def _verify(self, name: str) -> None:
        if name in self.verified:
            return
        path = self.path / name
        try:
            require_size(path, self.shapes, is_training=name == TRAINING)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise Refused(f"{path} cannot be read: {error.strerror}") from None
        right = digest == self.files[name]
        require(right, f"{path} is damaged: its sha256 is not the recorded one")
        self.verified.add(name)

    def _read(self, name: str, custom: Layout | None = None) -> dict[str, Tensor]:
        self._verify(name)
        is_training = name == TRAINING
        shapes = self.shapes
        allowed = allowed_training(shapes, custom) if is_training else allowed_weights(shapes)
        try:
            return read_tensors(self.path / name, allowed)
        except (OSError, safetensors.SafetensorError) as error:
            raise Refused(f"{self.path / name} cannot be read: {error}") from None


def weights_digest(place: str) -> str:
    """The sha256 of the weights that ``init_from=place`` names."""
    return Checkpoint.open(find_checkpoint("init_from", place)).files[WEIGHTS]


def start_from(model: GPT, place: str, tokenizer: Tokenizer) -> Checkpoint:
    """Load the weights of ``init_from=place``, a checkpoint or a run (its best); returns the
    checkpoint.

    ``tokenizer``: the data's. Weights trained on other ids cannot read its text, so raises
    :class:`llm.errors.Refused` naming both tokenizers, and for weights of another shape.
    """
    checkpoint = Checkpoint.open(find_checkpoint("init_from", place))
    theirs, ours = checkpoint.tokenizer, tokenizer
    require(
        theirs.digest() == ours.digest(),
        f"init_from={place} was trained on {theirs.described(ours)}, and data.tokenizer="
        f"{ours.kind} has {ours.described(theirs)}: take the data it was trained on, or train "
        "without init_from",
    )
    checkpoint.load_into(model)
    return checkpoint
