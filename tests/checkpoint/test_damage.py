"""A manifest or a tensor that does not belong to the model is refused by name."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llm.checkpoint.checkpoint import MANIFEST, TRAINING, WEIGHTS, Checkpoint
from llm.checkpoint.folder import CheckpointFolder
from llm.data.tokenizer import ByteTokenizer
from llm.errors import Refused
from llm.model.gpt import GPT
from tests.checkpoint.conftest import STATE, Edit, assert_equal, edit, edit_tensors

NAME = "optimizer/embed.weight"


def test_a_missing_file_is_refused_by_name(saved: Path) -> None:
    checkpoint = Checkpoint.open(saved)
    (saved / WEIGHTS).unlink()
    with pytest.raises(Refused, match=WEIGHTS):
        checkpoint.weights()
    (saved / MANIFEST).unlink()
    with pytest.raises(Refused, match=f"is not a checkpoint: it has no {MANIFEST}"):
        Checkpoint.open(saved)


@pytest.mark.parametrize("version", [0, -1, True, "1", 1.0, None])
def test_an_unknown_format_is_refused(saved: Path, version: Any) -> None:
    edit(saved, lambda manifest: manifest.update(format_version=version))
    with pytest.raises(Refused, match="not a checkpoint of this program"):
        Checkpoint.open(saved)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: m.pop("format_version"), "format_version=None"),
        (lambda m: m.update(step="4"), "step=4 must be a whole number"),
        (lambda m: m.pop("state"), "state is missing"),
        (lambda m: m.update(identity=None), "identity=null must be a section"),
        (lambda m: m["model"].update(_target_="os.system"), "_target_ is an unknown key"),
        (lambda m: m["model"].update(norm="${oc.env:HOME}"), r"model\.norm=.* must be one of"),
        (lambda m: m["model"].update(n_embed=10**9), r"model\.n_embed=1000000000 must be"),
        (lambda m: m["model"].update(vocab_size=None), r"model\.vocab_size is missing"),
        (lambda m: m["tokenizer"].update(kind="pickle"), "unknown tokenizer 'pickle'"),
        (lambda m: m.update(tokenizer=ByteTokenizer().to_json()), "tokenizer of 257 ids and a "),
        (lambda m: m.update(files={}), "no usable files"),
    ],
)
def test_a_wrong_manifest_is_refused_by_name(saved: Path, change: Edit, named: str) -> None:
    edit(saved, change)
    with pytest.raises(Refused, match=named):
        Checkpoint.open(saved)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("norm.weight"), r"has no tensor norm\.weight"),
        (lambda t: t.update(stranger=torch.ones(1)), "has a tensor stranger that this model lacks"),
        (lambda t: t.update({"norm.weight": torch.ones(33)}),
         r"norm\.weight has shape \(33,\), this model needs \(32,\)"),
        (lambda t: t.update({"norm.weight": torch.ones(32, dtype=torch.float16)}),
         r"norm\.weight is F16, and F32 or BF16 expected"),
        (lambda t: t["norm.weight"].fill_(torch.nan), r"norm\.weight has values that are not f"),
    ],
)  # fmt: skip
def test_wrong_weights_are_refused_by_name_and_leave_the_model_as_it_was(
    saved: Path, tiny_model: GPT, change: Edit, named: str
) -> None:
    edit_tensors(saved, change)
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    with pytest.raises(Refused, match=named):
        Checkpoint.open(saved).load_into(tiny_model)
    assert_equal(tiny_model.state_dict(), before)


def test_weights_in_bfloat16_are_read_as_they_are(
    folder: CheckpointFolder, tiny_model: GPT, training: dict[str, Tensor]
) -> None:
    weights = {name: tensor.bfloat16() for name, tensor in tiny_model.state_dict().items()}
    checkpoint = Checkpoint.open(folder.save(4, weights, training, STATE))
    assert_equal(checkpoint.weights(), weights)
    loaded = checkpoint.load_model(torch.device("cpu"))
    assert_equal(loaded.state_dict(), {name: tensor.float() for name, tensor in weights.items()})


def adamw_state(shape: torch.Size, bits: int, name: str = NAME) -> dict[str, Tensor]:
    """AdamW's state of one parameter, in float32 or in 8 bits."""
    blocks = -(-math.prod(shape) // 256)
    state = {f"{name}/step": torch.tensor(3.0)}
    for key in ("exp_avg", "exp_avg_sq"):
        if bits == 32:
            state[f"{name}/{key}"] = torch.randn(shape)
        else:
            state[f"{name}/{key}"] = torch.randint(256, shape, dtype=torch.uint8)
            state[f"{name}/{key}_scale"] = torch.rand(blocks)
    return state


@pytest.mark.parametrize("bits", [32, 8])
def test_optimizer_state_is_read_bit_by_bit(
    folder: CheckpointFolder, tiny_model: GPT, bits: int
) -> None:
    shape = tiny_model.embed.weight.shape
    less_than_a_block = tiny_model.norm.weight.shape
    training = adamw_state(shape, bits)
    training |= adamw_state(less_than_a_block, bits, "optimizer/norm.weight")
    training[f"{NAME}/momentum"] = torch.randn(shape)
    path = folder.save(4, tiny_model.state_dict(), training, STATE)
    assert_equal(Checkpoint.open(path).training(), training)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("exp_avg", torch.Tensor.half, "exp_avg is F16, and F32 or U8 expected"),
        ("exp_avg", torch.Tensor.char, "exp_avg is I8, and F32 or U8 expected"),
        ("exp_avg", lambda t: t[1:].clone(), r"exp_avg has shape \(\d+, 32\), this model needs"),
        ("exp_avg", lambda t: torch.tensor(1.0), r"exp_avg has shape \(\)"),
        ("exp_avg_scale", lambda t: t[1:].clone(), "exp_avg_scale has shape"),
        ("exp_avg_scale", torch.Tensor.double, "exp_avg_scale is F64, and F32 expected"),
        ("exp_avg_scale", lambda t: t * torch.nan, "values that are not finite"),
        ("step", torch.Tensor.byte, "step is U8, and F32 expected"),
        ("step", lambda t: t.view(1), r"step has shape \(1,\), this model needs \(\)"),
    ],
)
def test_wrong_optimizer_state_is_refused_by_name(
    folder: CheckpointFolder, tiny_model: GPT, key: str, change: Any, message: str
) -> None:
    state = adamw_state(tiny_model.embed.weight.shape, 8)
    state[f"{NAME}/{key}"] = change(state[f"{NAME}/{key}"])
    path = folder.save(4, tiny_model.state_dict(), state, STATE)
    with pytest.raises(Refused, match=message):
        Checkpoint.open(path).training()


@pytest.mark.parametrize(
    "name", [f"{NAME}/step_scale", "optimizer/no.weight/exp_avg", "embed.weight/exp_avg"]
)
def test_state_of_another_name_is_refused(saved: Path, name: str) -> None:
    edit_tensors(saved, lambda state: state.update({name: torch.ones(1)}), TRAINING)
    with pytest.raises(Refused, match=f"has a tensor {name} that this model lacks"):
        Checkpoint.open(saved).training()
