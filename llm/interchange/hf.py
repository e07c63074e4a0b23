"""Folders of Hugging Face: config.json, safetensors files, a tokenizer.

A config may have fields for computations that our network does not have. So each field must be
understood or known to be harmless; otherwise the folder is refused, naming the field.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.errors import require
from llm.interchange.chat_template import chat_in_folder
from llm.interchange.files import (
    FileSource,
    refuse_pickle,
    require_file,
    require_supported,
    resolved,
)
from llm.interchange.names import GPT2, LLAMA, Names
from llm.interchange.rope import rope_options
from llm.interchange.tokenizers import tokenizer_of_folder
from llm.model.config import GPTConfig
from llm.options import from_plain, option
from llm.sealed import Plain, read_json

if TYPE_CHECKING:
    from llm.interchange.assemble import Stored

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
SHARD = re.compile(r"[\w.-]{1,200}\.safetensors")
MOST_SHARDS = 1000
# Fields that do not change the logits: initialisation, dropout, generation, classification heads,
# and how transformers runs the model.
NO_MATHEMATICS = """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path architectures
    attention_dropout attn_pdrop begin_suppress_tokens bos_token_id decoder_start_token_id
    do_sample dtype early_stopping embd_pdrop eos_token_id finetuning_task forced_bos_token_id
    forced_eos_token_id gradient_checkpointing id2label initializer_range is_decoder
    is_llama_config label2id length_penalty max_length max_new_tokens max_window_layers min_length
    model_type n_ctx no_repeat_ngram_size num_beam_groups num_beams num_labels
    num_return_sequences output_attentions output_hidden_states output_scores pad_token_id prefix
    pretraining_tp problem_type remove_invalid_values reorder_and_upcast_attn repetition_penalty
    resid_pdrop return_dict return_dict_in_generate sep_token_id summary_activation
    summary_first_dropout summary_proj_to_labels summary_type summary_use_proj suppress_tokens
    task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype
    torchscript transformers.js_config transformers_version typical_p unk_token_id unsloth_fixed
    unsloth_version use_bfloat16 use_cache
