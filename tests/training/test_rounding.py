"""Rounding at random is right on average, and so is training in bfloat16."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llm.model.gpt import GPT
from llm.training import rounding
from llm.training.optimizer import Optimizer, adamw, muon
from llm.training.precision import to_precision
from llm.training.rounding import in_float32, portions, round_at_random_

TINIEST, LARGEST = 2.0**-133, (2 - 2**-7) * 2.0**127  # of bfloat16
Build = Callable[..., Optimizer]
EXACT = [0.0, -0.0, 1.0, -3.0, 1.0078125, 2.0**99, TINIEST, -TINIEST, LARGEST, -LARGEST]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def rounded(value: float, times: int) -> Tensor:
    return round_at_random_(torch.full((times,), value))


@pytest.mark.parametrize("value", EXACT)
def test_what_bfloat16_has_is_kept(value: float) -> None:
    found = rounded(value, 10_000)
    assert torch.equal(found, torch.full((10_000,), value).bfloat16().float())
    assert torch.equal(found.signbit(), torch.full((10_000,), value).signbit())


@pytest.mark.parametrize("share", [0.5, 0.25, 0.9, 2**-10, 1 - 2**-10])
@pytest.mark.parametrize("low", [1.0, -1.0, 1.9921875, 0.0, -6e-39, 3e37], ids=str)
def test_the_mean_is_the_value(low: float, share: float) -> None:
    low = float(torch.tensor(low).bfloat16())
    high = float((torch.tensor(low).bfloat16().view(torch.int16) + 1).view(torch.bfloat16))
    value, times = float(torch.tensor(low + share * (high - low))), 40_000
    found = (rounded(value, times).double() - low) / (high - low)  # 0 or 1 of a step
    assert set(found.tolist()) <= {0.0, 1.0}
    deviation = (share * (1 - share) / times) ** 0.5
    assert abs(float(found.mean()) - share) < 4 * deviation


def test_each_number_is_rounded_for_itself() -> None:
    for count in (1, 2, 3, 5, 8, 1001):
        assert round_at_random_(torch.ones(count)).shape == (count,)
    up = round_at_random_(torch.full((50, 401), 1 + 2**-8)) > 1
    assert abs(float(up.float().mean()) - 0.5) < 0.02
    together = torch.corrcoef(up[:, :400].reshape(-1, 4).T.float()).fill_diagonal_(0)
    assert together.abs().max() < 0.06, "no number decides for its neighbours"


def test_no_extreme_value_becomes_another() -> None:
    patterns = torch.tensor([0x7F800000, -0x800000, 0x7FC00000, 0x7FFFFFFF, -1], dtype=torch.int32)
    values = patterns.view(torch.float32).repeat(2000)  # infinities, and NaNs of all kinds
    found = round_at_random_(values.clone())
    assert torch.equal(found.isnan(), values.isnan())
    assert torch.equal(found[~found.isnan()], values[~values.isnan()])
    beyond = rounded(torch.finfo(torch.float32).max, 1000)
    assert set(beyond.tolist()) <= {LARGEST, torch.inf}, "as the nearest bfloat16 would be"


def test_it_draws_from_torchs_generator_whose_state_is_saved() -> None:
    state = torch.get_rng_state()
    first, second = rounded(1.001, 1000), rounded(1.001, 1000)
    torch.set_rng_state(state)
    assert torch.equal(rounded(1.001, 1000), first)
    assert not torch.equal(first, second)


def test_weights_in_float32_are_changed_as_they_are() -> None:
    weights = torch.ones(8)
    with in_float32(weights) as wide:
        assert wide is weights
        wide.add_(1e-6)
    assert torch.equal(weights, torch.ones(8) + 1e-6)


def test_portions_are_views_of_all_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "PORTION", 256)
    one, other = torch.zeros(30, 20), torch.arange(600).view(600)
    sizes = []
    for part, numbers in portions(one, other):
        part.copy_(numbers)
        sizes.append(part.numel())
    assert sizes == [256, 256, 88]
    assert torch.equal(one.flatten().long(), other)


def moved(build: Build, dtype: torch.dtype, state_bits: int) -> dict[str, Tensor]:
    """By how much one step moves weights of 1: less than half as far as the next bfloat16 is."""
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
    assert all(parameter.dtype == dtype for parameter in model.parameters())
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
        assert not torch.equal(found[name], step)
        share = (found[name] * step).sum() / step.square().sum()
        assert float(share) == pytest.approx(1, abs=0.15), name


def losses(dtype: torch.dtype, **options: object) -> list[float]:
    """Of a tiny network that learns a text by heart."""
    torch.manual_seed(4)
    model = GPT(n_layer=1, n_embed=64, head_size=32, vocab_size=32, block_size=32)
    to_precision(model, dtype)
    settings = {"lr": 1e-3, "weight_decay": 0.1, "betas": [0.9, 0.95]} | options
    optimizer = adamw(model, **settings)  # type: ignore[arg-type]
    text = torch.randint(32, (2, 33), generator=torch.Generator().manual_seed(1))
    found = []
    for _ in range(80):
        loss = model(text[:, :-1].contiguous(), text[:, 1:].contiguous())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def test_a_network_in_bfloat16_learns_what_it_learns_in_float32() -> None:
    wanted, found = losses(torch.float32), losses(torch.bfloat16)
    assert wanted[0] > 3.3 and wanted[-1] < 0.3
    assert found[0] == pytest.approx(wanted[0], rel=0.01)
    assert found[40] == pytest.approx(wanted[40], rel=0.1)
    assert found[-1] < 1.2 * wanted[-1]


def test_with_the_nearest_bfloat16_it_would_learn_less(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = {"lr": 3e-5}
    at_random = losses(torch.bfloat16, **slow)
    monkeypatch.setattr(rounding, "round_at_random_", lambda values: values)
    nearest = losses(torch.bfloat16, **slow)
    assert losses(torch.float32, **slow)[-1] == pytest.approx(at_random[-1], rel=0.02)
    assert nearest[-1] > at_random[-1] + 0.1
