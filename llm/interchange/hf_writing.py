"""Write a folder that transformers loads with AutoModelForCausalLM and AutoTokenizer."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from llm.checkpoint.tensors import save_durably
from llm.data.tokenizer import Tokenizer
from llm.disk import write_durably
from llm.errors import require
from llm.interchange.chat_template import KEY, SETTINGS, Chat
from llm.interchange.families import Family, choose_family, config_json
from llm.interchange.names import Names
from llm.interchange.tokenizer_writing import tokenizer_config, tokenizer_json
from llm.model.config import GPTConfig
from llm.sealed import Plain

GREEDY: Plain = {"do_sample": False}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def their_tensors(
    weights: Mapping[str, Tensor], model: GPTConfig, family: Family, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The weights by the names of ``family``; biases that it has and ``model`` lacks are zeros.

    Raises :class:`llm.errors.Refused` for a value that is too large for ``dtype``.
    """
    names = family.names(model)
    tensors = {}
    for name, ours in names.joined(expected_names(model, names)).items():
        parts = [weight_or_zeros(weights, one) for one in ours]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        is_matrix = tensor.dim() == 2 and ".h." in name
        tensors[name] = cast(name, tensor.T if names.transposed and is_matrix else tensor, dtype)
    return tensors


def cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` in ``dtype``; :class:`llm.errors.Refused` if a value is too large for it."""
    rounded = tensor.to(dtype).contiguous()
    finite = bool(rounded.isfinite().all())
    require(finite, f"{name} has values too large for {dtype}: take dtype=bf16 or fp32")
    return rounded


def expected_names(model: GPTConfig, names: Names) -> list[str]:
    """Our names of all tensors of the other program, q, k and v in this order."""
    layers = [name for name in names.modules if name.partition(".")[0] in
              ("attention_norm", "attention", "mlp_norm", "mlp")]  # fmt: skip
    outer: tuple[str, ...] = ("embed", "position", "norm")
    modules = [name for name in outer if name in names.modules]
    for number in range(model.n_layer):
        own = [name for name in layers if model.qk_norm or not name.endswith(("q_norm", "k_norm"))]
        modules += [f"blocks.{number}.{name}" for name in own]
    found = []
    for module in modules:
        found.append(f"{module}.weight")
        has_bias = names.transposed or ((model.bias or model.qkv_bias) and "norm" not in module)
        if has_bias and module not in ("embed", "position"):
            found += [] if names.is_zero(f"{module}.bias") else [f"{module}.bias"]
    return found + ([] if model.tie_embeddings else ["head.weight"])


def weight_or_zeros(weights: Mapping[str, Tensor], name: str) -> Tensor:
    """The weight ``name``, or zeros if it is a bias that our network does not have."""
    if name in weights:
        return weights[name]
    return torch.zeros(weights[name.removesuffix("bias") + "weight"].shape[0])


def write_hf(
    folder: Path, model: GPTConfig, weights: Mapping[str, Tensor], tokenizer: Tokenizer, dtype: str,
    chat: Chat | None = None,
) -> None:  # fmt: skip
    """Fill ``folder``. Raises :class:`llm.errors.Refused` if no architecture computes the same."""
    family = choose_family(model)
    tensors = their_tensors(weights, model, family, DTYPES[dtype])
    save_durably(tensors, folder / "model.safetensors", {"format": "pt"})
    end, named = tokenizer.end_of_text, str(DTYPES[dtype]).removeprefix("torch.")
    write_json(folder / "config.json", config_json(model, family, end, named))
    ends = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    write_json(folder / "generation_config.json", ends | _chat_end(chat, end) | GREEDY)
    write_tokenizer(folder, tokenizer, model.block_size, chat)


def write_tokenizer(folder: Path, tokenizer: Tokenizer, context: int, chat: Chat | None) -> None:
    """Write the tokenizer and the chat template. ``context``: tokens that the model reads."""
    write_json(folder / "tokenizer.json", tokenizer_json(tokenizer))
    template = {} if chat is None else {KEY: chat.template}
    write_json(folder / SETTINGS, tokenizer_config(tokenizer, context) | template)


def _chat_end(chat: Chat | None, end: int | None) -> Plain:
    """The ids that end generation, if an answer ends with another one than a text."""
    if chat is None or chat.end in (None, end):
        return {}
    return {"eos_token_id": chat.end if end is None else [end, chat.end]}


def write_json(path: Path, values: Plain) -> None:
    """Write a new file, indented for people."""
    write_durably(path, (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())
