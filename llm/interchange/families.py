"""The architecture of transformers that computes the same as our network, and its config.json."""

from dataclasses import dataclass, replace
from typing import Any

from llm.commands import command_line
from llm.errors import Refused
from llm.interchange.names import GPT2, LLAMA, Names
from llm.model.config import GPTConfig
from llm.sealed import Plain

RMS_EPS, LAYER_EPS = 1e-6, 1e-5  # as in llm/model/layers.py
GELUS = {"gelu": "gelu_new", "gelu_exact": "gelu"}  # our name -> theirs
OURS_ONLY: Plain = {"smear": 0, "residual_scalars": False}  # options that no other architecture has


@dataclass(frozen=True)
class Family:
    """An architecture. ``needs``: the values of our options that it can compute."""

    name: str  # model_type of transformers; also the architecture in GGUF
    architecture: str
    needs: dict[str, tuple[Any, ...]]

    def in_the_way(self, model: GPTConfig) -> list[str]:
        """The settings of ``model`` that this architecture cannot compute: ``model.key=value``."""
        needs = self.needs | {key: (value,) for key, value in OURS_ONLY.items()}
        wrong = [key for key, values in needs.items() if getattr(model, key) not in values]
        found = [f"model.{key}={_shown(getattr(model, key))}" for key in wrong]
        if self.name == "gpt2" and model.n_kv_head != model.n_head:
            found.append(f"model.n_kv_head={model.n_kv_head}")
        if self.name == "gpt2" and (model.n_head or 0) * (model.head_size or 0) != model.n_embed:
            found.append(f"model.head_size={model.head_size}")
        return found

    def names(self, model: GPTConfig) -> Names:
        """The names of its tensors; modules without a bias are listed as unbiased."""
        if self.name == "gpt2":
            return GPT2
        parts = {
            ".attention.o": model.bias, ".mlp.": model.bias,
            ".attention.": model.bias or model.qkv_bias,
        }  # fmt: skip
        return replace(LLAMA, unbiased=tuple(part for part, has in parts.items() if not has))


STOCK = {"norm": ("rmsnorm",), "mlp": ("swiglu",), "position": ("rotary",)}
FAMILIES = (
    Family("llama", "LlamaForCausalLM", STOCK | {"qk_norm": (False,), "qkv_bias": (False,)}),
    Family("qwen2", "Qwen2ForCausalLM", STOCK | {
        "qk_norm": (False,), "qkv_bias": (True,), "bias": (False,),
    }),
    Family("qwen3", "Qwen3ForCausalLM", STOCK | {
        "qk_norm": (True,), "qkv_bias": (False,), "bias": (False,),
    }),
    Family("gpt2", "GPT2LMHeadModel", {
        "norm": ("layernorm",), "mlp": tuple(GELUS), "position": ("learned",), "qk_norm": (False,),
    }),
)  # fmt: skip


def choose_family(model: GPTConfig) -> Family:
    """The architecture that computes the same as ``model``.

    Raises :class:`llm.errors.Refused` naming all settings that the most similar one lacks.
    """
    best = min(FAMILIES, key=lambda family: len(family.in_the_way(model)))
    found = best.in_the_way(model)
    if not found:
        return best
    advice = command_line("run_train.py", "experiment=exportable")
    raise Refused(
        f"transformers and llama.cpp have no architecture with {', '.join(found)} "
        f"(the most similar is {best.architecture}): train without, as in {advice}",
        key=found[0].partition("=")[0],
    )


def config_json(model: GPTConfig, family: Family, end: int | None, dtype: str) -> Plain:
    """``config.json`` for transformers 4 and 5, with every field whose default may differ.

    ``end``: the id that ends a text; ``dtype``: torch's name of the type of the weights.
    """
    common = {
        "architectures": [family.architecture], "model_type": family.name,
        "vocab_size": model.vocab_size, "tie_word_embeddings": model.tie_embeddings,
        "bos_token_id": end, "eos_token_id": end, "pad_token_id": None,
        "dtype": dtype, "torch_dtype": dtype, "use_cache": True,
    }  # fmt: skip
    if family.name == "gpt2":
        return common | {
            "n_positions": model.block_size, "n_embd": model.n_embed, "n_layer": model.n_layer,
            "n_head": model.n_head, "n_inner": model.intermediate_size,
            "activation_function": GELUS[model.mlp],
            "layer_norm_epsilon": model.norm_eps or LAYER_EPS,
            "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        }  # fmt: skip
    values = common | {
        "hidden_size": model.n_embed, "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.n_layer, "num_attention_heads": model.n_head,
        "num_key_value_heads": model.n_kv_head, "head_dim": model.head_size, "hidden_act": "silu",
        "max_position_embeddings": model.block_size, "rms_norm_eps": model.norm_eps or RMS_EPS,
        "rope_theta": model.rope_base, "rope_parameters": _rope_parameters(model),
        "attention_dropout": 0.0,
    }  # fmt: skip
    if family.name == "llama":
        return values | {"attention_bias": model.bias, "mlp_bias": model.bias}
    attention_bias = {"attention_bias": False} if family.name == "qwen3" else {}
    return values | attention_bias | {"use_sliding_window": False}


def _rope_parameters(model: GPTConfig) -> Plain:
    kind = model.rope_scaling
    if kind == "none":
        return {"rope_type": "default", "rope_theta": model.rope_base}
    values = {"rope_type": kind, "rope_theta": model.rope_base, "factor": model.rope_factor}
    if kind == "linear":
        return values
    values["original_max_position_embeddings"] = model.rope_original_size or model.block_size
    low, high = ("low_freq_factor", "high_freq_factor")
    if kind == "yarn":
        low, high = ("beta_slow", "beta_fast")
    return values | {low: model.rope_low, high: model.rope_high}


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
