"""Logits and greedy texts equal those of transformers with the same files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llm.interchange.source import load_model, open_source
from llm.model.gpt import GPT
from llm.sampling.generate import generate
from llm.sampling.options import SamplingOptions
from tests.interchange.theirs import (
    LLAMA3,
    VARIANTS,
    VOCABULARY,
    YARN,
    Variant,
    rope,
    save_consolidated,
    save_llama_1,
    save_llama_3,
    save_nanogpt,
)

LARGEST_DIFFERENCE, LENGTH = 1e-4, 64
Save = Callable[[Path], nn.Module]
PROGRAMS: dict[str, Save] = {name: variant.save for name, variant in VARIANTS.items()}
PROGRAMS |= {
    "Meta's Llama": save_consolidated, "Meta's Llama 1": save_llama_1,
    "Meta's Llama 3.2": save_llama_3, "nanoGPT": save_nanogpt,
}  # fmt: skip


def difference(ours: GPT, theirs: nn.Module, rows: int = 2, T: int = 100) -> tuple[float, float]:
    """The largest difference of two logits, and the largest logit."""
    tokens = torch.randint(VOCABULARY, (rows, T), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        found, wanted = ours(tokens), theirs(input_ids=tokens).logits
    assert wanted.std() > 0.5  # not a comparison of zeros
    return (found - wanted).abs().max().item(), wanted.abs().max().item()


def same_tokens(ours: GPT, theirs: Any) -> int:
    """The number of equal greedy tokens, of :data:`LENGTH`, before the first difference."""
    prompt = [3, 1, 4, 1, 5]
    options = SamplingOptions(temperature=0.0, max_new_tokens=LENGTH)
    mine = [token for token, _ in generate(ours, prompt, options, 1, VOCABULARY)]
    prompts = torch.tensor([prompt])
    out = theirs.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=LENGTH, do_sample=False
    )
    wanted = out[0, len(prompt) :].tolist()
    assert len(mine) == len(wanted) == LENGTH
    return next((i for i in range(LENGTH) if mine[i] != wanted[i]), LENGTH)


def test_logits_and_greedy_text_equal_those_of_transformers(
    tmp_path: Path, report: Callable[[str], None]
) -> None:
    report(f"{'network':30} {'difference':>10} {'of':>5}  same greedy tokens")
    wrong = []
    for number, (name, save) in enumerate(PROGRAMS.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        theirs = save(folder)
        ours = load_model(open_source("ckpt", str(folder)), torch.device("cpu"))
        (apart, largest), same = difference(ours, theirs), same_tokens(ours, theirs)
        report(f"{name:30} {apart:10.1e} {largest:5.1f}  {same} of {LENGTH}")
        if apart >= LARGEST_DIFFERENCE or same < LENGTH:
            wrong.append(name)
    assert not wrong


@torch.no_grad()
def test_logits_equal_those_of_transformers_at_the_end_of_a_long_text(
    tmp_path: Path, report: Callable[[str], None]
) -> None:
    """Rounding of a rotary frequency grows with the position. See llm/functional/rotary.py."""
    T = 2048
    scalings: dict[str, dict[str, Any]] = {
        "Llama": {},
        "Llama, yarn": rope(**YARN | {"factor": 8.0, "original_max_position_embeddings": 256}),
        "Llama, llama3": rope(**LLAMA3 | {"original_max_position_embeddings": 256}),
    }
    report(f"{f'network, {T} tokens':30} {'difference':>10} {'of':>5}")
    for number, (name, options) in enumerate(scalings.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        theirs: Any = Variant("Llama", options | {"max_position_embeddings": T}).save(folder)
        ours = load_model(open_source("ckpt", str(folder)), torch.device("cpu"))
        apart, largest = difference(ours, theirs, 1, T)
        report(f"{name:30} {apart:10.1e} {largest:5.1f}")
        assert apart < LARGEST_DIFFERENCE, name
        cos, sin = theirs.model.rotary_emb(torch.zeros(1), torch.arange(T)[None])
        assert torch.equal(ours.cos, cos[0]) and torch.equal(ours.sin, sin[0]), name


def test_a_network_in_several_files_is_read_from_all_of_them(tmp_path: Path) -> None:
    VARIANTS["Llama, tied, 3 files"].save(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    source = open_source("ckpt", str(tmp_path))
    assert source.weights().keys() == load_model(source, torch.device("cpu")).state_dict().keys()
    (tmp_path / "model-00002-of-00003.safetensors").touch()
    assert source.digest() == open_source("ckpt", str(tmp_path)).digest()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_in_16_bits_become_the_same_numbers_in_float32(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    theirs: Any = VARIANTS["Llama"].model().to(dtype)
    theirs.save_pretrained(tmp_path)
    theirs = type(theirs).from_pretrained(tmp_path, dtype=torch.float32)
    ours = load_model(open_source("ckpt", str(tmp_path)), torch.device("cpu"))
    assert {tensor.dtype for tensor in ours.state_dict().values()} == {torch.float32}
    assert difference(ours, theirs)[0] < LARGEST_DIFFERENCE


def test_a_long_context_is_a_short_window(tmp_path: Path) -> None:
    Variant("Llama", {"max_position_embeddings": 131_072}).save(tmp_path)
    model = load_model(open_source("ckpt", str(tmp_path)), torch.device("cpu"))
    assert model.config.block_size == len(model.cos) == 2048
