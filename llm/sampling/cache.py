"""Readers: they take tokens and return the logits of the next one.

:class:`KVCache` stores the keys and values of all tokens in its window. :class:`Uncached` computes
the whole window again for each token: slow, and the reference for the cache.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.model.gpt import GPT


class Reader(Protocol):
    """Reads the tokens of B texts."""

    def read(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Start B texts; logits (B, V) of the token after each prompt."""

    def add(self, tokens: Sequence[int | None]) -> Tensor:
        """Append a token to each text, None to a text that has ended; logits (B, V)."""


def slide(window: list[int], token: int, block_size: int) -> bool:
    """Append ``token`` in place; if the window outgrows ``block_size``, drop its older half.

    Returns whether tokens were dropped. Keys and values from the second layer on depend on all
    earlier tokens, so after a drop all are computed again. Dropping half at once makes that rare.
    """
    window.append(token)
    is_full = len(window) > block_size
    if is_full:
        del window[: -max(1, block_size // 2)]
    return is_full


class Uncached:
    def __init__(self, model: GPT) -> None:
        self.model, self.windows = model, list[list[int]]()

    def read(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        self.windows = [list(prompt)[-self.model.config.block_size :] for prompt in prompts]
        return self._logits()

    def add(self, tokens: Sequence[int | None]) -> Tensor:
        for window, token in zip(self.windows, tokens, strict=True):
            if token is not None:
                slide(window, token, self.model.config.block_size)
        return self._logits()

    def _logits(self) -> Tensor:
        device = self.model.embed.weight.device
        last = [self.model.hidden(torch.tensor([w], device=device))[0, -1] for w in self.windows]
        return self.model.logits(torch.stack(last))


class LayerKeys:
    """Keys and values of one layer, allocated once: (B * G * block_size, D) each."""

    def __init__(self, cache: "KVCache", size: tuple[int, int], like: Tensor) -> None:
        self.cache = cache
        self.keys, self.values = like.new_zeros(size), like.new_zeros(size)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store ``k`` and ``v`` (B, G, T, D); returns the attention of ``q`` (B, H, T, D)."""
        cache, (B, H, T, D), G = self.cache, q.shape, k.shape[1]
        self.keys.index_copy_(0, cache.slots, k.reshape(-1, D))
        self.values.index_copy_(0, cache.slots, v.reshape(-1, D))
        if not cache.filled:  # a prompt attends only to itself
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=G != H)
        keys = self.keys.view(B, G, -1, D)[:, :, : cache.filled]
        values = self.values.view(B, G, -1, D)[:, :, : cache.filled]
        if T > 1:  # a longer prompt: see ContinuedCache
            return F.scaled_dot_product_attention(
                q, keys, values, attn_mask=cache.mask, enable_gqa=G != H
            )
        # Query heads that share a key head go into the dimension of positions, so no key is copied.
        y = F.scaled_dot_product_attention(
            q.reshape(B, G, H // G, D), keys, values, attn_mask=cache.mask
        )
        return y.view(B, H, 1, D)


class KVCache:
    """Keys and values of B texts, each at its own position.

    Takes 2 * B * n_layer * n_kv_head * block_size * head_size numbers, allocated once. On a GPU,
    shapes are the same for every token, as CUDA graphs and torch.compile need; on a CPU, attention
    reads only the filled part.
    """

    positions: Tensor  # (B, T) or (1, T), of the tokens being read
    slots: Tensor  # (B * G * T,): the rows of LayerKeys for their keys and values
    mask: Tensor | None  # (B, 1, T, filled): minus infinity after each of the T newest tokens

    def __init__(self, model: GPT) -> None:
        config = self.config = model.config
        assert config.n_kv_head and config.head_size
        self.model, self.weight = model, model.embed.weight
        self.static = self.weight.device.type != "cpu"
        self.n_kv_head, self.head_size = config.n_kv_head, config.head_size
        self.windows = list[list[int]]()
        self.layers = list[LayerKeys]()
        self.filled = 0  # positions that the next token attends to; 0 for a prompt

    def read(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        S = self.config.block_size
        self.windows = [list(prompt)[-S:] for prompt in prompts]
        size = (len(prompts) * self.n_kv_head * S, self.head_size)
        self.layers = [LayerKeys(self, size, self.weight) for _ in range(self.config.n_layer)]
        # (B, G): the first row of each text and head in LayerKeys.
        self.first_slots = S * torch.arange(size[0] // S, device=self.weight.device)
        self.first_slots = self.first_slots.view(len(prompts), self.n_kv_head)
        self.columns = torch.arange(S, device=self.weight.device)
        return self.prefill(range(len(prompts)), self.windows)

    def add(self, tokens: Sequence[int | None]) -> Tensor:
        S = self.config.block_size
        full = [
            row
            for row, token in enumerate(tokens)
            if token is not None and slide(self.windows[row], token, S)
        ]
        if full and S > 3:  # in a smaller window, only the new token is left
            self.prefill(full, [self.windows[row][:-1] for row in full])
        lengths = [len(window) for window in self.windows]
        self.filled = S if self.static else max(lengths)
        device = self.weight.device
        newest = torch.tensor([window[-1:] for window in self.windows], device=device)
        positions = torch.tensor([[length - 1] for length in lengths], device=device)
        return self.step(newest, positions, self.static or min(lengths) < max(lengths))

    def before(self, count: int) -> Tensor | None:
        """For smear: ids (B, count) of the tokens before the newest, -1 for missing ones.

        None while prompts are read.
        """
        if not self.filled:
            return None
        newest = self.positions.shape[1]
        rows = [[-1] * count + window[:-newest] for window in self.windows]
        return torch.tensor([row[-count:] for row in rows], device=self.weight.device)

    def step(self, newest: Tensor, positions: Tensor, is_masked: bool) -> Tensor:
        """Ids (B, T) at ``positions`` (B, T) -> logits (B, V) of the token after the last."""
        self.positions, self.mask = positions, None
        self.slots = (self.first_slots[..., None] + positions[:, None]).view(-1)
        if is_masked:
            unseen = (self.columns[: self.filled] > positions[..., None])[:, None]
            zero = torch.zeros(unseen.shape, dtype=self.weight.dtype, device=newest.device)
            self.mask = zero.masked_fill_(unseen, float("-inf"))
        return self.model.logits(self.model.hidden(newest, self)[:, -1])

    def prefill(self, rows: Sequence[int], windows: Sequence[list[int]]) -> Tensor:
        """Compute whole windows; logits (len(rows), V) of the next tokens.

        Shorter windows are padded at the end, so that causal attention does not see the padding;
        its keys are overwritten before they are read.
        """
        device, T = self.weight.device, max(map(len, windows))
        padded = torch.tensor([w + [0] * (T - len(w)) for w in windows], device=device)
        self.filled, self.positions = 0, self.columns[None, :T]
        self.slots = (self.first_slots[list(rows)][..., None] + self.columns[:T]).view(-1)
        hidden = self.model.hidden(padded, self)
        ends = torch.tensor([len(window) - 1 for window in windows], device=device)
        return self.model.logits(hidden[torch.arange(len(windows), device=device), ends])


class ContinuedCache(KVCache):
    """The cache of a chat, whose prompts start with the texts before: only new tokens are read."""

    def read(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """As :meth:`KVCache.read`, for one prompt."""
        (prompt,) = prompts
        S, window = self.config.block_size, list(prompt)
        known = min(self.known(window), len(window) - 1)  # the logits come from the last token
        if known == 0 or len(window) > S:
            return super().read(prompts)
        self.windows = [window]
        self.filled = S if self.static else len(window)
        device = self.weight.device
        newest = torch.tensor([window[known:]], device=device)
        positions = torch.arange(known, len(window), device=device)[None]
        return self.step(newest, positions, self.static or len(window) > known + 1)

    def known(self, prompt: Sequence[int]) -> int:
        """How many tokens at the start of ``prompt`` have been read already."""
        window = self.windows[0] if self.windows else []
        pairs = enumerate(zip(window, prompt, strict=False))
        shorter = min(len(window), len(prompt))
        return next((place for place, (one, other) in pairs if one != other), shorter)
