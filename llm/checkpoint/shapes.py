"""The name and shape of every weight of a network, from its options alone and without torch.

Built on torch's meta device the network would tell the same, but import a compiler for it.
"""

from pathlib import Path

from llm.errors import require
from llm.model.config import GPTConfig
from llm.options import from_plain
from llm.sealed import Plain

Shapes = dict[str, tuple[int, ...]]


def weight_shapes(config: GPTConfig) -> Shapes:
    """What ``GPT(**config).state_dict()`` holds, for resolved options."""
    n_embed, vocab_size = config.n_embed, config.vocab_size
    assert vocab_size is not None
    shapes: Shapes = {"embed.weight": (vocab_size, n_embed)}
    if config.position == "learned":
        shapes["position.weight"] = (config.block_size, n_embed)
    if config.smear:
        shapes["smear"] = (config.smear, n_embed)
    of_a_block = _block(config)
    for layer in range(config.n_layer):
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in of_a_block.items()}
    shapes |= _norm(config, "norm", n_embed)
    if not config.tie_embeddings:
        shapes["head.weight"] = (vocab_size, n_embed)
    return shapes


def _block(config: GPTConfig) -> Shapes:
    n_embed = config.n_embed
    n_head, n_kv_head, head_size = config.n_head, config.n_kv_head, config.head_size
    hidden = config.intermediate_size
    assert n_head and n_kv_head and head_size and hidden
    inner, shared = n_head * head_size, n_kv_head * head_size
    matrices = {
        "attention.q": (inner, n_embed), "attention.k": (shared, n_embed),
        "attention.v": (shared, n_embed), "attention.o": (n_embed, inner),
        "mlp.up": (hidden, n_embed), "mlp.down": (n_embed, hidden),
    }  # fmt: skip
    if config.mlp == "swiglu":
        matrices["mlp.gate"] = (hidden, n_embed)
    shapes: Shapes = {f"{name}.weight": shape for name, shape in matrices.items()}
    if config.bias:
        shapes |= {f"{name}.bias": shape[:1] for name, shape in matrices.items()}
    for name in ("attention_norm", "mlp_norm"):
        shapes |= _norm(config, name, n_embed)
    if config.qk_norm:
        for name in ("attention.q_norm", "attention.k_norm"):
            shapes |= _norm(config, name, head_size)
    if config.residual_scalars:
        shapes["mix"] = (2,)
    return shapes


def _norm(config: GPTConfig, name: str, size: int) -> Shapes:
    biased = config.norm == "layernorm" and config.bias
    return {f"{name}.{part}": (size,) for part in ("weight", *["bias"] * biased)}


def read_shape(saved: Plain, where: Path) -> GPTConfig:
    """The options of a network in the manifest ``where``, resolved; :class:`llm.errors.Refused` for
    options that no network can have.
    """
    config = from_plain(GPTConfig, saved, f"{where}: model.").resolve()
    require(config.vocab_size, f"{where}: model.vocab_size is missing")
    return config
