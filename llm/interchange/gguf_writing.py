"""Write a GGUF file, which llama.cpp and ollama read: Llama, Qwen2, Qwen3 and GPT-2."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from llm.data.tokenizer import Tokenizer
from llm.errors import Refused, require
from llm.functional.rotary import frequencies, scaled
from llm.interchange.assemble import reordered
from llm.interchange.chat_template import Chat
from llm.interchange.families import LAYER_EPS, RMS_EPS, Family, choose_family
from llm.interchange.gguf import CHAT_KEY, LLAMA3, LLAMA3_FACTORS, NAMES
from llm.interchange.gguf_vocabulary import OWN_KEY, PREFIX, vocabulary
from llm.interchange.hf_writing import expected_names, weight_or_zeros
from llm.interchange.quants import BLOCKS
from llm.model.config import GPTConfig

if TYPE_CHECKING:
    import gguf

TYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}  # GGUF's names
YARN = (1.0, 32.0)  # beta_slow and beta_fast of llama.cpp
FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0"}


def gguf_family(model: GPTConfig) -> Family:
    """The architecture of llama.cpp that computes the same as ``model``.

    Raises :class:`llm.errors.Refused` naming the setting that llama.cpp lacks.
    """
    family = choose_family(model)
    require(
        model.mlp != "gelu_exact",
        "llama.cpp has no model.mlp=gelu_exact: train with model.mlp=gelu, or take format=hf",
        key="model.mlp",
    )
    require(
        model.rope_scaling != "llama3" or family.name == "llama",
        f"llama.cpp has no model.rope_scaling=llama3 for {family.architecture}: take format=hf",
        key="model.rope_scaling",
    )
    values = (model.rope_low, model.rope_high, model.rope_original_size or model.block_size)
    is_known = values == LLAMA3 and model.rope_factor in LLAMA3_FACTORS
    require(  # a file has only the scaled frequencies, from which a reader finds these values
        model.rope_scaling != "llama3" or is_known,
        "format=gguf takes model.rope_scaling=llama3 only with the values of Llama 3.1 and 3.2: "
        "take format=hf",
        key="model.rope_scaling",
    )
    require(  # it reads beta_slow and beta_fast for a few other architectures only
        model.rope_scaling != "yarn" or (model.rope_low, model.rope_high) == YARN,
        "llama.cpp computes yarn with model.rope_low=1 and model.rope_high=32 only, and these are "
        f"{model.rope_low:g} and {model.rope_high:g}: take format=hf",
        key="model.rope_high" if model.rope_low == YARN[0] else "model.rope_low",
    )
    return family


def write_gguf(
    path: Path, model: GPTConfig, weights: Mapping[str, Tensor], tokenizer: Tokenizer,
    dtype: str, name: str, chat: Chat | None = None,
) -> None:  # fmt: skip
    """Write the file ``path``; ``dtype``: a key of :data:`TYPES`; ``name``: a title.

    Vectors and learned positions stay in float32, as in llama.cpp's own converter. A matrix
    whose rows Q8_0 cannot divide into blocks of 32 is stored in F16.
    """
    library, family = import_gguf(), gguf_family(model)
    assert model.vocab_size
    writer = library.GGUFWriter(path, family.name)
    writer.add_name(name)
    writer.add_file_type(library.LlamaFileType[FILE_TYPES[TYPES[dtype]]])
    for key, value in shape_keys(model, family).items():
        _add(writer, f"{family.name}.{key}", value)
    for key, value in vocabulary(tokenizer, model.vocab_size).items():
        _add(writer, PREFIX + key, value)
    if chat is not None:
        writer.add_string(CHAT_KEY, chat.template)
        if chat.end not in (None, tokenizer.end_of_text):
            writer.add_uint32(f"{PREFIX}eot_token_id", chat.end)
    writer.add_string(OWN_KEY, json.dumps(tokenizer.to_json(), ensure_ascii=False))
    for their_name, tensor in their_tensors(weights, model, family):
        kind = _kind(their_name, tensor, TYPES[dtype])
        number = library.GGMLQuantizationType[kind]
        with np.errstate(over="ignore"):  # refused below
            stored = library.quantize(tensor, number)
        finite = bool(np.isfinite(library.dequantize(stored, number)).all())
        require(finite, f"{their_name} has values too large for {kind}: take dtype=bf16 or fp32")
        writer.add_tensor(their_name, stored, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def import_gguf() -> Any:
    """The library; raises :class:`llm.errors.Refused` with what to install."""
    try:
        import gguf
    except ImportError as error:
        raise Refused(
            "format=gguf needs the library gguf: pip install 'one-gpu-llm[interchange]'"
        ) from error
    return gguf


def shape_keys(model: GPTConfig, family: Family) -> dict[str, Any]:
    """The values of the keys below the name of the architecture."""
    keys: dict[str, Any] = {
        "context_length": model.block_size, "embedding_length": model.n_embed,
        "block_count": model.n_layer, "feed_forward_length": model.intermediate_size,
        "vocab_size": model.vocab_size, "attention.head_count": model.n_head,
    }  # fmt: skip
    if family.name == "gpt2":
        return keys | {"attention.layer_norm_epsilon": float(model.norm_eps or LAYER_EPS)}
    size = model.head_size
    keys |= {
        "attention.head_count_kv": model.n_kv_head, "attention.key_length": size,
        "attention.value_length": size, "rope.dimension_count": size,
        "attention.layer_norm_rms_epsilon": float(model.norm_eps or RMS_EPS),
        "rope.freq_base": float(model.rope_base),
    }  # fmt: skip
    if model.rope_scaling in ("linear", "yarn"):
        keys |= {
            "rope.scaling.type": model.rope_scaling,
            "rope.scaling.factor": float(model.rope_factor),
        }
    if model.rope_scaling == "yarn":
        keys |= {
            "rope.scaling.original_context_length": model.rope_original_size or model.block_size,
            "rope.scaling.yarn_beta_slow": float(model.rope_low),
            "rope.scaling.yarn_beta_fast": float(model.rope_high),
        }
    return keys


def their_tensors(
    weights: Mapping[str, Tensor], model: GPTConfig, family: Family
) -> Iterator[tuple[str, np.ndarray]]:
    """The weights in float32 by GGUF's names, one after another."""
    names = NAMES[family.name]
    joined = names.joined(expected_names(model, family.names(model)))
    for their_name, ours in joined.items():
        parts = [weight_or_zeros(weights, name) for name in ours]
        if names.interleaved:
            named = zip(ours, parts, strict=True)
            parts = [reordered(model, name, part, interleaved=True) for name, part in named]
        yield their_name, torch.cat(parts).float().contiguous().numpy()
    if model.rope_scaling == "llama3":
        yield "rope_freqs.weight", _divisors(model)


def _divisors(model: GPTConfig) -> np.ndarray:
    """The divisors of the rotary frequencies in Llama 3's scaling: (head_size / 2,) float32."""
    assert model.head_size
    frequency = frequencies(model.rope_base, model.head_size)
    original = model.rope_original_size or model.block_size
    scaling = (model.rope_scaling, model.rope_factor, original, model.rope_low, model.rope_high)
    slower, _ = scaled(frequency, model.rope_base, *scaling)
    divisors: np.ndarray = (frequency / slower).numpy()
    return divisors


def _kind(name: str, tensor: np.ndarray, kind: str) -> str:
    """The type in which a tensor is stored."""
    if tensor.ndim == 1 or name == "position_embd.weight":
        return "F32"
    weights, _ = BLOCKS[kind]
    return kind if tensor.shape[-1] % weights == 0 else "F16"


def _add(writer: "gguf.GGUFWriter", key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        assert isinstance(value, float) and math.isfinite(value)
        writer.add_float32(key, value)
