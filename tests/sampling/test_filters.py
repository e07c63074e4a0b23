"""Filters keep the tokens they promise to keep, and do not change what they keep."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm.sampling import filters
from llm.sampling.filters import BARRED, min_p, top_k, top_p

logits_of = st.lists(
    st.floats(-20, 20, width=32), min_size=1, max_size=30, unique=True
)  # fmt: skip
few = settings(max_examples=60, deadline=None)


def filtered(logits: Tensor, *how: Any) -> Tensor:
    """What the filters leave of one row, back among the whole vocabulary."""
    few, ids = filters.filtered(logits[None], *how)
    assert torch.equal(ids, ids.sort(dim=-1).values)
    return torch.full_like(logits, BARRED).scatter(0, ids[0], few[0])


def kept(logits: Tensor) -> list[int]:
    return (logits != BARRED).nonzero().flatten().tolist()


@few
@given(values=logits_of, k=st.integers(1, 40))
def test_top_k_keeps_the_k_highest_as_they_are(values: list[float], k: int) -> None:
    highest = sorted(range(len(values)), key=lambda i: -values[i])[:k]
    found = top_k(torch.tensor(values), k)
    assert kept(found) == sorted(highest)
    assert found[highest].tolist() == [values[i] for i in highest]


def test_top_k_keeps_what_ties_with_the_last() -> None:
    assert kept(top_k(torch.tensor([1.0, 3.0, 2.0, 2.0, 0.0]), 2)) == [1, 2, 3]


@few
@given(values=logits_of, p=st.floats(0.01, 1.0))
def test_top_p_keeps_the_fewest_of_the_highest_that_hold_p(values: list[float], p: float) -> None:
    total = math.fsum(map(math.exp, values))
    probability = [math.exp(value) / total for value in values]
    found = top_p(torch.tensor(values), p)
    inside = kept(found)
    ordered = sorted(range(len(values)), key=lambda i: -values[i])
    assert inside == sorted(ordered[: len(inside)])
    held = [probability[i] for i in ordered[: len(inside)]]
    assert math.fsum(held) >= p - 1e-5
    assert math.fsum(held[:-1]) < p + 1e-5
    assert found[inside].tolist() == [values[i] for i in inside]


@pytest.mark.parametrize(
    ("p", "wanted"), [(1e-9, [1]), (0.4, [1]), (0.6, [1, 3]), (0.85, [0, 1, 3]), (1, [0, 1, 2, 3])]
)
def test_top_p_of_known_probabilities(p: float, wanted: list[int]) -> None:
    assert kept(top_p(torch.tensor([0.2, 0.5, 0.05, 0.25]).log(), p)) == wanted


def test_every_row_of_a_batch_is_filtered_by_itself() -> None:
    rows = torch.randn(2, 3, 11, generator=torch.Generator().manual_seed(0))
    for found, alone in [
        (top_k(rows, 4), [top_k(row, 4) for row in rows.view(-1, 11)]),
        (top_p(rows, 0.7), [top_p(row, 0.7) for row in rows.view(-1, 11)]),
    ]:
        assert torch.equal(found, torch.stack(alone).view_as(rows))


@few
@given(values=logits_of, temperature=st.floats(0.1, 10))
def test_without_filters_the_temperature_flattens_or_sharpens_all(
    values: list[float], temperature: float
) -> None:
    logits = torch.tensor(values)
    found = filtered(logits, temperature, None, None).softmax(dim=-1)
    assert torch.allclose(found, (logits.double() / temperature).softmax(-1).float(), atol=1e-5)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-45, 1e-300])
def test_a_tiny_temperature_leaves_the_most_likely(temperature: float) -> None:
    found = filtered(torch.tensor([1.0, 80.0, -90.0]), temperature, None, None).softmax(dim=-1)
    assert found.tolist() == [0.0, 1.0, 0.0]


def test_top_p_counts_shares_of_what_top_k_has_left_at_the_given_temperature() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert kept(filtered(logits, 1.0, 2, 0.55)) == [0]  # 4/7 of two, but 0.4 of all
    assert kept(filtered(logits, 1.0, None, 0.55)) == [0, 1]
    assert kept(filtered(logits, 0.1, None, 0.55)) == [0]
    assert kept(filtered(logits, 1.0, None, 1.0)) == [0, 1, 2, 3]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize(
    ("k", "p", "least"),
    [(5, None, None), (50, 0.9, None), (None, 0.9, None), (None, 0.999, 0.01), (None, None, 0.1),
     (10_000, 0.5, None), (3000, None, 0.02)],
)  # fmt: skip
def test_of_a_large_vocabulary_the_few_are_what_all_of_it_would_leave(
    temperature: float, k: int | None, p: float | None, least: float | None
) -> None:
    logits = 4 * torch.randn(5000, generator=torch.Generator().manual_seed(0))
    logits[[7, 70, 700]] = logits.topk(5).values[-1]  # ties with the last of five
    found = filtered(logits, temperature, k, p, least)
    wanted = (logits - logits.max()) / temperature
    wanted = wanted if k is None else top_k(wanted, k)
    wanted = wanted if p is None else top_p(wanted, p)
    wanted = wanted if least is None else min_p(wanted, least)
    assert torch.equal(found, wanted)


def test_rows_with_few_and_with_many_candidates_are_filtered_as_they_are_alone() -> None:
    sharp, flat = torch.arange(3000.0), torch.zeros(3000)
    both, ids = filters.filtered(torch.stack([sharp, flat]), 1.0, None, 0.9)
    assert kept(torch.full_like(sharp, BARRED).scatter(0, ids[0], both[0])) == [2997, 2998, 2999]
    assert len(kept(both[1])) == pytest.approx(2700, abs=2)  # rounding decides about the last
