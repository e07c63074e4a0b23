"""The networks of conf/model and of experiment=exportable are ones that other programs have."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from llm.config.compose import read_settings
from llm.data.tokenizer import ByteTokenizer
from llm.errors import Refused
from llm.interchange.families import choose_family
from llm.interchange.gguf_writing import gguf_family
from llm.interchange.source import load_model, open_source
from llm.interchange.writing import export_gguf, export_hf
from llm.model.config import GPTConfig
from llm.settings.build import build
from llm.settings.schema import TrainSettings
from tests.command_line import composed
from tests.conftest import ROOT
from tests.interchange.test_hf_writing import loaded, saved

PRESETS = sorted(path.stem for path in (ROOT / "conf/model").glob("*.yaml"))
FAMILY = {"model=gpt2": "gpt2", "experiment=exportable": "qwen3"}  # the others: llama
TINY = ["model.n_layer=2", "model.n_embed=32", "model.n_head=2", "model.block_size=64"]


def network(*typed: str) -> GPTConfig:
    """The network of ``python run_train.py <typed>``."""
    settings = read_settings(composed("train", *typed), TrainSettings)
    with torch.device("meta"):
        config: GPTConfig = build(settings.resolve(257, "fp32").model).config
    return config


@pytest.mark.parametrize("typed", [*(f"model={name}" for name in PRESETS), "experiment=exportable"])
def test_every_preset_is_an_architecture_of_transformers_and_llama_cpp(typed: str) -> None:
    model = network(typed)
    family = choose_family(model)
    assert gguf_family(model) == family and family.name == FAMILY.get(typed, "llama")


def test_the_fast_experiment_is_refused_naming_the_exportable_one() -> None:
    with pytest.raises(Refused, match=r"model\.smear=.*experiment=exportable"):
        choose_family(network("experiment=fast"))


@pytest.mark.parametrize("typed", ["experiment=exportable", "model=gpt2", "model=small"])
def test_a_small_network_of_the_recipe_is_exported_and_computes_the_same(
    typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options = asdict(network(typed, *TINY)) | {"vocab_size": 257}
    source = open_source("ckpt", saved(tmp_path / "run", ByteTokenizer(), **options))
    export_hf(source, tmp_path / "hf", "fp32", False)
    export_gguf(source, tmp_path / "a.gguf", "fp32", False)
    cpu, tokens = torch.device("cpu"), torch.arange(60)[None] * 7 % 257
    with torch.no_grad():
        logits = load_model(source, cpu)(tokens)
        theirs = loaded(tmp_path / "hf")(tokens).logits
        again = load_model(open_source("ckpt", str(tmp_path / "a.gguf")), cpu)(tokens)
    assert (logits - theirs).abs().max() < 1e-4 and logits.std() > 0.5
    assert torch.equal(logits, again)
