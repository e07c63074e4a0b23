"""The parts of a block: norms, rotary positions, attention and the two MLPs.

Shapes: B sequences, T positions, C = n_embed, H = n_head, G = n_kv_head, D = head_size.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llm.model.config import GPTConfig

ROPE_BASE = 10_000.0  # Su et al. 2021, arXiv:2104.09864, section 3.2.2; Llama's value too
RMS_EPS, LAYER_EPS = 1e-6, 1e-5  # those of Llama / Qwen3 and of GPT-2

RECOMPUTED_FROM = 2**20  # numbers in a tensor; for fewer, the calls cost more than the memory


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``function(*inputs)``, keeping only large inputs and no steps between for the backward pass.

    They are computed again there, up to the last tensor needed: not a matrix product at the end.
    """
    if torch.is_grad_enabled() and inputs[0].numel() >= RECOMPUTED_FROM:
        out: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
        return out
    return function(*inputs)


def build_norm(config: GPTConfig, size: int) -> nn.Module:
    """RMSNorm or LayerNorm over the last ``size`` channels."""
    if config.norm == "layernorm":
        return nn.LayerNorm(size, eps=LAYER_EPS, bias=config.bias)
    return nn.RMSNorm(size, eps=RMS_EPS)


def rotary_angles(block_size: int, head_size: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position x frequency, each (T, D), in half-split form as Llama's."""
    frequency = ROPE_BASE ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
    angle = torch.arange(block_size, dtype=torch.float32)[:, None] * frequency
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + D/2) of ``x`` (B, H, T, D) by their positions' angles (T, D)."""
    low, high = x.chunk(2, dim=-1)
    turned = torch.cat([-high, low], dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention in which H query heads share G key and value heads."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        assert config.n_head and config.n_kv_head and config.head_size
        self.n_head, self.n_kv_head, self.head_size = (
            config.n_head,
            config.n_kv_head,
            config.head_size,
        )
        self.dropout, self.qk_norm = config.dropout, config.qk_norm
        inner, shared = self.n_head * self.head_size, self.n_kv_head * self.head_size
        self.q = nn.Linear(config.n_embed, inner, bias=config.bias)
        self.k = nn.Linear(config.n_embed, shared, bias=config.bias)
        self.v = nn.Linear(config.n_embed, shared, bias=config.bias)
        self.o = nn.Linear(inner, config.n_embed, bias=config.bias)
        # Over each head, with weights and before the rotation, as Qwen3 has it (arXiv:2505.09388).
        self.q_norm = build_norm(config, self.head_size) if config.qk_norm else nn.Identity()
        self.k_norm = build_norm(config, self.head_size) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
        """(B, T, C) -> (B, T, C); ``angles`` are those of :func:`rotary_angles`, or None."""
        B, T, _ = x.shape
        q = self.q(x).view(B, T, self.n_head, self.head_size)
        k = self.k(x).view(B, T, self.n_kv_head, self.head_size)
        v = self.v(x).view(B, T, self.n_kv_head, self.head_size)
        if self.qk_norm:  # in the weights' own precision: torch warns of a mix, and is slower
            q, k = self.q_norm(q.to(self.q.weight.dtype)), self.k_norm(k.to(self.k.weight.dtype))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        y = F.scaled_dot_product_attention(
            q.to(v.dtype),  # a norm has left q and k in float32 under autocast
            k.to(v.dtype),
            v,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=True,
            enable_gqa=self.n_kv_head != self.n_head,
        )
        out: Tensor = self.o(y.transpose(1, 2).reshape(B, T, -1))
        return out


class SwiGLU(nn.Module):
    """Gated MLP of Llama: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.n_embed, config.hidden_size, bias=config.bias)
        self.up = nn.Linear(config.n_embed, config.hidden_size, bias=config.bias)
        self.down = nn.Linear(config.hidden_size, config.n_embed, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return recomputed(lambda g, u: self.down(F.silu(g) * u), self.gate(x), self.up(x))


class GELU(nn.Module):
    """MLP of GPT-2: down(gelu(up(x))), with GELU in the tanh form that it was trained with."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.n_embed, config.hidden_size, bias=config.bias)
        self.down = nn.Linear(config.hidden_size, config.n_embed, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return recomputed(lambda u: self.down(F.gelu(u, approximate="tanh")), self.up(x))


MLPS: dict[str, type[nn.Module]] = {"swiglu": SwiGLU, "gelu": GELU}
