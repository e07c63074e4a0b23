"""The parts of a block: norms, rotary positions, attention and the two MLPs.

Shapes: B sequences, T positions, C = n_embed, H = n_head, G = n_kv_head, D = head_size.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.functional.gated import gated
from llm.functional.linear import for_products, linear
from llm.functional.norm import rms_norm
from llm.functional.recompute import recomputed
from llm.functional.rotary import frequencies, rotate, scaled
from llm.model.config import GPTConfig

RMS_EPS, LAYER_EPS = 1e-6, 1e-5  # of Llama and Qwen3; of GPT-2


class Linear(nn.Linear):
    """torch's layer, computed by :func:`llm.functional.linear.linear`."""

    dropout = 0.0  # of the input of an adapter (llm/model/lora.py)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return linear(x, self.weight, self.bias)


def build_norm(config: GPTConfig, size: int) -> nn.Module:
    """RMSNorm or LayerNorm over the last ``size`` channels."""
    if config.norm == "layernorm":
        return nn.LayerNorm(size, eps=config.norm_eps or LAYER_EPS, bias=config.bias)
    return RMSNorm(size, eps=config.norm_eps or RMS_EPS)


def build_dropout(config: GPTConfig) -> nn.Module:
    """Dropout, or the identity for a rate of 0: nn.Dropout costs time in decoding."""
    return nn.Dropout(config.dropout) if config.dropout else nn.Identity()


class RMSNorm(nn.RMSNorm):
    """torch's layer, computed by :func:`llm.functional.norm.rms_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> (..., size)."""
        return rms_norm(x, self.weight, self.eps or RMS_EPS)


