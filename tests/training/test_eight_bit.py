"""AdamW in 8 bits is bitsandbytes' own, portion by portion."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from llm.errors import Refused
from llm.functional.sizes import BLOCK_8BIT as BLOCK
from llm.functional.sizes import PORTION
from llm.functional.sizes import SMALLEST_8BIT as SMALLEST
from llm.model.gpt import GPT
from llm.training import rounding
from llm.training.optimizer import Optimizer, adamw, muon
from llm.training.precision import to_precision
from tests.conftest import HANGS, ROOT

OPTIONS: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "betas": [0.8, 0.95]}
# A matrix as small as is kept in 8 bits, one that ends amid a block, two that do amid a portion.
SHAPES = [(64, 64), (67, 65), (1, PORTION + 300), (3, PORTION)]


class Matrices(nn.Module):
    """Some matrices, as weights that decay; ``seed`` is that of their values."""

    def __init__(self, shapes: list[tuple[int, ...]], seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        drawn = (torch.randn(shape, generator=generator) for shape in shapes)
        layers = [nn.Embedding.from_pretrained(values, freeze=False) for values in drawn]
        self.layers = nn.ModuleList(layers)
        self.all = [layer.weight for layer in layers]

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

    ours, theirs = Matrices(SHAPES), Matrices(SHAPES)
    optimizer = adamw(ours, **OPTIONS, state_bits=8)
    reference = AdamW8bit(theirs.parameters(), lr=1e-2, weight_decay=0.1, betas=(0.8, 0.95))
    stepped(ours, optimizer)
    stepped(theirs, reference)
    for parameter, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        kept, wanted = optimizer.state_of(parameter), reference.state[its]
        assert torch.equal(parameter, its), parameter.shape
        assert int(kept["step"]) == wanted["step"] == 3
        assert torch.equal(kept["exp_avg"], wanted["state1"])
        assert torch.equal(kept["exp_avg_sq"], wanted["state2"])
        assert torch.equal(kept["exp_avg_scale"], wanted["absmax1"])
        assert torch.equal(kept["exp_avg_sq_scale"], wanted["absmax2"])


def test_it_comes_out_near_32_bits() -> None:
    models = [Matrices([(80, 90)]) for _ in range(2)]
    for model, bits in zip(models, (32, 8), strict=True):
        stepped(model, adamw(model, **OPTIONS, state_bits=bits), steps=20)
    one, other = (next(model.parameters()).detach() for model in models)
    moved = one - next(Matrices([(80, 90)]).parameters())
    assert 0 < (one - other).norm() < 0.1 * moved.norm()


def test_what_is_kept_is_a_quarter_as_large() -> None:
    sizes = {}
    for bits in (32, 8):
        model = Matrices([(640, 512)])
        optimizer = adamw(model, **OPTIONS, state_bits=bits)
        stepped(model, optimizer, steps=1)
        kept = optimizer.state_of(next(model.parameters()))
        assert {name: (tuple(t.shape), t.dtype) for name, t in kept.items()} == optimizer.layout(
            next(model.parameters())
        )
        sizes[bits] = sum(tensor.nbytes for tensor in kept.values())
    assert 0.25 * sizes[32] < sizes[8] < 0.26 * sizes[32]


def kinds(optimizer: Optimizer, model: nn.Module) -> dict[str, set[torch.dtype]]:
    return {
        name: {dtype for key, (_, dtype) in optimizer.layout(p).items() if key != "step"}
        for name, p in model.named_parameters()
    }


def test_small_parameters_step_in_32_bits() -> None:
    shapes = [(SMALLEST - 1, 1), (SMALLEST, 1)]
    ours, theirs = Matrices(shapes), Matrices(shapes)
    optimizer = adamw(ours, **OPTIONS, state_bits=8)
    stepped(ours, optimizer)
    stepped(theirs, adamw(theirs, **OPTIONS))
    assert [torch.uint8 in found for found in kinds(optimizer, ours).values()] == [False, True]
    assert torch.equal(ours.all[0], theirs.all[0])
    assert not torch.equal(ours.all[1], theirs.all[1])


def network() -> GPT:
    torch.manual_seed(3)
    return GPT(n_layer=1, n_embed=64, head_size=32, vocab_size=70, tie_embeddings=False)


def test_muon_keeps_its_momentum_in_32_bits_and_the_rest_in_8() -> None:
    model = network()
    found = kinds(muon(model, **OPTIONS, state_bits=8), model)
    eight, whole = {torch.uint8, torch.float32}, {torch.float32}
    assert found.pop("embed.weight") == found.pop("head.weight") == eight
    assert all(dtypes == whole for dtypes in found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("build", [adamw, muon])
def test_it_runs_on_tensors_without_data(build: Any, dtype: torch.dtype) -> None:
    with FakeTensorMode():
        model = network()
        to_precision(model, dtype)
        optimizer = build(model, **OPTIONS, state_bits=8)
        tokens = torch.zeros((2, 16), dtype=torch.long)
        for _ in range(2):
            model(tokens, tokens).backward()
            optimizer.step()
        kept = optimizer.state_of(model.embed.weight)
    assert kept["exp_avg"].dtype == torch.uint8
    assert kept["exp_avg_scale"].shape == (-(-70 * 64 // BLOCK),)


def test_bfloat16_weights_are_updated_from_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "PORTION", 1024)
    monkeypatch.setattr(rounding, "round_at_random_", lambda values: values)  # the nearest instead
    models = [Matrices([(67, 65)], seed=1) for _ in range(2)]
    for model in models:
        to_precision(model, torch.bfloat16)
    to_precision(models[1], torch.float32)
    optimizers = [adamw(model, **OPTIONS, state_bits=8) for model in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        models[0].set_gradients(1)
        gradient = models[0].all[0].grad
        assert gradient is not None
        model.all[0].grad = gradient.to(model.all[0].dtype)
        optimizer.step()
    assert torch.equal(models[0].all[0], models[1].all[0].bfloat16())


def test_without_the_library_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bitsandbytes", "bitsandbytes.functional"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Refused) as refusal:
        adamw(Matrices([(64, 64)]), **OPTIONS, state_bits=8)
    assert str(refusal.value) == (
        "optimizer.state_bits=8 needs bitsandbytes: pip install -c constraints.txt bitsandbytes"
    )
    adamw(Matrices([(64, 64)]), **OPTIONS)


def test_neither_the_library_nor_torchs_compiler_is_imported_unless_asked_for() -> None:
    code = (
        "import sys, torch; from llm.training.optimizer import adamw;"
        "adamw(torch.nn.Linear(64, 64), lr=1, weight_decay=0, betas=[0, 0]).step();"
        "sys.exit(bool({'bitsandbytes', 'torch._dynamo'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=HANGS).returncode == 0


def test_a_parameter_that_lies_in_another_order_is_not_changed_unseen() -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(100, 80).mT)
    model.weight.grad = torch.ones(80, 100)
    with pytest.raises(RuntimeError, match="view"):
        adamw(model, **OPTIONS, state_bits=8).step()
