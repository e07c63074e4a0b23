"""llama.cpp reads exported GGUF files: the same ids, and logits as near as its kernels allow.

``LLAMA_CPP_PYTHON`` names an interpreter that has llama-cpp-python; there are no wheels of it, and
building it takes minutes. ``pytest -s`` prints the table of docs/interchange.md.
"""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm.data.tokenizer import ByteTokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer
from llm.interchange.source import load_model, open_source
from llm.interchange.writing import export_gguf
from tests.interchange.test_gguf_writing import STANDARD_ROPE, sentencepiece
from tests.interchange.test_hf_writing import GPT2_STYLE, YARN, own_bpe, saved

pytestmark = pytest.mark.slow
INTERPRETER = os.environ.get("LLAMA_CPP_PYTHON", "")
CPU = torch.device("cpu")
SCRIPT = Path(__file__).with_name("llama_cpp_answers.py")
TEXT = "  First Citizen:\r\n\tHe's hear\\n 3 <|endoftext|> me — 你好 😀\n\n\n  the x "
SHAPE: dict[str, Any] = {"n_embed": 64, "n_head": 4, "head_size": 16, "intermediate_size": 128}
# Of the largest logit. llama.cpp rounds keys and values to 16 bits, and with bf16 and q8_0
# activations to the type of the weights.
LIMITS = {"fp32": 0.005, "fp16": 0.01, "bf16": 0.05, "q8_0": 0.1}
# The rounding of the weights is added. These limits find a hyperparameter that is wrong in the
# file, which the network that is read from it has too.
ORIGINAL_LIMITS = LIMITS | {"q8_0": 0.15}
LARGE_EPS = {"norm_eps": 0.05}  # the usual ones hardly change the logits of random weights
LLAMA3 = STANDARD_ROPE | {"rope_base": 1e6}


def characters() -> Tokenizer:
    return CharTokenizer("".join(sorted(set(TEXT))))


CASES: dict[str, tuple[Callable[[], Tokenizer], dict[str, Any]]] = {
    "llama, characters": (characters, {"n_kv_head": 2}),
    "llama, padded characters": (characters, {"padding": 5}),
    "llama, bytes": (ByteTokenizer, {"tie_embeddings": False, "bias": True} | LARGE_EPS),
    "llama, sentencepiece": (sentencepiece, {"padding": 3}),
    "llama, own BPE, llama3 rope": (own_bpe, {"padding": 9} | LLAMA3),
    "llama, bytes, linear rope": (ByteTokenizer, {"rope_scaling": "linear", "rope_factor": 3.0}),
    "qwen2, bytes": (ByteTokenizer, {"qkv_bias": True}),
    "qwen3, GPT-2's BPE": (GPT2Tokenizer, {"qk_norm": True, "padding": 47, "rope_base": 500.0}),
    "qwen3, own BPE, yarn": (own_bpe, {"qk_norm": True} | YARN),
    "gpt2, GPT-2's BPE": (GPT2Tokenizer, GPT2_STYLE | {"padding": 47}),
    "gpt2, characters": (characters, GPT2_STYLE | {"bias": False} | LARGE_EPS),
}


@pytest.mark.skipif(not INTERPRETER, reason="LLAMA_CPP_PYTHON names no interpreter")
@pytest.mark.parametrize("dtype", LIMITS)
def test_llama_cpp_finds_the_same_ids_logits_and_tokens(dtype: str, tmp_path: Path) -> None:
    sources, asked = {}, []
    for number, (name, (build, options)) in enumerate(CASES.items()):
        tokenizer = build()
        rest = SHAPE | options
        place = saved(tmp_path / str(number), tokenizer, rest.pop("padding", 0), **rest)
        source = sources[name] = open_source("ckpt", place)
        file = tmp_path / f"{number}.gguf"
        export_gguf(source, file, dtype, False)
        ids = tokenizer.encode(TEXT)[:60].tolist()
        asked.append({"file": str(file), "text": TEXT, "ids": ids})
    done = subprocess.run(
        [INTERPRETER, SCRIPT], input=json.dumps(asked), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    print(
        f"\n| {dtype} | from the stored weights | from the original | of | same most likely token |"
    )
    for (name, source), case in zip(sources.items(), asked, strict=True):
        found, tokenizer = np.load(f"{case['file']}.npz"), source.tokenizer
        assert found["ids"].tolist() == tokenizer.encode(TEXT).tolist(), name
        # sentencepiece puts a space in front of a text
        decoded = found["decoded"].tobytes().decode()
        assert decoded == (" " + TEXT if "sentencepiece" in name else TEXT), name
        end = tokenizer.end_of_text if tokenizer.kind != "char" else -1
        assert end is None or set(found["ends"].tolist()) == {end}, name
        # the stored weights, rounded as they are, and the original ones
        model = load_model(open_source("ckpt", case["file"]), CPU)
        ours, original = logits(model, case["ids"]), logits(load_model(source, CPU), case["ids"])
        scale, difference = np.abs(ours).max(), np.abs(ours - found["logits"]).max()
        whole = np.abs(original - found["logits"]).max()
        same = (ours.argmax(-1) == found["logits"].argmax(-1)).mean()
        print(f"| {name} | {difference:.4f} | {whole:.4f} | {scale:.1f} | {same:.0%} |")
        assert difference < LIMITS[dtype] * scale, name
        assert whole < ORIGINAL_LIMITS[dtype] * scale, name
        assert same == 1 or (dtype in ("bf16", "q8_0") and same > 0.85), name
        if dtype == "fp32":
            assert found["greedy"].tolist() == greedy(model, case["ids"]), name


@torch.no_grad()
def logits(model: Any, ids: list[int]) -> np.ndarray:
    """(T, vocab)"""
    values: np.ndarray = model(torch.tensor([ids]))[0].numpy()
    return values


@torch.no_grad()
def greedy(model: Any, ids: list[int]) -> list[int]:
    """The 16 tokens that follow."""
    tokens = torch.tensor([ids])
    for _ in range(16):
        tokens = torch.cat([tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return tokens[0, len(ids) :].tolist()
