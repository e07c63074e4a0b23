"""GGUF files, as llama.cpp and ollama read them: Llama, Qwen2, Qwen3 and GPT-2."""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm.data.tokenizer import Tokenizer
from llm.errors import Refused, require
from llm.interchange.chat_template import as_chat
from llm.interchange.files import FileSource, require_supported, resolved
from llm.interchange.gguf_file import MAGIC, Header, read_header, read_tensor
from llm.interchange.gguf_tokenizer import tokenizer_of_keys
from llm.interchange.gguf_vocabulary import own_tokenizer
from llm.interchange.names import Names
from llm.interchange.quants import dequantize
from llm.model.config import GPTConfig

if TYPE_CHECKING:
    from torch import Tensor

    from llm.interchange.assemble import Stored

QWEN = Names(
    {
        "embed": "token_embd", "position": "position_embd", "norm": "output_norm",
        "head": "output", "attention_norm": "blk.N.attn_norm", "attention.q": "blk.N.attn_q",
        "attention.k": "blk.N.attn_k", "attention.v": "blk.N.attn_v",
        "attention.o": "blk.N.attn_output", "attention.q_norm": "blk.N.attn_q_norm",
        "attention.k_norm": "blk.N.attn_k_norm", "mlp_norm": "blk.N.ffn_norm",
        "mlp.gate": "blk.N.ffn_gate", "mlp.up": "blk.N.ffn_up", "mlp.down": "blk.N.ffn_down",
    },
    ignored=r"rope_freqs\.weight",
)  # fmt: skip
LLAMA = replace(QWEN, interleaved=True)  # llama.cpp rotates pairs (2i, 2i + 1) in Llama only
JOINED = {f"attention.{part}": "blk.N.attn_qkv" for part in "qkv"}
GPT2 = replace(QWEN, modules=QWEN.modules | JOINED)
NAMES = {"llama": LLAMA, "qwen2": QWEN, "qwen3": QWEN, "gpt2": GPT2}
# The keys of an architecture that this program reads. Any other may change the logits.
KNOWN = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size",
    "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.value_length", "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon",
    "rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor",
    "rope.scaling.original_context_length", "rope.scaling.finetuned",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
}  # fmt: skip
ONLY = {"expert_count": 0, "expert_used_count": 0, "rope.scaling.attn_factor": 1.0}
CHAT_KEY = "tokenizer.chat_template"
# Llama 3's scaling of rotary positions, which a file gives as a tensor: low, high, original size.
LLAMA3 = (1.0, 4.0, 8192)
LLAMA3_FACTORS = (8.0, 32.0)  # of Llama 3.1 and of 3.2


class _Keys:
    """The keys of an architecture, with their types checked."""

    def __init__(self, header: Header, arch: str) -> None:
        self.path, self.arch, prefix = header.path, arch, f"{arch}."
        self.values = {
            key.removeprefix(prefix): value for key, value in header.values.items()
            if key.startswith(prefix)
        }  # fmt: skip
        for key, value in self.values.items():
            is_allowed = key in KNOWN or (key in ONLY and value == ONLY[key])
            require_supported(is_allowed, f"{self.path}: {prefix}{key:.60}", value)

    def whole(self, key: str, default: int | None = None) -> int:
        return int(self._number(key, default, (int,)))

    def number(self, key: str, default: float | None = None) -> float:
        return float(self._number(key, default, (int, float)))

    def _number(self, key: str, default: float | None, types: tuple[type, ...]) -> Any:
        value: Any = self.values.get(key, default)
        require(value is not None, f"{self.path} has no {self.arch}.{key}")
        is_number = type(value) in types and 0 < value < 1 << 40
        kind = "number" if float in types else "whole number"
        shown = f"{self.path}: {self.arch}.{key}={value!r:.60}"
        require(is_number, f"{shown} must be a positive {kind} below 2^40")
        return value


