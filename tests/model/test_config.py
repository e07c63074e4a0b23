"""Shapes that fit together are completed; those that do not are refused by name."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.errors import Refused
from llm.model.config import GPTConfig


@pytest.mark.parametrize(
    ("n_embed", "n_head", "head_size", "resolved"),
    [(96, None, 32, (3, 32, 3)), (96, 4, None, (4, 24, 4)), (100, 3, 16, (3, 16, 3))],
)
def test_missing_head_options_follow_from_the_others(
    n_embed: int, n_head: int | None, head_size: int | None, resolved: tuple[int, int, int]
) -> None:
    full = GPTConfig(n_embed=n_embed, n_head=n_head, head_size=head_size).resolve()
    assert (full.n_head, full.head_size, full.n_kv_head) == resolved


def test_the_vocabulary_of_the_data_replaces_a_missing_one_only() -> None:
    assert GPTConfig().resolve(65).vocab_size == 65
    assert GPTConfig(vocab_size=100).resolve(65).vocab_size == 100
    assert GPTConfig().resolve().vocab_size is None


def test_resolving_changes_neither_the_original_nor_a_resolved_config() -> None:
    config = GPTConfig(vocab_size=65)
    full = config.resolve()
    assert config == GPTConfig(vocab_size=65)
    assert full.resolve(99) == full


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"n_embed": 100, "head_size": 32}, r"model\.n_embed=100 .* take 96 or 128"),
        ({"n_embed": 100, "n_head": 3, "head_size": None}, r"model\.n_embed=100 .* take 96 or 102"),
        ({"n_embed": 20, "head_size": 32}, r"model\.n_embed=20 .* take 32,"),
        ({"n_head": None, "head_size": None}, r"model\.n_head and model\.head_size are both null"),
        ({"n_head": 4, "head_size": 15}, r"model\.head_size=15 is odd"),
        ({"n_embed": 96, "head_size": 32, "n_kv_head": 2}, r"model\.n_kv_head=2 does not divide"),
        ({"n_kv_head": 8}, r"model\.n_kv_head=8 does not divide the 4"),
    ],
)
def test_options_that_do_not_fit_together_are_refused_by_name(
    options: dict[str, Any], named: str
) -> None:
    with pytest.raises(Refused, match=named):
        GPTConfig(**options).resolve()


def test_an_odd_head_size_is_fine_without_rotary_positions() -> None:
    assert GPTConfig(n_head=4, head_size=15, position="learned").resolve().head_size == 15


@pytest.mark.parametrize(("n_embed", "width"), [(128, 384), (96, 256), (768, 2048), (24, 64)])
def test_a_gated_mlp_is_two_thirds_as_wide_in_whole_64s(n_embed: int, width: int) -> None:
    gated = GPTConfig(n_embed=n_embed, head_size=8, mlp="swiglu").resolve()
    plain = GPTConfig(n_embed=n_embed, head_size=8, mlp="gelu").resolve()
    assert (gated.intermediate_size, plain.intermediate_size) == (width, 4 * n_embed)


@settings(max_examples=50, deadline=None)
@given(n_embed=st.integers(1, 512), size=st.integers(1, 64), by_head=st.booleans())
def test_a_resolved_shape_has_whole_heads_or_the_advice_works(
    n_embed: int, size: int, by_head: bool
) -> None:
    given_size = {"n_head": size, "head_size": None} if by_head else {"head_size": size}
    options: dict[str, Any] = {"position": "learned", **given_size}
    try:
        full = GPTConfig(n_embed=n_embed, **options).resolve()
    except Refused as refusal:
        advice = str(refusal).split("take ")[1].split(",")[0]
        for better in advice.split(" or "):
            GPTConfig(n_embed=int(better), **options).resolve()
    else:
        assert full.n_head and full.head_size
        assert full.n_head * full.head_size == n_embed
