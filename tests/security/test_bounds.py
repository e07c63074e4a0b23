"""A checkpoint that claims too much is refused before it takes memory or time."""

import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from llm.checkpoint.checkpoint import TRAINING, Checkpoint, weight_shapes
from llm.errors import Refused
from llm.interchange.source import open_source, start_from
from llm.model.config import GPTConfig
from llm.model.gpt import GPT
from tests.security import hostile

SMALL = GPTConfig(n_layer=3, n_embed=16, head_size=8, block_size=8, vocab_size=11).resolve()
OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": True, "norm": "layernorm", "mlp": "gelu", "position": "learned"},
    {"tie_embeddings": False, "qk_norm": True, "n_kv_head": 1, "smear": 3},
    {"residual_scalars": True, "n_layer": 12, "n_kv_head": 1},
    {"bias": True, "qk_norm": True, "norm": "layernorm", "tie_embeddings": False},
    {"bias": True, "mlp": "swiglu", "intermediate_size": 5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_network_without_memory_has_the_shapes_of_the_real_one(options: dict[str, Any]) -> None:
    config = replace(SMALL, **options)
    real = GPT(**asdict(config)).state_dict()
    assert weight_shapes(config) == {name: tuple(tensor.shape) for name, tensor in real.items()}


def test_the_shapes_of_the_largest_network_take_no_time() -> None:
    largest = GPTConfig(n_layer=512, n_embed=16_384, head_size=128, vocab_size=1_048_576)
    began = time.process_time()
    assert len(weight_shapes(largest.resolve())) == 4610
    assert time.process_time() - began < 5  # 0.4 s on an idle machine


def test_the_shapes_of_a_network_import_no_compiler() -> None:
    code = (
        "import sys; from llm.checkpoint.checkpoint import weight_shapes; "
        "from llm.model.config import GPTConfig; "
        "weight_shapes(GPTConfig(vocab_size=60, residual_scalars=True, smear=2).resolve()); "
        "sys.exit('sympy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_weights_of_another_network_are_refused_without_reading_them(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = Checkpoint.open(place / hostile.STEP)
    model = GPT(**asdict(replace(origin.model, n_embed=16)))
    monkeypatch.setattr(Checkpoint, "weights", lambda _: pytest.fail("they were read"))
    with pytest.raises(Refused, match=r"embed\.weight has shape"):
        start_from(model, open_source("init_from", str(origin.path)), origin.tokenizer)


def test_a_file_larger_than_its_model_can_have_is_not_even_hashed(place: Path) -> None:
    path = place / hostile.STEP / TRAINING
    hostile.sparse(path, 100 << 30)
    began = time.process_time()
    with pytest.raises(Refused, match="more than such a model can have"):
        Checkpoint.open(place / hostile.STEP).verify()
    assert time.process_time() - began < 1