"""
HARMLESS = frozenset(NO_MATHEMATICS.split())
# The only value of each of these fields that our network computes.
ONLY: Plain = {
    "add_cross_attention": False, "chunk_size_feed_forward": 0, "diversity_penalty": 0.0,
    "encoder_no_repeat_ngram_size": 0, "is_encoder_decoder": False, "partial_rotary_factor": 1.0,
    "pruned_heads": {}, "rope_interleaved": False, "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True, "tie_encoder_decoder": False, "use_mrope": False,
    "use_sliding_window": False,
}  # fmt: skip


@dataclass
class LlamaFields:
    """The fields that Llama, Qwen2 and Qwen3 share, with the defaults of transformers."""

    vocab_size: int = option()
    hidden_size: int = option()
    intermediate_size: int = option()
    num_hidden_layers: int = option()
    num_attention_heads: int = option()
    max_position_embeddings: int = option(at_least=1)
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = option("silu", one_of=("silu", "swish"))
    rms_norm_eps: float = option(1e-6, more_than=0)
    rope_theta: float | None = option(None, more_than=0)
    rope_scaling: Any = None
    rope_parameters: Any = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False

    def model(self, path: Path) -> GPTConfig:
        """The shape of the network."""
        return GPTConfig(
            n_layer=self.num_hidden_layers, n_embed=self.hidden_size,
            n_head=self.num_attention_heads, head_size=self.head_dim,
            n_kv_head=self.num_key_value_heads, intermediate_size=self.intermediate_size,
            block_size=self.max_position_embeddings, vocab_size=self.vocab_size,
            bias=self.attention_bias or self.mlp_bias, norm_eps=float(self.rms_norm_eps),
            tie_embeddings=self.tie_word_embeddings, **self.rope(path),
        )  # fmt: skip

    def rope(self, path: Path) -> Plain:
        """The options for rotary positions."""
        sections = {"rope_scaling": self.rope_scaling, "rope_parameters": self.rope_parameters}
        return rope_options(sections, self.rope_theta, self.max_position_embeddings, path)

    def names(self) -> Names:
        """The names of the tensors."""
        parts = {".attention.": self.attention_bias, ".mlp.": self.mlp_bias}
        return replace(LLAMA, unbiased=tuple(part for part, has in parts.items() if not has))


@dataclass
class Qwen2Fields(LlamaFields):
    """Llama with biases of queries, keys and values."""

    layer_types: Any = None
    sliding_window: Any = None  # unused: use_sliding_window is False
    attention_bias: bool = option(False, one_of=(False,))
    mlp_bias: bool = option(False, one_of=(False,))

    def model(self, path: Path) -> GPTConfig:
        """The shape of the network."""
        _require_full_attention(self.layer_types, self.num_hidden_layers, path)
        return replace(super().model(path), qkv_bias=True)

    def names(self) -> Names:
        """The names of the tensors."""
        return LLAMA


@dataclass
class Qwen3Fields(LlamaFields):
    """Llama with norms of queries and keys."""

    head_dim: int | None = 128
    layer_types: Any = None
    sliding_window: Any = None
    mlp_bias: bool = option(False, one_of=(False,))

    def model(self, path: Path) -> GPTConfig:
        """The shape of the network."""
        _require_full_attention(self.layer_types, self.num_hidden_layers, path)
        return replace(super().model(path), qk_norm=True)


GELUS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_exact"}


@dataclass
class GPT2Fields:
    """The fields of GPT-2."""

    vocab_size: int = option()
    n_positions: int = option(at_least=1)
    n_embd: int = option()
    n_layer: int = option()
    n_head: int = option()
    n_inner: int | None = None
    activation_function: str = option("gelu_new", one_of=GELUS)
    layer_norm_epsilon: float = option(1e-5, more_than=0)
    tie_word_embeddings: bool = True

    def model(self, path: Path) -> GPTConfig:
        """The shape of the network."""
        return GPTConfig(
            n_layer=self.n_layer, n_embed=self.n_embd, n_head=self.n_head, head_size=None,
            intermediate_size=self.n_inner, block_size=self.n_positions,
            vocab_size=self.vocab_size, bias=True, norm="layernorm",
            norm_eps=float(self.layer_norm_epsilon), mlp=GELUS[self.activation_function],
            position="learned", tie_embeddings=self.tie_word_embeddings,
        )  # fmt: skip

    def names(self) -> Names:
        """The names of the tensors."""
        return GPT2


FAMILIES: dict[str, tuple[str, type[LlamaFields] | type[GPT2Fields]]] = {
    "gpt2": ("GPT2LMHeadModel", GPT2Fields),
    "llama": ("LlamaForCausalLM", LlamaFields),
    "qwen2": ("Qwen2ForCausalLM", Qwen2Fields),
    "qwen3": ("Qwen3ForCausalLM", Qwen3Fields),
}


def open_folder(place: str, path: Path) -> FileSource:
    """The network that ``path`` (config.json) and the files beside it describe.

    Raises :class:`llm.errors.Refused` for another architecture, and for a field that may change the
    logits.
    """
    folder = path.parent
    fields_ = read_config(path)
    config = fields_.model(path)
    return FileSource(
        kind="hf", place=place, model=resolved(config, path), names=fields_.names(),
        files=weight_files(folder), read=_shards, context=config.block_size,
        find_tokenizer=lambda: tokenizer_of_folder(folder),
        find_chat=lambda: chat_in_folder(folder),
    )  # fmt: skip


def _shards(files: tuple[Path, ...]) -> "Mapping[str, Stored]":
    from llm.interchange.assemble import read_shards

    return read_shards(files)


def read_config(path: Path) -> LlamaFields | GPT2Fields:
    """The fields of ``config.json`` that this program understands."""
    values = read_json(path)
    named = values.get("architectures") or [values.get("model_type")]
    known = ", ".join(name for name, _ in FAMILIES.values())
    name = str(named[0]) if isinstance(named, list) and len(named) == 1 else str(named)
    family = values.get("model_type")
    found = FAMILIES.get(family) if isinstance(family, str) else None
    require(
        found and name in (found[0], family),
        f"{path} is of the architecture {name:.60} (model_type {family!s:.60}), and this program "
        f"reads {known}",
    )
    assert found
    return understood(found[1], values, path)


def understood(
    kind: type[LlamaFields] | type[GPT2Fields], values: Plain, path: Path
) -> LlamaFields | GPT2Fields:
    """The known fields of ``values``; :class:`llm.errors.Refused` for one that is neither known nor
    harmless.
    """
    known = {one.name for one in fields(kind)}
    values = {key: value for key, value in values.items() if value is not None}
    for key, value in values.items():
        is_same = key in ONLY and type(value) in (type(ONLY[key]), int) and value == ONLY[key]
        is_allowed = key in known or key in HARMLESS or is_same
        require_supported(is_allowed, f"{path}: {key:.60}", value)
    mine = {key: value for key, value in values.items() if key in known}
    return from_plain(kind, mine, f"{path}: ")


def _require_full_attention(layer_types: Any, n_layer: int, path: Path) -> None:
    if layer_types is None:
        return
    is_full = isinstance(layer_types, list) and len(layer_types) == n_layer
    is_full = is_full and all(one == "full_attention" for one in layer_types)
    shown = f"{path}: layer_types={layer_types!s:.80}"
    require(is_full, f"{shown} must be full_attention for each of the {n_layer} layers")


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a folder; :class:`llm.errors.Refused` naming a missing one."""
    names = [WEIGHTS]
    if not (folder / WEIGHTS).exists() and (folder / INDEX).exists():
        names = _shard_names(folder / INDEX)
    elif not (folder / WEIGHTS).exists():
        refuse_pickle(folder / PICKLE, "model", WEIGHTS)
    for name in names:
        path = folder / name
        shard = f"{folder / INDEX} names {name}, which" if len(names) > 1 else str(path)
        require(path.exists(), f"{shard} is missing: is the download complete?")
        require_file(path)
    return tuple(folder / name for name in names)


def _shard_names(index: Path) -> list[str]:
    places = read_json(index).get("weight_map")
    valid = isinstance(places, dict) and places
    require(valid, f"{index} has no weight_map of tensor names to files")
    assert isinstance(places, dict)
    for name in places.values():
        good = isinstance(name, str) and SHARD.fullmatch(name)
        require(good, f"{index} names {name!r:.60}: not the name of a safetensors file beside it")
    names = sorted(set(places.values()))
    few = len(names) <= MOST_SHARDS
    require(few, f"{index} names {len(names):,} files, and at most {MOST_SHARDS:,} are read")
    return names
