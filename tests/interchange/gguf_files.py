"""Small GGUF files, written by the library gguf."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from llm.data.definition import ALPHABET

HEADS, KV_HEADS, EMBED, INNER, LAYERS = 4, 2, 64, 96, 2
TOKENS = ["<|endoftext|>", "<|im_end|>", *ALPHABET, "th", "Ġth", "Ġthe"]
MERGES = ["t h", "Ġ th", "Ġth e"]


def add_tokenizer(writer: gguf.GGUFWriter, pre: str | None = "gpt-2") -> None:
    """A byte-level tokenizer with two special tokens and three merges."""
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(1)


def shapes(arch: str) -> dict[str, tuple[int, ...]]:
    """The tensors of a small network, by GGUF's names."""
    size, shared = EMBED // HEADS, EMBED // HEADS * KV_HEADS
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(TOKENS) + 3, EMBED)}
    norms = ("weight", "bias") if arch == "gpt2" else ("weight",)
    found |= {f"output_norm.{kind}": (EMBED,) for kind in norms}
    if arch == "gpt2":
        found["position_embd.weight"] = (32, EMBED)
    for i in range(LAYERS):
        block: dict[str, tuple[int, ...]] = {"attn_output.weight": (EMBED, EMBED)}
        block |= {
            f"{norm}.{kind}": (EMBED,) for norm in ("attn_norm", "ffn_norm") for kind in norms
        }
        if arch == "gpt2":
            block |= {"attn_qkv.weight": (3 * EMBED, EMBED), "attn_qkv.bias": (3 * EMBED,)}
            block |= {"attn_output.bias": (EMBED,), "ffn_up.bias": (INNER,)}
            block |= {"ffn_down.bias": (EMBED,)}
        else:
            block |= {f"attn_{n}.weight": (shared, EMBED) for n in "kv"}
            block |= {"attn_q.weight": (EMBED, EMBED), "ffn_gate.weight": (INNER, EMBED)}
        if arch == "qwen2":
            block |= {"attn_q.bias": (EMBED,), "attn_k.bias": (shared,), "attn_v.bias": (shared,)}
        if arch == "qwen3":
            block |= {"attn_q_norm.weight": (size,), "attn_k_norm.weight": (size,)}
        block |= {"ffn_up.weight": (INNER, EMBED), "ffn_down.weight": (EMBED, INNER)}
        found |= {f"blk.{i}.{name}": shape for name, shape in block.items()}
    return found


def write(
    path: Path, arch: str = "llama", kind: str = "F32", pre: str | None = "gpt-2",
    keys: dict[str, Any] | None = None, part: int = 0, **tensors: np.ndarray,
) -> Path:  # fmt: skip
    """A network with random weights; ``keys`` and ``tensors`` (``__`` for a dot) are added.

    ``part``: tensors in each of several files, as ``path-00001-of-00002.gguf``; 0: one file.
    """
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=part)
    writer.add_block_count(LAYERS)
    writer.add_context_length(32)
    writer.add_embedding_length(EMBED)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    if arch == "gpt2":
        writer.add_layer_norm_eps(1e-5)
    else:
        writer.add_head_count_kv(KV_HEADS)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(10_000.0)
    for key, value in (keys or {}).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        add[type(value)](key, value)
    add_tokenizer(writer, pre)
    random = np.random.default_rng(7)
    for name, shape in shapes(arch).items():
        values = random.normal(0, 0.2, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, 1 + values if "norm.weight" in name else values)
        else:
            number = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quantize(values, number), raw_dtype=number)
    for name, values in tensors.items():
        writer.add_tensor(name.replace("__", "."), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
