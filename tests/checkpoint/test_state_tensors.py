"""Weights and optimizer state of each kind are read as they were, and nothing else is."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llm.checkpoint.checkpoint import Checkpoint
from llm.checkpoint.folder import CheckpointFolder
from llm.errors import Refused
from llm.model.gpt import GPT
from tests.checkpoint.conftest import STATE, Edit, assert_equal, replace_weights

NAME = "optimizer/embed.weight"


def kept(shape: torch.Size, bits: int, name: str = NAME) -> dict[str, Tensor]:
    """What AdamW keeps for the embedding, or another parameter."""
    blocks = -(-math.prod(shape) // 256)
    found = {f"{name}/step": torch.tensor(3.0)}
    for key in ("exp_avg", "exp_avg_sq"):
        if bits == 32:
            found[f"{name}/{key}"] = torch.randn(shape)
        else:
            found[f"{name}/{key}"] = torch.randint(256, shape, dtype=torch.uint8)
            found[f"{name}/{key}_scale"] = torch.rand(blocks)
    return found


def read(folder: CheckpointFolder, model: GPT, training: dict[str, Tensor]) -> dict[str, Tensor]:
    return Checkpoint.open(folder.save(4, model.state_dict(), training, STATE)).training()


@pytest.mark.parametrize("bits", [32, 8])
def test_state_of_both_sizes_is_read_bit_by_bit(
    folder: CheckpointFolder, tiny_model: GPT, bits: int
) -> None:
    shape = tiny_model.embed.weight.shape
    of_norm = kept(tiny_model.norm.weight.shape, bits, "optimizer/norm.weight")  # a part of a block
    training = kept(shape, bits) | of_norm
    assert_equal(read(folder, tiny_model, training), training)
    momentum = {f"{NAME}/momentum": torch.randn(shape)}
    assert_equal(read(folder, tiny_model, momentum), momentum)


def changed(key: str, tensor: Tensor) -> Edit:
    return lambda state: state.update({f"{NAME}/{key}": tensor.clone()})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: changed("exp_avg", s[f"{NAME}/exp_avg"].half())(s),
         "exp_avg is F16, and F32 or U8 expected"),
        (lambda s: changed("exp_avg_sq", s[f"{NAME}/exp_avg"].bfloat16())(s),
         "exp_avg_sq is BF16, and F32 or U8 expected"),
        (lambda s: changed("exp_avg", s[f"{NAME}/exp_avg"].char())(s), "exp_avg is I8, and"),
        (lambda s: changed("exp_avg", s[f"{NAME}/exp_avg"][1:])(s), "exp_avg has shape"),
        (lambda s: changed("momentum", s[f"{NAME}/exp_avg"])(s), "momentum is U8, and F32"),
        (changed("step", torch.tensor(3, dtype=torch.uint8)), "step is U8, and F32 expected"),
        (changed("step", torch.ones(1)), r"step has shape \(1,\), this model needs \(\)"),
        (lambda s: changed("exp_avg_scale", s[f"{NAME}/exp_avg_scale"][1:])(s),
         "exp_avg_scale has shape"),
        (lambda s: changed("exp_avg_scale", s[f"{NAME}/exp_avg"])(s), "exp_avg_scale has shape"),
        (lambda s: changed("exp_avg_scale", s[f"{NAME}/exp_avg_scale"].double())(s),
         "exp_avg_scale is F64, and F32 expected"),
        (lambda s: s[f"{NAME}/exp_avg_scale"].fill_(torch.nan), "values that are not finite"),
        (changed("step_scale", torch.ones(1)), "step_scale that this model lacks"),
        (changed("_scale", torch.ones(1)), "_scale that this model lacks"),
        (lambda s: s.update({"optimizer/no.weight/exp_avg_scale": torch.ones(1)}),
         "exp_avg_scale that this model lacks"),
        (lambda s: s.update({"embed.weight/exp_avg_scale": torch.ones(1)}), "lacks"),
    ],
)  # fmt: skip
def test_any_other_state_is_refused_by_name(
    folder: CheckpointFolder, tiny_model: GPT, change: Edit, named: str
) -> None:
    training = kept(tiny_model.embed.weight.shape, 8)
    change(training)
    with pytest.raises(Refused, match=named):
        read(folder, tiny_model, training)


def test_weights_in_bfloat16_are_read_as_they_are(
    folder: CheckpointFolder, tiny_model: GPT, training: dict[str, Tensor]
) -> None:
    weights = {name: tensor.bfloat16() for name, tensor in tiny_model.state_dict().items()}
    found = Checkpoint.open(folder.save(4, weights, training, STATE))
    assert_equal(found.weights(), weights)
    loaded = found.load_model(torch.device("cpu"))
    assert_equal(loaded.state_dict(), {name: tensor.float() for name, tensor in weights.items()})


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.uint8], ids=str)
def test_weights_of_another_type_are_refused(saved: Path, dtype: torch.dtype) -> None:
    replace_weights(saved, lambda t: t.update({"norm.weight": t["norm.weight"].to(dtype)}))
    with pytest.raises(Refused, match=r"norm\.weight is \w+, and F32 or BF16 expected"):
        Checkpoint.open(saved).weights()
