"""Tiny random networks of transformers, saved as other programs save them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llm.data.tokenizer import CharTokenizer
from llm.interchange.tokenizer_writing import tokenizer_json

VOCABULARY, CONTEXT = 61, 128
LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_embd": 48, "n_layer": 2, "n_head": 4,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


def difference_of(found: Tensor, wanted: Tensor, report: Callable[[str], None], name: str) -> float:
    """The largest difference of two logits, which is a row of the table that the suite prints."""
    apart, largest = (found - wanted).abs().max().item(), wanted.abs().max().item()
    report(f"{apart:10.1e} of {largest:4.1f}  {name}")
    return apart


def rope(**values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10_000.0, **values}}


@dataclass(frozen=True)
class Variant:
    """A family of transformers with the options in which it differs from the tiny one above."""

    family: str  # GPT2, Llama, ...
    options: dict[str, Any]
    shard: str | None = None  # largest size of a file

    def model(self) -> nn.Module:
        """Random weights, also in norms and biases, whose initial values would hide mistakes."""
        import transformers

        kind = {"GPT2": "GPT2LMHeadModel"}.get(self.family, f"{self.family}ForCausalLM")
        shape = GPT2 if self.family == "GPT2" else LLAMA
        config = getattr(transformers, f"{self.family}Config")(**shape | self.options)
        model = getattr(transformers, kind)(config)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = 0.2 * torch.randn(parameter.shape, generator=generator)
                is_norm = "norm" in name or "ln_" in name
                parameter.copy_(noise + (is_norm and name.endswith("weight")))
        return model.eval()

    def save(self, folder: Path) -> nn.Module:
        """Save it in ``folder``; returns it."""
        from transformers.utils import logging

        logging.disable_progress_bar()
        model: Any = self.model()
        model.save_pretrained(folder, **({"max_shard_size": self.shard} if self.shard else {}))
        return model


VARIANTS = {
    "GPT-2": Variant("GPT2", {}),
    "GPT-2, untied": Variant("GPT2", {"tie_word_embeddings": False}),
    "GPT-2, exact GELU, wide MLP": Variant("GPT2", {"activation_function": "gelu", "n_inner": 72}),
    "Llama": Variant("Llama", {}),
    "Llama, tied, 3 files": Variant("Llama", {"tie_word_embeddings": True}, shard="80KB"),
    "Llama, one key head": Variant("Llama", {"num_key_value_heads": 1, "head_dim": 20}),
    "Llama, attention biases": Variant("Llama", {"attention_bias": True, "rms_norm_eps": 1e-5}),
    "Llama, MLP biases": Variant("Llama", {"mlp_bias": True}),
    "Llama, base 500,000": Variant("Llama", rope(rope_theta=500_000.0)),
    "Llama, linear": Variant("Llama", rope(rope_type="linear", factor=4.0)),
    "Llama, llama3": Variant("Llama", rope(**LLAMA3)),
    "Llama, yarn": Variant("Llama", rope(**YARN, beta_fast=16.0, beta_slow=2.0)),
    "Qwen2": Variant("Qwen2", {}),
    "Qwen2, tied, yarn": Variant("Qwen2", {"tie_word_embeddings": True} | rope(**YARN)),
    "Qwen3": Variant("Qwen3", {"head_dim": 16}),
    "Qwen3, tied, biases": Variant(
        "Qwen3", {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": True}
    ),
}


META_SCALING = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
                "high_freq_factor": 3.0, "original_max_position_embeddings": 8192}  # fmt: skip


def save_llama_3(folder: Path) -> nn.Module:
    """As Meta saves Llama 3.2."""
    return save_consolidated(
        folder, rope(**META_SCALING), use_scaled_rope=True, rope_scaling_factor=32.0,
        rope_high_freq_factor=3.0,
    )  # fmt: skip


def save_llama_1(folder: Path) -> nn.Module:
    """As Meta saves Llama 1 and 2: only the tokenizer has the size of the vocabulary."""
    characters = CharTokenizer("".join(map(chr, range(65, 65 + VOCABULARY))))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(characters)))
    return save_consolidated(folder, vocab_size=-1)


def save_consolidated(
    folder: Path, options: dict[str, Any] | None = None, **more: Any
) -> nn.Module:
    """The tiny Llama as Meta saves one: other names, and pairs of rows next to each other.

    ``options``: of transformers' config; ``more``: keys of params.json.
    """
    model = Variant("Llama", {"intermediate_size": 128} | (options or {})).model()
    state = {}
    for name, tensor in model.state_dict().items():
        for theirs, metas in (
            ("model.embed_tokens", "tok_embeddings"), ("model.", ""), ("lm_head", "output"),
            ("self_attn.q_proj", "attention.wq"), ("self_attn.k_proj", "attention.wk"),
            ("self_attn.v_proj", "attention.wv"), ("self_attn.o_proj", "attention.wo"),
            ("mlp.gate_proj", "feed_forward.w1"), ("mlp.down_proj", "feed_forward.w2"),
            ("mlp.up_proj", "feed_forward.w3"), ("input_layernorm", "attention_norm"),
            ("post_attention_layernorm", "ffn_norm"),
        ):  # fmt: skip
            name = name.replace(theirs, metas)
        if name.endswith(("wq.weight", "wk.weight")):
            pairs = [[12 * head + i, 12 * head + i + 6] for head in range(4) for i in range(6)]
            rows = [row for pair in pairs for row in pair][: tensor.shape[0]]
            tensor = tensor[rows]
        state[name] = tensor
    torch.save(state | {"rope.freqs": torch.ones(6)}, folder / "consolidated.00.pth")
    params = {
        "dim": 48, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": VOCABULARY,
        "multiple_of": 128, "norm_eps": 1e-6, "rope_theta": 10_000.0, "use_scaled_rope": False,
    }  # fmt: skip
    (folder / "params.json").write_text(json.dumps(params | more))
    return model


def save_nanogpt(folder: Path, **more: Any) -> nn.Module:
    """The tiny GPT-2 as nanoGPT saves one: nothing is transposed, and the GELU is exact."""
    model = Variant("GPT2", {"activation_function": "gelu"}).model()
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        is_conv = name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
        state[f"_orig_mod.{name}"] = tensor.T.contiguous() if is_conv else tensor
    args = {"n_layer": 2, "n_head": 4, "n_embd": 48, "block_size": CONTEXT, "bias": True,
            "vocab_size": VOCABULARY, "dropout": 0.0}  # fmt: skip
    saved = {
        "model": state,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}},
        "model_args": args,
        "iter_num": 3,
        "config": {"dataset": "shakespeare_char"},
    }
    torch.save(saved | more, folder / "ckpt.pt")
    return model
