"""The network: a decoder-only transformer that is Llama, Qwen3 or GPT-2, as its options say."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llm.model.config import GPTConfig
from llm.model.layers import MLPS, Attention, build_norm, recomputed, rotary_angles
from llm.model.loss import cap_logits, head_loss


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = build_norm(config, config.n_embed)
        self.attention = Attention(config)
        self.mlp_norm = build_norm(config, config.n_embed)
        self.mlp = MLPS[config.mlp](config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.drop(self.attention(recomputed(self.attention_norm, x), angles))
        x = x + self.drop(self.mlp(recomputed(self.mlp_norm, x)))
        return x


class GPT(nn.Module):
    """A language model over ``vocab_size`` tokens; its options are those of :class:`GPTConfig`."""

    cos: Tensor
    sin: Tensor
    checkpoint_every = 0  # compute every so manieth block again in the backward pass; 0: none

    def __init__(self, **options: Any) -> None:
        super().__init__()
        config = self.config = GPTConfig(**options).resolve()
        if config.vocab_size is None or config.head_size is None:
            raise ValueError("a network needs a vocab_size")
        self.embed = nn.Embedding(config.vocab_size, config.n_embed)
        self.position = (
            nn.Embedding(config.block_size, config.n_embed)
            if config.position == "learned"
            else None
        )
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = build_norm(config, config.n_embed)
        # A tied head has no weight of its own: it reads the embedding's (Press & Wolf 2017,
        # arXiv:1608.05859).
        self.head = (
            None
            if config.tie_embeddings
            else nn.Linear(config.n_embed, config.vocab_size, bias=False)
        )
        cos, sin = rotary_angles(config.block_size, config.head_size)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """GPT-2's initialisation: normal with std 0.02, zero biases, and norms of one.

        The two projections of a layer that write into the residual stream are scaled by
        1 / sqrt(2 n_layer), since 2 n_layer of them add up there (Radford et al. 2019, 2.3).
        """
        for name, parameter in self.named_parameters():
            if "norm" in name and name.endswith("weight"):
                nn.init.ones_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                residual = name.endswith((".o.weight", ".down.weight"))
                nn.init.normal_(
                    parameter, std=0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02
                )

    def hidden(self, tokens: Tensor) -> Tensor:
        """Token ids (B, T) -> the normalised output of the last layer (B, T, C)."""
        T = tokens.shape[1]
        if self.config.block_size < T:
            raise ValueError(f"{T} tokens are more than block_size={self.config.block_size}")
        x = self.embed(tokens)
        angles = None
        if self.position is not None:
            x = x + self.position(torch.arange(T, device=tokens.device))
        else:
            angles = (self.cos[:T], self.sin[:T])
        x = self.drop(x)
        every = self.checkpoint_every if torch.is_grad_enabled() else 0
        for number, block in enumerate(self.blocks):
            again = every and number % every == 0  # with the same dropout
            x = checkpoint(block, x, angles, use_reentrant=False) if again else block(x, angles)
        out: Tensor = self.norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., vocab_size) in float32."""
        return cap_logits(F.linear(hidden, self.head_weight).float(), self.config.logit_softcap)

    @property
    def head_weight(self) -> Tensor:
        """What turns the output of the last layer into logits (vocab_size, C)."""
        return self.embed.weight if self.head is None else self.head.weight

    def forward(
        self, tokens: Tensor, targets: Tensor | None = None, reduction: str = "mean"
    ) -> Tensor:
        """Logits (B, T, vocab_size), or the cross-entropy in nats against ``targets`` (B, T).

        ``reduction`` is ``mean`` or ``sum`` over the targets that are not ignored (-1), or
        ``none`` (B * T,).
        """
        hidden, config = self.hidden(tokens), self.config
        if targets is None:
            return self.logits(hidden)
        x, softcap = hidden.flatten(0, 1), config.logit_softcap
        return head_loss(x, self.head_weight, targets.flatten(), softcap, reduction, config.loss)

    def n_parameters(self) -> int:
        """Number of weights, each counted once."""
        return sum(parameter.numel() for parameter in self.parameters())
