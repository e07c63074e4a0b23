"""AdamW in 8 bits computes what bitsandbytes' own optimizer computes, some numbers at a time."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from llm.errors import Refused
from llm.functional.sizes import BLOCK_8BIT, PORTION, SMALLEST_8BIT
from llm.model.gpt import GPT
from llm.training.optimizer import Optimizer, adamw, muon
from llm.training.precision import to_precision
from tests.conftest import HANGS, ROOT

OPTIONS: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "betas": [0.8, 0.95]}
# The smallest matrix with 8 bits, one that ends within a block, two that end within a portion.
SHAPES = [(64, 64), (67, 65), (1, PORTION + 300), (3, PORTION)]


class Matrices(nn.Module):
    """Some matrices as weights that decay."""

    def __init__(self, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        drawn = (torch.randn(shape, generator=generator) for shape in shapes)
        layers = [nn.Embedding.from_pretrained(values, freeze=False) for values in drawn]
        self.layers = nn.ModuleList(layers)

    def set_gradients(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = gradient.mul_(gradient.abs()).to(parameter.dtype)


def stepped(model: Matrices, optimizer: Optimizer, steps: int = 3) -> None:
    for seed in range(steps):
        model.set_gradients(seed)
        optimizer.step()


def test_it_equals_bitsandbytes_own_optimizer() -> None:
    from bitsandbytes.optim import AdamW8bit

    ours, theirs = Matrices(*SHAPES), Matrices(*SHAPES)
    optimizer = adamw(ours, **OPTIONS, state_bits=8)
    reference = AdamW8bit(theirs.parameters(), lr=1e-2, weight_decay=0.1, betas=(0.8, 0.95))
    stepped(ours, optimizer)
    stepped(theirs, reference)
    for parameter, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        found, wanted = optimizer.state_of(parameter), reference.state[its]
        assert torch.equal(parameter, its), parameter.shape
        assert int(found["step"]) == wanted["step"] == 3
        assert torch.equal(found["exp_avg"], wanted["state1"])
        assert torch.equal(found["exp_avg_sq"], wanted["state2"])
        assert torch.equal(found["exp_avg_scale"], wanted["absmax1"])
        assert torch.equal(found["exp_avg_sq_scale"], wanted["absmax2"])


def eight_bit_names(optimizer: Optimizer) -> set[str]:
    """The parameters with state in 8 bits."""
    layout = optimizer.full_layout()
    return {name.split("/")[1] for name, (_, dtype) in layout.items() if dtype == torch.uint8}


def network() -> GPT:
    torch.manual_seed(3)
    return GPT(n_layer=1, n_embed=64, head_size=32, vocab_size=70, tie_embeddings=False)


def test_small_parameters_and_muons_momentum_stay_in_32_bits() -> None:
    matrices = Matrices((SMALLEST_8BIT - 1, 1), (SMALLEST_8BIT, 1))
    assert eight_bit_names(adamw(matrices, **OPTIONS, state_bits=8)) == {"layers.1.weight"}
    found = eight_bit_names(muon(network(), **OPTIONS, state_bits=8))
    assert found == {"embed.weight", "head.weight"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("build", [adamw, muon])
def test_it_runs_on_tensors_without_data(build: Any, dtype: torch.dtype) -> None:
    with FakeTensorMode():
        model = to_precision(network(), dtype)
        optimizer = build(model, **OPTIONS, state_bits=8)
        tokens = torch.zeros((2, 16), dtype=torch.long)
        for _ in range(2):
            model(tokens).sum().backward()  # a loss needs the values of its targets
            optimizer.step()
        state = optimizer.state_of(model.embed.weight)
    assert state["exp_avg"].dtype == torch.uint8
    assert state["exp_avg_scale"].shape == (-(-70 * 64 // BLOCK_8BIT),)


def test_without_the_library_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bitsandbytes", "bitsandbytes.functional"):
        monkeypatch.setitem(sys.modules, name, None)
    wanted = "^optimizer.state_bits=8 needs bitsandbytes: pip install -c constraints.txt bitsandbyt"
    with pytest.raises(Refused, match=wanted):
        adamw(Matrices((64, 64)), **OPTIONS, state_bits=8)


def test_a_step_imports_neither_the_library_nor_torchs_compiler() -> None:
    code = (
        "import sys, torch; from llm.training.optimizer import adamw;"
        "adamw(torch.nn.Linear(64, 64), lr=1, weight_decay=0, betas=[0, 0]).step();"
        "sys.exit(bool({'bitsandbytes', 'torch._dynamo'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=HANGS).returncode == 0
