"""Random rounding is right on average, and so is training in bfloat16."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llm.model.gpt import GPT
from llm.training import rounding
from llm.training.optimizer import Optimizer, adamw, muon
from llm.training.precision import to_precision
from llm.training.rounding import round_at_random_

TINIEST, LARGEST = 2.0**-133, (2 - 2**-7) * 2.0**127  # of bfloat16
Build = Callable[..., Optimizer]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def rounded(value: float, times: int) -> Tensor:
    return round_at_random_(torch.full((times,), value))


@pytest.mark.parametrize("value", [0.0, -0.0, -3.0, 1.0078125, TINIEST, -TINIEST, LARGEST])
def test_a_value_of_bfloat16_stays(value: float) -> None:
    found = rounded(value, 10_000)
    assert torch.equal(found, torch.full((10_000,), value))
    assert torch.equal(found.signbit(), torch.full((10_000,), value).signbit())


@pytest.mark.parametrize("share", [0.5, 0.9, 2**-10, 1 - 2**-10])
@pytest.mark.parametrize("low", [1.0, -1.0, 1.9921875, 0.0, -6e-39, 3e37], ids=str)
def test_the_mean_is_the_value(low: float, share: float) -> None:
    low = float(torch.tensor(low).bfloat16())
    high = float((torch.tensor(low).bfloat16().view(torch.int16) + 1).view(torch.bfloat16))
    value, times = float(torch.tensor(low + share * (high - low))), 40_000
    found = (rounded(value, times).double() - low) / (high - low)  # 0 or 1
    assert set(found.tolist()) <= {0.0, 1.0}
    deviation = (share * (1 - share) / times) ** 0.5
    assert abs(float(found.mean()) - share) < 4 * deviation


def test_each_number_is_rounded_independently() -> None:
    for count in (1, 2, 3, 5, 8, 1001):
        assert round_at_random_(torch.ones(count)).shape == (count,)
    up = round_at_random_(torch.full((50, 401), 1 + 2**-8)) > 1
    assert abs(float(up.float().mean()) - 0.5) < 0.02
    together = torch.corrcoef(up[:, :400].reshape(-1, 4).T.float()).fill_diagonal_(0)
    assert together.abs().max() < 0.06


def test_infinities_and_nan_stay() -> None:
    patterns = torch.tensor([0x7F800000, -0x800000, 0x7FC00000, 0x7FFFFFFF, -1], dtype=torch.int32)
    values = patterns.view(torch.float32).repeat(2000)
    found = round_at_random_(values.clone())
    assert torch.equal(found.isnan(), values.isnan())
    assert torch.equal(found[~found.isnan()], values[~values.isnan()])
    assert set(rounded(torch.finfo(torch.float32).max, 1000).tolist()) <= {LARGEST, torch.inf}


def moved(build: Build, dtype: torch.dtype, state_bits: int) -> dict[str, Tensor]:
    """How far one step moves weights of 1: less than half the distance to the next bfloat16."""
    torch.manual_seed(1)
    model = GPT(n_layer=1, n_embed=128, head_size=32, vocab_size=64)
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)
    to_precision(model, dtype)
    lr = 4e-4 if build is adamw else 1e-3
    optimizer = build(model, lr=lr, weight_decay=0.0, betas=[0.9, 0.95], state_bits=state_bits)
    for parameter in model.parameters():
        parameter.grad = torch.rand(parameter.shape).add_(0.5).to(dtype)
    optimizer.step()
    return {name: p.detach().float() - 1 for name, p in model.named_parameters() if p.dim() == 2}


@pytest.mark.parametrize("state_bits", [32, 8])
@pytest.mark.parametrize("build", [adamw, muon])
def test_a_step_too_small_for_bfloat16_is_made_on_average(
    build: Build, state_bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "PORTION", 4096)
    wanted = moved(build, torch.float32, state_bits)
    found = moved(build, torch.bfloat16, state_bits)
    for name, step in wanted.items():
        assert step.abs().max() < 2**-9, name
        share = (found[name] * step).sum() / step.square().sum()
        assert float(share) == pytest.approx(1, abs=0.15), name
