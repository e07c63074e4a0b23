"""Names of the weights in other programs: one table for each family."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

BLOCK = re.compile(r"^blocks\.(\d+)\.")


@dataclass(frozen=True)
class Names:
    """The other program's name of each of our modules; ``N`` stands for the number of a block.

    Modules with the same name are joined into one tensor, in the order of the table.
    """

    modules: dict[str, str]
    outer: str = ""  # prefix of their names that some files leave out
    transposed: bool = False  # matrices of blocks are stored as (in, out)
    interleaved: bool = False  # rotary pairs are (2i, 2i + 1), not (i, i + D / 2)
    unbiased: tuple[str, ...] = ()  # modules whose missing biases become zeros: parts of names
    ignored: str = r"(?!)"  # regular expression of buffers that we compute

    def theirs(self, name: str) -> str:
        """``blocks.3.attention.q.weight`` -> ``model.layers.3.self_attn.q_proj.weight``"""
        module, _, kind = name.rpartition(".")
        block = BLOCK.match(module)
        if block is None:
            return f"{self.modules[module]}.{kind}"
        part = self.modules[module[block.end() :]].replace(".N.", f".{block[1]}.")
        return f"{part}.{kind}"

    def joined(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Their name of each tensor -> the ones of our ``names`` that it joins, in their order."""
        found: dict[str, list[str]] = {}
        for name in names:
            found.setdefault(self.theirs(name), []).append(name)
        return found

    def is_zero(self, name: str) -> bool:
        """Whether ``name`` is a bias that the file lacks, so that ours is zero."""
        return name.endswith(".bias") and any(part in name for part in self.unbiased)

    def as_in(self, stored: Iterable[str]) -> "Names":
        """The same table without ``outer`` if no name in ``stored`` starts with it."""
        if not self.outer or any(name.startswith(self.outer) for name in stored):
            return self
        modules = {ours: name.removeprefix(self.outer) for ours, name in self.modules.items()}
        return replace(self, modules=modules)


LLAMA = Names(
    {
        "embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head",
        "attention_norm": "model.layers.N.input_layernorm",
        "attention.q": "model.layers.N.self_attn.q_proj",
        "attention.k": "model.layers.N.self_attn.k_proj",
        "attention.v": "model.layers.N.self_attn.v_proj",
        "attention.o": "model.layers.N.self_attn.o_proj",
        "attention.q_norm": "model.layers.N.self_attn.q_norm",
        "attention.k_norm": "model.layers.N.self_attn.k_norm",
        "mlp_norm": "model.layers.N.post_attention_layernorm",
        "mlp.gate": "model.layers.N.mlp.gate_proj",
        "mlp.up": "model.layers.N.mlp.up_proj",
        "mlp.down": "model.layers.N.mlp.down_proj",
    },
    ignored=r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
)  # fmt: skip
GPT2 = Names(
    {
        "embed": "transformer.wte", "position": "transformer.wpe",
        "norm": "transformer.ln_f", "head": "lm_head",
        "attention_norm": "transformer.h.N.ln_1",
        "attention.q": "transformer.h.N.attn.c_attn",
        "attention.k": "transformer.h.N.attn.c_attn",
        "attention.v": "transformer.h.N.attn.c_attn",
        "attention.o": "transformer.h.N.attn.c_proj",
        "mlp_norm": "transformer.h.N.ln_2",
        "mlp.up": "transformer.h.N.mlp.c_fc",
        "mlp.down": "transformer.h.N.mlp.c_proj",
    },
    outer="transformer.",
    transposed=True,
    ignored=r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",
)  # fmt: skip
NANOGPT = replace(GPT2, transposed=False)
CONSOLIDATED = Names(
    {
        "embed": "tok_embeddings", "norm": "norm", "head": "output",
        "attention_norm": "layers.N.attention_norm",
        "attention.q": "layers.N.attention.wq",
        "attention.k": "layers.N.attention.wk",
        "attention.v": "layers.N.attention.wv",
        "attention.o": "layers.N.attention.wo",
        "mlp_norm": "layers.N.ffn_norm",
        "mlp.gate": "layers.N.feed_forward.w1",
        "mlp.up": "layers.N.feed_forward.w3",
        "mlp.down": "layers.N.feed_forward.w2",
    },
    interleaved=True,
    ignored=r"rope\.freqs",
)  # fmt: skip
