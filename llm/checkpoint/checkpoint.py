"""Checkpoints: folders of tensors (safetensors) and plain values (JSON), each complete in itself.

    checkpoints/step-00000500/checkpoint.json       format, step, model, tokenizer, digests
                              model.safetensors     the weights
                              training.safetensors  optimizer and random state, to go on from
    checkpoints/best-00000400/                      weights of the lowest validation loss only
    checkpoints/last -> step-00000500, checkpoints/best -> best-00000400

Whatever it holds may be damaged or come from a stranger. Nothing is unpickled or instantiated; each
file is compared with its digest, and each tensor's name, shape and type with what the bounded shape
of the model implies, before any of it is loaded.
"""

import functools
import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from llm.checkpoint.formats import MANIFEST, current
from llm.checkpoint.shapes import Shapes, read_shape, weight_shapes
from llm.checkpoint.tensors import Layout, read_tensors, require_size
from llm.data.tokenizer import Tokenizer, from_json
from llm.errors import Refused, require
from llm.model.config import GPTConfig
from llm.model.gpt import GPT
from llm.sealed import Plain, read_json

WEIGHTS, TRAINING = "model.safetensors", "training.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk whose manifest has been read and checked."""

    path: Path
    step: int
    model: GPTConfig
    tokenizer: Tokenizer
    state: Plain  # the trainer's counters; plain values
    identity: Plain  # config_digest, data_digest
    files: dict[str, str]  # file name -> sha256
    intact: set[str] = field(default_factory=set, compare=False)  # files whose digest was right

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """Read and check ``path/checkpoint.json``; raises :class:`llm.errors.Refused`."""
        where = path / MANIFEST
        try:
            manifest = current(read_json(where), where)
        except FileNotFoundError:
            raise Refused(f"{path} is not a checkpoint: it has no {MANIFEST}") from None
        model = read_shape(manifest["model"], where)
        tokenizer = from_json(manifest["tokenizer"])
        require(
            tokenizer.vocab_size <= (model.vocab_size or 0),
            f"{path}: a tokenizer of {tokenizer.vocab_size} ids and a model of {model.vocab_size}",
        )
        files = manifest["files"]
        known = set(files) <= {WEIGHTS, TRAINING} and WEIGHTS in files
        require(known, f"{where} has no usable files")
        kept = {key: manifest[key] for key in ("step", "state", "identity", "files")}
        return cls(path=path, model=model, tokenizer=tokenizer, **kept)

    @functools.cached_property
    def shapes(self) -> Shapes:
        """Of the weights, by the shape of the model."""
        return weight_shapes(self.model)

    def weights(self) -> dict[str, Tensor]:
        """The checked tensors of the model, named as :meth:`GPT.state_dict` names them."""
        return self._read(WEIGHTS)

    def training(self, kept: Layout | None = None) -> dict[str, Tensor]:
        """The checked tensors to continue from; :class:`llm.errors.Refused` if there are none.

        ``kept``: what an optimizer of the user's own keeps; None: what those of ours do.
        """
        self.require_training()
        return self._read(TRAINING, kept)

    def require_training(self) -> None:
        """Raise :class:`llm.errors.Refused` for one that holds weights only."""
        holds = TRAINING in self.files
        require(holds, f"{self.path} holds weights only, nothing to continue training from")

    def verify(self) -> None:
        """Read every file once and compare its sha256; :class:`llm.errors.Refused` names a bad one.

        Takes a second or so per gigabyte, and no memory.
        """
        for name in self.files:
            self._verify(name)

    def load_model(self, device: torch.device) -> GPT:
        """The network with its weights, in evaluation mode, on ``device``."""
        weights = self.weights()
        model = GPT(**asdict(self.model))
        load_weights(model, weights, str(self.path))
        return model.to(device).eval()

    def _verify(self, name: str) -> None:
        if name in self.intact:
            return
        try:
            require_size(self.path / name, self.shapes, of_training=name == TRAINING)
            with (self.path / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise Refused(f"{self.path / name} cannot be read: {error.strerror}") from None
        right = digest == self.files[name]
        require(right, f"{self.path / name} is damaged: its sha256 is not the recorded one")
        self.intact.add(name)

    def _read(self, name: str, kept: Layout | None = None) -> dict[str, Tensor]:
        try:
            return read_tensors(
                self.path / name, self.shapes, lambda: self._verify(name), name == TRAINING, kept
            )
        except (OSError, safetensors.SafetensorError) as error:
            raise Refused(f"{self.path / name} cannot be read: {error}") from None


def load_weights(model: GPT, weights: dict[str, Tensor], where: str) -> None:
    """Copy ``weights`` into ``model``.

    :class:`llm.errors.Refused` names the first tensor that does not fit, and ``where`` it is from.
    """
    require_fitting(model, {name: tuple(t.shape) for name, t in weights.items()}, where)
    model.load_state_dict(weights)


def require_fitting(model: GPT, found: Shapes, where: str) -> None:
    """The same check, for weights that have not been read yet."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, shape in wanted.items():
        require(name in found, f"{where} has no tensor {name}")
        right = found.get(name) == shape
        require(right, f"{where}: {name} has shape {found.get(name)}, this model needs {shape}")
    extra = sorted(set(found) - set(wanted))
    require(not extra, f"{where} has a tensor {extra[0] if extra else ''} that this model lacks")
