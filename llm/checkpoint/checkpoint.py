"""Checkpoints: folders of tensors (safetensors) and plain values (JSON), each complete in itself.

    checkpoints/step-00000500/checkpoint.json       format, step, model, tokenizer, digests
                              model.safetensors     the weights
                              training.safetensors  optimizer and random state, to go on from
    checkpoints/best-00000400/                      weights of the lowest validation loss only
    checkpoints/last -> step-00000500, checkpoints/best -> best-00000400

A folder is written under another name and renamed, so that one with its final name is whole.
Nothing in it is unpickled or instantiated.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from llm.data.tokenizer import Tokenizer, from_json
from llm.errors import DiskError, Refused, require
from llm.model.config import GPTConfig
from llm.model.gpt import GPT

FORMAT_VERSION = 1
MANIFEST, WEIGHTS, TRAINING = "checkpoint.json", "model.safetensors", "training.safetensors"
Plain = dict[str, Any]  # strings, numbers, booleans, None, lists and dicts of them


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

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """Read and check ``path/checkpoint.json``; raises :class:`llm.errors.Refused`."""
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise Refused(f"{path} is not a checkpoint: it has no {MANIFEST}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise Refused(f"{path / MANIFEST} cannot be read: {error}") from None
        require(isinstance(manifest, dict), f"{path / MANIFEST} is not a JSON object")
        version = manifest.get("format_version")
        require(
            version == FORMAT_VERSION,
            f"{path} has format_version={version}: this version reads {FORMAT_VERSION}",
        )
        kinds = {
            "step": int,
            "model": dict,
            "tokenizer": dict,
            "state": dict,
            "identity": dict,
            "files": dict,
        }
        for key, kind in kinds.items():
            require(isinstance(manifest.get(key), kind), f"{path / MANIFEST} has no usable {key}")
        model = _model_config(manifest["model"], path)
        tokenizer = from_json(manifest["tokenizer"])
        require(
            tokenizer.vocab_size <= (model.vocab_size or 0),
            f"{path}: a tokenizer of {tokenizer.vocab_size} ids and a model of {model.vocab_size}",
        )
        known = {key: manifest[key] for key in ("step", "state", "identity", "files")}
        return cls(path=path, model=model, tokenizer=tokenizer, **known)

    def weights(self) -> dict[str, Tensor]:
        """The checked tensors of the model, named as :meth:`GPT.state_dict` names them."""
        return self._read(WEIGHTS)

    def training(self) -> dict[str, Tensor]:
        """The checked tensors to continue from; :class:`llm.errors.Refused` if there are none."""
        require(
            TRAINING in self.files,
            f"{self.path} holds weights only, nothing to continue training from",
        )
        return self._read(TRAINING)

    def verify(self) -> None:
        """Read every file once and compare its sha256; :class:`llm.errors.Refused` names a bad one.

        Takes a second or so per gigabyte, and no memory.
        """
        for name in self.files:
            try:
                with (self.path / name).open("rb") as file:
                    self._check_digest(name, hashlib.file_digest(file, "sha256").hexdigest())
            except OSError as error:
                raise Refused(f"{self.path / name} cannot be read: {error.strerror}") from None

    def load_model(self, device: torch.device) -> GPT:
        """The network with its weights, in evaluation mode, on ``device``."""
        model = GPT(**asdict(self.model))
        load_weights(model, self.weights(), str(self.path))
        return model.to(device).eval()

    def _check_digest(self, name: str, digest: str) -> None:
        right = digest == self.files.get(name)
        require(right, f"{self.path / name} is damaged: its sha256 is not the recorded one")

    def _read(self, name: str) -> dict[str, Tensor]:
        # Read once and hash those bytes: safetensors itself does not notice a flipped bit.
        try:
            raw = (self.path / name).read_bytes()
            self._check_digest(name, hashlib.sha256(raw).hexdigest())
            return safetensors.torch.load(raw)
        except (OSError, safetensors.SafetensorError) as error:
            raise Refused(f"{self.path / name} cannot be read: {error}") from None


def load_weights(model: GPT, weights: dict[str, Tensor], where: str) -> None:
    """Copy ``weights`` into ``model``.

    :class:`llm.errors.Refused` names the first tensor that does not fit, and ``where`` it is from.
    """
    own = model.state_dict()
    for name in own:
        require(name in weights, f"{where} has no tensor {name}")
        found, wanted = tuple(weights[name].shape), tuple(own[name].shape)
        require(found == wanted, f"{where}: {name} has shape {found}, this model needs {wanted}")
    extra = sorted(set(weights) - set(own))
    require(not extra, f"{where} has a tensor {extra[0] if extra else ''} that this model lacks")
    model.load_state_dict(weights)


def start_from(model: GPT, place: str) -> None:
    """Load the weights of ``init_from=place``: a run folder (its best) or a checkpoint."""
    origin = Checkpoint.open(find_checkpoint("init_from", place))
    load_weights(model, origin.weights(), str(origin.path))


# Options that came after the first checkpoints; where missing, their defaults change nothing.
LATER = {"loss", "hidden_size", "zero_init", "residual_scalars", "value_embeddings", "smear"}


def _model_config(saved: Plain, path: Path) -> GPTConfig:
    types = {field.name: field.type for field in fields(GPTConfig)}
    require(
        set(types) - LATER <= set(saved) <= set(types),
        f"{path / MANIFEST}: model has other keys than {', '.join(types)}",
    )
    for key, value in saved.items():
        allowed = get_args(types[key]) or (types[key],)
        right = type(value) in allowed or (float in allowed and type(value) is int)
        require(right, f"{path / MANIFEST}: model.{key}={value!r} has the wrong type")
    config = GPTConfig(**saved).resolve()
    require(config.vocab_size, f"{path / MANIFEST}: model.vocab_size is missing")
    return config


class CheckpointFolder:
    """The ``checkpoints/`` in a run's folder: saves, and keeps the newest ``keep_last``."""

    def __init__(
        self, run: Path, keep_last: int, model: GPTConfig, tokenizer: Tokenizer, identity: Plain
    ) -> None:
        self.folder, self.keep_last = run / "checkpoints", keep_last
        self.model, self.tokenizer, self.identity = model, tokenizer, identity

    def save(
        self, step: int, weights: dict[str, Tensor], training: dict[str, Tensor], state: Plain
    ) -> Path:
        """Publish ``step-N``, point ``last`` at it, then drop what is too old."""
        path = self.folder / f"step-{step:08d}"
        with _reported(path):
            self._publish(path, {WEIGHTS: weights, TRAINING: training}, step, state)
            self._point("last", path.name)
            for old in sorted(self.folder.glob("step-*"))[: -self.keep_last]:
                shutil.rmtree(old)
        return path

    def save_best(self, step: int, weights: dict[str, Tensor], state: Plain) -> Path:
        """Publish ``best-N`` (weights only), point ``best`` at it, then drop the one before."""
        path = self.folder / f"best-{step:08d}"
        with _reported(path):
            self._publish(path, {WEIGHTS: weights}, step, state)
            self._point("best", path.name)
            for old in self.folder.glob("best-*"):
                if old != path:
                    shutil.rmtree(old)
        return path

    def _publish(
        self, final: Path, files: dict[str, dict[str, Tensor]], step: int, state: Plain
    ) -> None:
        for rest in self.folder.glob(".*-*"):  # of a process that was killed while it wrote
            shutil.rmtree(rest, ignore_errors=True)
        temporary = final.with_name(f".{final.name}.{os.getpid()}")
        try:
            temporary.mkdir(parents=True)
            digests = {}
            for file, tensors in files.items():
                tensors = {
                    key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()
                }
                raw = safetensors.torch.save(tensors)
                digests[file] = hashlib.sha256(raw).hexdigest()
                _write(temporary / file, raw)
            manifest = {
                "format_version": FORMAT_VERSION,
                "step": step,
                "model": asdict(self.model),
                "state": state,
                "identity": self.identity,
                "files": digests,
                "tokenizer": self.tokenizer.to_json(),
            }
            _write(
                temporary / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode()
            )
            _sync(temporary)
            replaced = final.with_name(f".{final.name}.replaced")
            if final.exists():  # saved before, by a run that was then continued from an earlier one
                final.rename(replaced)
            temporary.rename(final)
            _sync(self.folder)
            shutil.rmtree(replaced, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _point(self, name: str, target: str) -> None:
        temporary = self.folder / f".{name}.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        os.replace(temporary, self.folder / name)


def find_checkpoint(key: str, typed: str) -> Path:
    """The folder meant by ``key=typed``: a checkpoint, ``checkpoints/``, or a run (its best).

    Raises :class:`llm.errors.Refused` saying what is missing, and naming the newest runs there are.
    """
    path = Path(typed)
    places = [path / kind for kind in ("", "checkpoints/best", "checkpoints/last", "best", "last")]
    for place in places:
        if os.path.isfile(place / MANIFEST):  # Path.is_file raises where a name is too long
            return place
    what = "holds no checkpoint" if os.path.exists(path) else "does not exist"
    newest = list(_newest_runs())
    hint = (
        f": the newest runs are {', '.join(newest)}"
        if newest
        else ": train one with python run_train.py"
    )
    raise Refused(f"{key}={typed} {what}{hint}")


def newest_checkpoint(run: Path) -> Path | None:
    """The one with the most steps that a run can continue from, or None."""
    found = sorted((run / "checkpoints").glob("step-*"))
    return found[-1] if found else None


def _newest_runs(count: int = 3) -> Iterator[str]:
    found = [p for depth in ("*", "*/*") for p in Path("outputs").glob(f"{depth}/checkpoints")]
    for path in sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)[:count]:
        yield str(path.parent)


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskError(f"{path} could not be written: {error.strerror}") from error


def _write(path: Path, raw: bytes) -> None:
    with path.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
