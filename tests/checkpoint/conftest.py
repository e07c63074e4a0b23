"""A checkpoint of the tiny network, and ways to change it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from llm.checkpoint.checkpoint import MANIFEST, WEIGHTS
from llm.checkpoint.folder import CheckpointFolder
from llm.data.dataset import Dataset
from llm.model.gpt import GPT
from llm.sealed import sealed

STATE = {"progress": {"step": 4, "val_loss": 1.5}, "scaler": {}, "run_id": "abcd1234"}
IDENTITY = {"config_digest": "c" * 64, "data_digest": "d" * 64}
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(tmp_path: Path, tiny_model: GPT, dataset: Dataset) -> CheckpointFolder:
    (tmp_path / "run").mkdir()
    return CheckpointFolder(tmp_path / "run", 2, tiny_model.config, dataset.tokenizer, IDENTITY)


@pytest.fixture
def training() -> dict[str, Tensor]:
    return {"optimizer/norm.weight/step": torch.tensor(4.0), "random/cpu": torch.get_rng_state()}


@pytest.fixture
def save(
    folder: CheckpointFolder, tiny_model: GPT, training: dict[str, Tensor]
) -> Callable[[int], Path]:
    """Save a checkpoint of a step, and return its path."""
    return lambda step: folder.save(step, tiny_model.state_dict(), training, STATE)


@pytest.fixture
def saved(save: Callable[[int], Path]) -> Path:
    return save(4)


def names(folder: CheckpointFolder) -> list[str]:
    return sorted(path.name for path in folder.folder.iterdir())


def edit(path: Path, change: Edit) -> None:
    """Change the manifest of a checkpoint, and its digest with it."""
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    del manifest["digest"]
    change(manifest)
    (path / MANIFEST).write_text(sealed(manifest), encoding="utf-8")


def replace_file(path: Path, name: str, raw: bytes) -> None:
    """Change a file of tensors, and its digest in the manifest."""
    (path / name).write_bytes(raw)
    edit(path, lambda m: m["files"].update({name: hashlib.sha256(raw).hexdigest()}))


def edit_tensors(path: Path, change: Edit, name: str = WEIGHTS) -> None:
    """Change the tensors of a file, and its digest."""
    tensors = safetensors.torch.load_file(path / name)
    change(tensors)
    replace_file(path, name, safetensors.torch.save(tensors))


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
