"""Planned weights match the real network, with and without LoRA."""

from collections import Counter
from dataclasses import asdict, fields
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llm.checkpoint.checkpoint import empty_model
from llm.config.inside import compose_training
from llm.errors import Refused
from llm.memory.weights import (
    ALL,
    flops_per_token,
    n_parameters,
    n_trained,
    trained_weights,
    weights_of,
    without_layer,
)
from llm.model.config import LOSSES, MLPS, NORMS, POSITIONS, GPTConfig
from llm.model.finetune import ADAPTER_WEIGHTS, TARGETS, FinetuneOptions
from llm.model.gpt import GPT
from llm.model.lora import adapt

BOOLEANS = ("bias", "qkv_bias", "qk_norm", "tie_embeddings", "residual_scalars")
CONFIGS = st.fixed_dictionaries(
    {name: st.booleans() for name in BOOLEANS}
    | {"norm": st.sampled_from(NORMS), "mlp": st.sampled_from(MLPS)}
    | {"position": st.sampled_from(POSITIONS), "loss": st.sampled_from(LOSSES)}
    | {"n_kv_head": st.sampled_from([None, 1, 2]), "smear": st.integers(0, 3)}
)
METHODS = st.just(ALL) | st.builds(
    FinetuneOptions,
    st.sampled_from(["full", "head", "lora", "dora", "qlora"]),
    st.integers(1, 9),
    targets=st.lists(st.sampled_from([*TARGETS, "attention", "blocks.[02].mlp"]), min_size=1),
    freeze=st.lists(st.sampled_from(["embed", "blocks.1", "attention", "mlp.up"])),
)


@settings(max_examples=30, deadline=None)
@given(CONFIGS, METHODS)
def test_weights_have_the_names_and_shapes_of_the_real_network(
    options: dict[str, object], finetune: FinetuneOptions
) -> None:
    config = GPTConfig(n_layer=3, n_embed=32, head_size=8, block_size=16, vocab_size=11)
    config = GPTConfig(**asdict(config) | options).resolve()
    with torch.device("meta"):
        model = GPT(**asdict(config))
    try:
        adapt(model, finetune)
    except Refused:
        assume(False)
    named = dict(model.named_parameters())
    real = Counter((without_layer(name), tuple(p.shape)) for name, p in named.items())
    assert {(one.name, one.shape): one.layers for one in weights_of(config, finetune)} == real
    trained = {name: p for name, p in named.items() if p.requires_grad}
    assert n_trained(config, finetune) == sum(p.numel() for p in trained.values())
    counts = Counter(map(without_layer, trained))
    assert {one.name: one.layers for one in trained_weights(config, finetune)} == counts
    own = [p for name, p in named.items() if name.rpartition(".")[2] not in ADAPTER_WEIGHTS]
    assert n_parameters(config) == sum(p.numel() for p in own)


@pytest.mark.parametrize(
    "options", [{}, {"tie_embeddings": False}, {"position": "learned"}], ids=str
)
def test_flops_per_token_by_hand(options: dict[str, Any]) -> None:
    config = GPTConfig(n_layer=3, n_embed=32, head_size=16, block_size=8, vocab_size=50)
    layer = 4 * 32 * 32 + 3 * 32 * 128 + 2 * 32  # q k v o, gate up down, two norms
    weights = 3 * layer + 32 + 50 * 32  # the last norm and the head, but no look-up
    attention = 12 * 3 * 2 * 16 * 8
    config = GPTConfig(**asdict(config) | options).resolve()
    assert flops_per_token(config) == 6 * weights + attention


@pytest.mark.parametrize("name", ["lora", "head", "full"])
def test_flops_per_token_leave_out_the_gradients_of_frozen_weights(name: str) -> None:
    config = GPTConfig(n_layer=3, n_embed=32, head_size=16, block_size=8, vocab_size=50).resolve()
    attention = 12 * 3 * 2 * 16 * 8
    layer = 4 * 32 * 32 + 3 * 32 * 128
    norms, head = 3 * 2 * 32, 32 + 50 * 32
    adapters = 3 * 4 * (4 * (32 + 32) + 3 * (32 + 128))
    expected = {
        "lora": 4 * (3 * layer + norms + head) + 6 * adapters + attention,
        "head": 2 * (3 * layer + norms) + 6 * head + attention / 3,
        "full": 4 * 3 * (layer) + 6 * head + 4 * norms + attention,
    }
    freeze = ["blocks"] if name == "full" else []
    assert flops_per_token(config, FinetuneOptions(name, rank=4, freeze=freeze)) == expected[name]


@pytest.mark.parametrize("preset", ["nano", "tiny", "small", "medium", "gpt2"])
def test_flops_per_token_of_a_preset_count_each_matrix_of_the_real_network(preset: str) -> None:
    section = compose_training(f"model={preset}").model.resolve(500)
    config = GPTConfig(**{f.name: getattr(section, f.name) for f in fields(GPTConfig)})
    model = empty_model(config)
    tables = [one for one in model.modules() if isinstance(one, torch.nn.Embedding)]
    if model.head is None:
        tables.remove(model.embed)
    weights = model.n_parameters() - sum(table.weight.numel() for table in tables)
    assert config.n_head and config.head_size
    attention = config.n_layer * config.n_head * config.head_size * config.block_size
    assert flops_per_token(config) == 6 * weights + 12 * attention