def is_gguf(place: str) -> bool:
    """Whether ``place`` is a file that starts with GGUF's magic bytes, or ends in ``.gguf``."""
    if not os.path.isfile(place):  # Path.is_file raises if the name is too long
        return False
    try:
        with open(place, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC or place.endswith(".gguf")
    except OSError as error:
        raise Refused(f"{place} cannot be read: {error.strerror}") from None


def open_gguf(place: str, file: Path | None = None) -> FileSource:
    """The network in a GGUF file: ``file``, or the file at ``place``.

    Raises :class:`llm.errors.Refused` for another architecture, for a part of a split file, and
    for a key that may change the logits.
    """
    path = Path(place) if file is None else file
    header = read_header(path)
    _require_whole(header)
    arch = header.values.get("general.architecture")
    known = ", ".join(NAMES)
    require(
        isinstance(arch, str) and arch in NAMES,
        f"{path} is of the architecture {arch!r:.60}, and this program reads {known}",
    )
    keys = _Keys(header, str(arch))
    config = _model(keys, header)
    return FileSource(
        kind="gguf", place=place, model=resolved(config, path), names=NAMES[keys.arch],
        files=(path,), read=partial(_stored, header), context=config.block_size,
        find_tokenizer=lambda: _tokenizer(header),
        find_chat=lambda: as_chat(header.values.get(CHAT_KEY)),
    )  # fmt: skip


def _require_whole(header: Header) -> None:
    count = header.values.get("split.count")
    require(
        type(count) is not int or count < 2,
        f"{header.path} is one of {count} parts of a network: merge them first, with "
        "llama-gguf-split --merge FIRST_PART.gguf MERGED.gguf",
    )


def _tokenizer(header: Header) -> Tokenizer:
    """The tokenizer in the key of our own exports, or the one in llama.cpp's keys."""
    return own_tokenizer(header.values) or tokenizer_of_keys(header.values, header.path)


def _model(keys: _Keys, header: Header) -> GPTConfig:
    n_embed, n_head = keys.whole("embedding_length"), keys.whole("attention.head_count")
    is_gpt2 = keys.arch == "gpt2"
    head_size = keys.whole("attention.key_length", max(1, n_embed // n_head))
    for key in ("attention.value_length", "rope.dimension_count"):
        other = keys.whole(key, head_size)
        require(
            other == head_size,
            f"{keys.path}: {keys.arch}.{key}={other}, and this program needs the size of a head, "
            f"{head_size}",
        )
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise Refused(f"{keys.path} has no tensor token_embd.weight")
    has_bias = not is_gpt2 and "blk.0.attn_q.bias" in header.tensors
    norm = "layer_norm_epsilon" if is_gpt2 else "layer_norm_rms_epsilon"
    model = GPTConfig(
        n_layer=keys.whole("block_count"), n_embed=n_embed, n_head=n_head, head_size=head_size,
        n_kv_head=keys.whole("attention.head_count_kv", n_head),
        intermediate_size=keys.whole("feed_forward_length"),
        block_size=keys.whole("context_length"), vocab_size=embedding.shape[0],
        # The shortest number with this value in float32: 1e-05, and not 9.99999974e-06.
        norm_eps=float(str(np.float32(keys.number(f"attention.{norm}")))),
        qk_norm=keys.arch == "qwen3",
        tie_embeddings="output.weight" not in header.tensors,
        bias="blk.0.attn_output.bias" in header.tensors,
        qkv_bias=has_bias and "blk.0.attn_output.bias" not in header.tensors,
    )  # fmt: skip
    if is_gpt2:
        return replace(model, norm="layernorm", mlp="gelu", position="learned", bias=True)
    return replace(model, rope_base=keys.number("rope.freq_base", 10_000.0), **_rope(keys, header))


def _rope(keys: _Keys, header: Header) -> dict[str, Any]:
    """How rotary positions are scaled for longer texts."""
    kind = keys.values.get("rope.scaling.type", "none")
    if "rope_freqs.weight" in header.tensors:
        require(
            kind == "none", f"{keys.path} has rope_freqs.weight and rope.scaling.type={kind!r:.60}"
        )
        return _llama3(keys, header)
    factor = keys.number("rope.scaling.factor", 1.0)
    if kind == "none" or factor == 1:
        return {}
    require(
        kind in ("linear", "yarn"),
        f"{keys.path}: {keys.arch}.rope.scaling.type={kind!r:.60}, and this program has linear "
        "and yarn",
    )
    scaling: dict[str, Any] = {"rope_scaling": kind, "rope_factor": factor}
    if kind == "yarn":
        original = keys.whole("rope.scaling.original_context_length", keys.whole("context_length"))
        scaling |= {
            "rope_original_size": original,
            "rope_low": keys.number("rope.scaling.yarn_beta_slow", 1.0),
            "rope_high": keys.number("rope.scaling.yarn_beta_fast", 32.0),
        }
    return scaling


def _llama3(keys: _Keys, header: Header) -> dict[str, Any]:
    """Llama 3's scaling. ``rope_freqs.weight`` has its divisors of the frequencies."""
    tensor = header.tensors["rope_freqs.weight"]
    size = keys.whole("embedding_length") // keys.whole("attention.head_count")
    count = keys.whole("attention.key_length", size) // 2
    require(
        tensor.kind == "F32" and tensor.shape == (count,),
        f"{keys.path}: rope_freqs.weight is {tensor.kind} of the shape {tensor.shape}",
    )
    found = dequantize(read_tensor(keys.path, tensor), "F32")
    base, (low, high, original) = keys.number("rope.freq_base", 10_000.0), LLAMA3
    turns = original / (2 * np.pi * base ** (np.arange(count) / count))  # in the original context
    share = np.clip((turns - low) / (high - low), 0, 1)
    for factor in LLAMA3_FACTORS:
        if np.allclose(found, 1 / ((1 - share) / factor + share), rtol=1e-4):
            return {
                "rope_scaling": "llama3", "rope_factor": factor, "rope_original_size": original,
                "rope_low": low, "rope_high": high,
            }  # fmt: skip
    raise Refused(
        f"{keys.path}: rope_freqs.weight scales rotary positions in another way than Llama 3.1 and "
        "3.2, and this program does not support it"
    )


def _stored(header: Header, files: tuple[Path, ...]) -> "Mapping[str, Stored]":
    from llm.interchange.assemble import Stored

    return {
        name: Stored(tensor.shape, "F32", partial(_weights, header, name))
        for name, tensor in header.tensors.items()
    }


def _weights(header: Header, name: str) -> "Tensor":
    import torch

    tensor = header.tensors[name]
    weights = dequantize(read_tensor(header.path, tensor), tensor.kind)
    return torch.from_numpy(weights.reshape(tensor.shape))