def rotary_angles(config: GPTConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position x frequency, each (block_size, D), in half-split form as in Llama
    (Su et al. 2021, arXiv:2104.09864, section 3.2.2).
    """
    assert config.head_size
    original = config.rope_original_size or config.block_size
    scaling = (config.rope_scaling, config.rope_factor, original, config.rope_low, config.rope_high)
    frequency = frequencies(config.rope_base, config.head_size)
    frequency, scale = scaled(frequency, config.rope_base, *scaling)
    angle = torch.arange(config.block_size, dtype=torch.float32)[:, None] * frequency.repeat(2)
    return angle.cos() * scale, angle.sin() * scale


def positions_in(documents: Tensor) -> Tensor:
    """The position of each token in its own document: (B, T) int64, from 0."""
    at = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    is_first = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
    return at - torch.where(is_first, at, 0).cummax(dim=1).values


def mask_between(documents: Tensor) -> Tensor:
    """(B, 1, T, T): whether a query (third dimension) attends to a key (fourth), which is not
    later and in the same document.
    """
    return (documents[:, :, None] == documents[:, None, :]).tril()[:, None]


def added_mask(documents: Tensor, like: Tensor) -> Tensor:
    """:func:`mask_between` as numbers to add to the scores, in the type of matrix products.

    Torch's kernels would convert a boolean mask in each layer, and store each result for the
    backward pass. This one is stored once.
    """
    mask = mask_between(documents)
    return for_products(like.new_zeros(mask.shape)).masked_fill_(~mask, float("-inf"))


def smeared(
    x: Tensor, weights: Tensor, before: Tensor | None = None, documents: Tensor | None = None
) -> Tensor:
    """Each position of ``x`` (B, T, C) plus its K predecessors, channels weighted by (K, C).

    ``before`` (B, K, C) precedes ``x``; None: zeros. Predecessors in another one of the
    ``documents`` (B, T) count as zeros. The first layer then sees short strings, which
    say more than single characters. modded-nanogpt's smear (record 34) has K = 1; Primer's short
    convolutions are similar (So et al. 2021, arXiv:2109.08668).
    """
    K, T = weights.shape[0], x.shape[1]
    line = F.pad(x, (0, 0, K, 0)) if before is None else torch.cat([before, x], dim=1)
    for back in range(1, K + 1):
        earlier = line[:, K - back : K - back + T]
        if documents is not None:
            theirs = F.pad(documents, (back, 0), value=-1)[:, :T]
            earlier = earlier * (documents == theirs)[..., None]
        x = torch.addcmul(x, weights[back - 1], earlier)
    return x


Angles = tuple[Tensor, Tensor] | None  # from :func:`rotary_angles`; None: no rotation


class LayerCache(Protocol):
    """Keys and values of the tokens so far, for one layer: see :mod:`llm.sampling.cache`."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append ``k`` and ``v`` (B, G, T, D); return the attention of ``q`` (B, H, T, D)."""


class Attention(nn.Module):
    """Causal self-attention in which H query heads share G key and value heads."""

    # For decoding: weight and bias of q, k and v in one tensor, for one matrix product instead of
    # three. Set by :func:`llm.sampling.layout.lay_out_for_decoding`.
    qkv: tuple[Tensor, Tensor | None] | None = None

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        assert config.n_head and config.n_kv_head and config.head_size
        self.n_head, self.n_kv_head = config.n_head, config.n_kv_head
        self.head_size, self.qk_norm = config.head_size, config.qk_norm
        self.dropout = config.dropout
        inner, shared = self.n_head * self.head_size, self.n_kv_head * self.head_size
        bias = config.bias or config.qkv_bias
        self.q = Linear(config.n_embed, inner, bias=bias)
        self.k = Linear(config.n_embed, shared, bias=bias)
        self.v = Linear(config.n_embed, shared, bias=bias)
        self.o = Linear(inner, config.n_embed, bias=config.bias)
        # Over each head, with weights and before the rotation, as in Qwen3 (arXiv:2505.09388).
        self.q_norm = build_norm(config, self.head_size) if config.qk_norm else nn.Identity()
        self.k_norm = build_norm(config, self.head_size) if config.qk_norm else nn.Identity()

    def forward(
        self, x: Tensor, angles: Angles, cache: LayerCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """(B, T, C) -> (B, T, C). ``mask`` (B, 1, T, T) is added to the scores; None: causal."""
        B, T, _ = x.shape
        if self.qkv is not None:
            heads = linear(x, *self.qkv).view(B, T, -1, self.head_size)
            q, k, v = torch.split(heads, [self.n_head, self.n_kv_head, self.n_kv_head], dim=2)
        else:
            q = self.q(x).view(B, T, self.n_head, self.head_size)
            k = self.k(x).view(B, T, self.n_kv_head, self.head_size)
            v = self.v(x).view(B, T, self.n_kv_head, self.head_size)
        if self.qk_norm:  # in the type of the weights: a mix of types is slower and torch warns
            q, k = self.q_norm(q.to(self.q.weight.dtype)), self.k_norm(k.to(self.k.weight.dtype))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast the norms return float32
        if cache is not None:
            y = cache.attend(q, k, v)
        else:
            dropout, grouped = self.dropout if self.training else 0.0, self.n_kv_head != self.n_head
            if grouped and mask is not None and x.device.type == "cuda":
                # Of torch's kernels for CUDA, the one that takes a mask has no shared heads.
                share = self.n_head // self.n_kv_head
                k, v = (one.repeat_interleave(share, dim=1) for one in (k, v))
                grouped = False
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None,
                enable_gqa=grouped,
            )  # fmt: skip
        out: Tensor = self.o(y.transpose(1, 2).reshape(B, T, -1))
        return out


class SwiGLU(nn.Module):
    """Llama's gated MLP: down(silu(gate(x)) * up(x))."""

    # For decoding, as in Attention: weight and bias of gate and up in one tensor.
    gate_up: tuple[Tensor, Tensor | None] | None = None

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        assert config.intermediate_size
        self.gate = Linear(config.n_embed, config.intermediate_size, bias=config.bias)
        self.up = Linear(config.n_embed, config.intermediate_size, bias=config.bias)
        self.down = Linear(config.intermediate_size, config.n_embed, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        if self.gate_up is not None:
            out: Tensor = self.down(gated(*linear(x, *self.gate_up).chunk(2, dim=-1)))
            return out
        is_random = self.training and self.down.dropout > 0
        return recomputed(
            lambda g, u: self.down(gated(g, u)), self.gate(x), self.up(x), is_random=is_random
        )


def relu2(x: Tensor) -> Tensor:
    """relu(x) ** 2, as in Primer (So et al. 2021, arXiv:2109.08668)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu2": relu2,
    "gelu": partial(F.gelu, approximate="tanh"),  # GPT-2's
    "gelu_exact": F.gelu,  # nanoGPT's
}


class MLP(nn.Module):
    """GPT-2's MLP: down(activation(up(x)))."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        assert config.intermediate_size
        self.activation = ACTIVATIONS[config.mlp]
        self.up = Linear(config.n_embed, config.intermediate_size, bias=config.bias)
        self.down = Linear(config.intermediate_size, config.n_embed, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        is_random = self.training and self.down.dropout > 0
        return recomputed(lambda u: self.down(self.activation(u)), self.up(x), is_random=is_random)


def build_mlp(config: GPTConfig) -> nn.Module:
    """The MLP that ``config.mlp`` names."""
    return SwiGLU(config) if config.mlp == "swiglu" else MLP(config)
