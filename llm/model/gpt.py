"""The network: a decoder-only transformer; its options make it Llama, Qwen3 or GPT-2."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llm.functional.linear import for_products, linear
from llm.functional.loss import head_loss
from llm.functional.recompute import recomputed
from llm.model import layers
from llm.model.config import GPTConfig
from llm.model.quantised import n_weights


class Cache(Protocol):
    """Keys and values of the tokens so far, for decoding: see :mod:`llm.sampling.cache`."""

    positions: Tensor  # (B, T), of the next tokens

    def before(self, count: int) -> Tensor | None:
        """Ids (B, count) of the tokens before the next ones, -1 before the start of a text; None if
        all texts start now.
        """

    @property
    def layers(self) -> Sequence[layers.LayerCache]:
        """One cache per block."""


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = layers.build_norm(config, config.n_embed)
        self.attention = layers.Attention(config)
        self.mlp_norm = layers.build_norm(config, config.n_embed)
        self.mlp = layers.build_mlp(config)
        self.drop = layers.build_dropout(config)
        # Each block mixes the embedding back in (modded-nanogpt, record 9).
        self.mix = nn.Parameter(torch.empty(2)) if config.residual_scalars else None

    def forward(
        self, x: Tensor, start: Tensor, angles: layers.Angles,
        cache: layers.LayerCache | None = None, mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """(B, T, C) -> (B, T, C); ``start`` is the input of the first block."""
        if self.mix is not None:
            x = self.mix[0] * x + self.mix[1] * start
        normed = recomputed(lambda x: for_products(self.attention_norm(x)), x)
        x = x + self.drop(self.attention(normed, angles, cache, mask))
        normed = recomputed(lambda x: for_products(self.mlp_norm(x)), x)
        out: Tensor = x + self.drop(self.mlp(normed))
        return out


class GPT(nn.Module):
    """A language model over ``vocab_size`` tokens, from the options in :class:`GPTConfig`."""

    cos: Tensor
    sin: Tensor
    checkpoint_every = 0  # checkpoint every n-th block; 0: off

    def __init__(self, **options: Any) -> None:
        super().__init__()
        config = self.config = GPTConfig(**options).resolve()
        if config.vocab_size is None or config.head_size is None:
            raise ValueError("a network needs a vocab_size")
        C, V, learned = config.n_embed, config.vocab_size, config.position == "learned"
        self.embed = nn.Embedding(V, C)
        self.position = nn.Embedding(config.block_size, C) if learned else None
        self.smear = nn.Parameter(torch.empty(config.smear, C)) if config.smear else None
        self.drop = layers.build_dropout(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = layers.build_norm(config, C)
        # A tied head uses the embedding's weight (Press & Wolf 2017, arXiv:1608.05859).
        self.head = None if config.tie_embeddings else nn.Linear(C, V, bias=False)
        angles = (config.block_size, config.head_size)
        self.register_buffer("cos", torch.empty(angles), persistent=False)
        self.register_buffer("sin", torch.empty(angles), persistent=False)
        if not self.cos.is_meta:  # on meta there are only shapes: llm.checkpoint
            self.cos, self.sin = layers.rotary_angles(config)
            self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """GPT-2's initialisation: normal with std 0.02, zero biases, unit norms.

        The two projections of a block into the residual stream are scaled by 1 / sqrt(2 n_layer),
        because 2 n_layer of them are summed there (Radford et al. 2019, 2.3).
        """
        for name, parameter in self.named_parameters():
            if "norm" in name and name.endswith("weight"):
                nn.init.ones_(parameter)
            elif name.endswith(".mix"):
                parameter.copy_(torch.tensor([1.0, 0.1]))
            elif name == "smear" or name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                residual = name.endswith((".o.weight", ".down.weight"))
                depth = 2 * self.config.n_layer if residual else 1
                nn.init.normal_(parameter, std=0.02 / math.sqrt(depth))

    def hidden(
        self, tokens: Tensor, cache: Cache | None = None, documents: Tensor | None = None
    ) -> Tensor:
        """Token ids (B, T) -> the normalised output of the last block (B, T, C).

        With a ``cache`` the tokens are at ``cache.positions`` and also attend to the cached tokens.
        ``documents`` (B, T) int64 numbers the texts that are packed side by side in a row: each is
        computed as if it were alone.
        """
        T = tokens.shape[1]
        if self.config.block_size < T:
            raise ValueError(f"{T} tokens are more than block_size={self.config.block_size}")
        x = self.embed(tokens)
        if self.smear is not None:
            before = None if cache is None else cache.before(len(self.smear))
            if before is not None:
                before = self.embed(before.clamp(min=0)) * (before >= 0)[..., None]
            x = layers.smeared(x, self.smear, before, documents)
        angles = None
        if self.position is not None:
            if cache is not None:
                at = cache.positions
            elif documents is not None:
                at = layers.positions_in(documents)
            else:
                at = torch.arange(T, device=tokens.device)
            x = x + self.position(at)
        elif cache is None:
            angles = (self.cos[:T], self.sin[:T])
        else:
            angles = (self.cos[cache.positions][:, None], self.sin[cache.positions][:, None])
        # Rotary positions need not restart: attention depends only on their differences.
        mask = None if documents is None else layers.added_mask(documents, x)
        start = x = self.drop(x)
        every = self.checkpoint_every if torch.is_grad_enabled() else 0
        for i, block in enumerate(self.blocks):
            if every and i % every == 0:  # recomputed in the backward pass, with the same dropout
                x = checkpoint(block, x, start, angles, None, mask, use_reentrant=False)
            else:
                x = block(x, start, angles, None if cache is None else cache.layers[i], mask)
        out: Tensor = self.norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., vocab_size) in float32."""
        return linear(hidden, self.head_weight).float()

    @property
    def head_weight(self) -> Tensor:
        """The output matrix (vocab_size, C)."""
        return self.embed.weight if self.head is None else self.head.weight

    def forward(
        self, tokens: Tensor, targets: Tensor | None = None, documents: Tensor | None = None,
        reduction: str = "mean",
    ) -> Tensor:  # fmt: skip
        """Logits (B, T, vocab_size), or with ``targets`` (B, T) the cross-entropy in nats.

        ``documents`` (B, T): see :meth:`hidden`.
        ``reduction``: ``mean``, ``sum`` or ``none`` (B * T,); targets of -1 are ignored.
        """
        hidden = self.hidden(tokens, documents=documents)
        if targets is None:
            return self.logits(hidden)
        x, ids = hidden.flatten(0, 1), targets.flatten()
        return head_loss(x, self.head_weight, ids, reduction, self.config.loss)

    def n_parameters(self) -> int:
        """Number of weights, each counted once; adapters do not count."""
        return n_weights(self)
