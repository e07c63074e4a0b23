"""Checkpoints: folders of tensors (safetensors) and plain values (JSON), each complete in itself.

    checkpoints/step-00000500/checkpoint.json       format, step, model, tokenizer, digests
                              model.safetensors     the weights
                              training.safetensors  optimizer and random state, to continue from
    checkpoints/best-00000400/                      weights of the lowest validation loss only
    checkpoints/last -> step-00000500, checkpoints/best -> best-00000400

A run that trains only adapters, or only a part of the weights, saves only these: the manifest names
the base and the digest of its weights.

A checkpoint may be damaged or come from a stranger, so nothing in it is unpickled or instantiated,
and each file's digest and each tensor's name, shape and type are checked before it is loaded.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from llm.checkpoint.find import (
    MANIFEST,
    WEIGHTS,
    Base,
    read_manifest,
    read_model_config,
)
from llm.checkpoint.tensors import (
    Allowed,
    Layout,
    Shapes,
    allowed_training,
    read_tensors,
    require_size,
)
from llm.data.tokenizer import Tokenizer, from_json
from llm.errors import Refused, reason_for, require
from llm.model.config import GPTConfig
from llm.model.finetune import FinetuneOptions
from llm.model.gpt import GPT
from llm.model.layers import rotary_angles
from llm.model.lora import adapt, trained_weights
from llm.sealed import Plain

TRAINING = "training.safetensors"


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
    template: Plain = field(default_factory=dict)  # of a chat: llm.data.template; empty: none
    finetune: FinetuneOptions | None = None  # of a checkpoint that holds only what was trained
    base: Base | None = None  # the weights that it belongs to
    context: int | None = None  # tokens that init_from was made for, if more than the block_size
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
        files, state, identity = manifest.files, manifest.state, manifest.identity
        known = WEIGHTS in files and files.keys() <= {WEIGHTS, TRAINING}
        require(known, f"{path / MANIFEST} has no usable files")
        return cls(
            path, manifest.step, model, tokenizer, state, identity, files,
            template=manifest.template, finetune=manifest.finetune, base=manifest.base,
            context=manifest.context,
        )  # fmt: skip

    @functools.cached_property
    def shapes(self) -> Shapes:
        """The shapes of the weights, which follow from the options."""
        return weight_shapes(self.model, self.finetune)

    def weights(self) -> dict[str, Tensor]:
        """The tensors of ``GPT.state_dict()``, or only those that were trained.

        Raises :class:`llm.errors.Refused` unless all are there.
        """
        allowed: Allowed = {name: (shape, ("F32", "BF16")) for name, shape in self.shapes.items()}
        weights = self._read(WEIGHTS, allowed)
        for name in self.shapes:
            require(name in weights, f"{self.path / WEIGHTS} has no tensor {name}")
        return weights

    def training(self, custom: Layout | None = None) -> dict[str, Tensor]:
        """The optimizer's and the random generators' tensors, to continue training from.

        ``custom``: the state of a custom optimizer; None for a built-in one. Raises
        :class:`llm.errors.Refused` if the checkpoint has only weights.
        """
        resumable = TRAINING in self.files
        require(resumable, f"{self.path} holds weights only, nothing to continue training from")
        return self._read(TRAINING, allowed_training(self.shapes, custom))

    def verify(self) -> None:
        """Compare the sha256 of every file; :class:`llm.errors.Refused` names a damaged one.

        Takes about a second per gigabyte, and no memory.
        """
        for name in self.files:
            self._verify(name)

    def load_model(self, device: torch.device) -> GPT:
        """The network with its weights, in evaluation mode, on ``device``.

        Raises :class:`llm.errors.Refused` if the checkpoint holds only what was trained of a base:
        :func:`llm.interchange.source.load_model` adds that.
        """
        whole = self.base is None
        require(whole, f"{self.path} has no weights of its own beside those that were trained")
        model = empty_model(self.model)
        # The tensors themselves become the weights: nothing is initialised or copied.
        weights = {name: tensor.float() for name, tensor in self.weights().items()}
        model.load_state_dict(weights, assign=True)
        model.cos, model.sin = rotary_angles(self.model)
        return model.to(device).eval()

    def load_into(self, model: GPT) -> None:
        """Copy the weights into those that ``model`` trains; see :func:`require_shapes`."""
        require_shapes(model, self.shapes, self.path)
        model.load_state_dict(self.weights(), strict=False)  # the names are compared above

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
        intact = digest == self.files[name]
        require(intact, f"{path} is damaged: its sha256 is not the recorded one")
        self.verified.add(name)

    def _read(self, name: str, allowed: Allowed) -> dict[str, Tensor]:
        self._verify(name)
        try:
            return read_tensors(self.path / name, allowed)
        except (OSError, safetensors.SafetensorError) as error:
            path = self.path / name
            raise Refused(f"{path} cannot be read: {reason_for(path, error)}") from None


class _SkipInit(TorchFunctionMode):
    """Skips torch.nn.init: on the meta device it imports a compiler, which takes a second."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


@contextmanager
def without_memory() -> Iterator[None]:
    """A network that is built inside is on torch's meta device: it has only names and shapes."""
    with torch.device("meta"), _SkipInit():
        yield


def empty_model(config: GPTConfig) -> GPT:
    """The network of ``config`` on torch's meta device."""
    with without_memory():
        return GPT(**asdict(config))


def weight_shapes(config: GPTConfig, finetune: FinetuneOptions | None = None) -> Shapes:
    """The name and shape of every weight of the network, or of those that ``finetune`` trains."""
    model = empty_model(config)
    trained = trained_weights(model if finetune is None else adapt(model, finetune))
    return {name: tuple(tensor.shape) for name, tensor in trained.items()}


def require_shapes(model: GPT, shapes: Shapes, path: Path) -> None:
    """Raise :class:`llm.errors.Refused` naming the first of the weights in ``path`` that ``model``
    does not train in this shape.
    """
    needed = {name: tuple(tensor.shape) for name, tensor in trained_weights(model).items()}
    for name in needed | shapes:
        require(name in shapes, f"{path} has no tensor {name}")
        require(name in needed, f"{path} has a tensor {name} that this model lacks")
        require(
            shapes[name] == needed[name],
            f"{path}: {name} has shape {shapes[name]}, this model needs {needed[name]}",
        )
