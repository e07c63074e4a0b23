"""What the network has seen so far: as keys and values, or as tokens to compute it from again.

Both readers below give the same logits and keep the same window, so that one checks the other.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.model.gpt import GPT


class Reader(Protocol):
    """Reads tokens for several rows of text, and says what may follow in each."""

    def read(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Begin with a prompt for each of B rows; logits (B, V) of the token after it."""

    def add(self, tokens: Sequence[int | None]) -> Tensor:
        """Go on with one token for each row, None for a row that has ended; logits (B, V)."""


def slide(window: list[int], token: int, block_size: int) -> bool:
    """Append ``token`` in place; where that outgrows ``block_size``, keep the newest half.

    Returns whether tokens were dropped. Dropping one at a time would change every key and value
    from the second layer on with every token, since each depends on what it saw; half at once
    makes that recomputation rare, and exact.
    """
    window.append(token)
    full = len(window) > block_size
    if full:
        del window[: -max(1, block_size // 2)]
    return full


class Uncached:
    """Computes the whole window anew for each token: slow, and the definition of what is right."""

    def __init__(self, model: GPT) -> None:
        self.model, self.windows = model, list[list[int]]()

    def read(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """As :meth:`Reader.read` says."""
        self.windows = [list(prompt)[-self.model.config.block_size :] for prompt in prompts]
        return self.logits()

    def add(self, tokens: Sequence[int | None]) -> Tensor:
        """As :meth:`Reader.add` says."""
        for window, token in zip(self.windows, tokens, strict=True):
            if token is not None:
                slide(window, token, self.model.config.block_size)
        return self.logits()

    def logits(self) -> Tensor:
        """Of the token after each window (B, V)."""
        device = self.model.embed.weight.device
        last = [self.model.hidden(torch.tensor([w], device=device))[0, -1] for w in self.windows]
        return self.model.logits(torch.stack(last))


class LayerKeys:
    """Keys and values of one layer, allocated once: (B * G * block_size, D) each."""

    def __init__(self, cache: "KVCache", size: tuple[int, int], like: Tensor) -> None:
        self.cache = cache
        self.keys, self.values = like.new_zeros(size), like.new_zeros(size)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write ``k`` and ``v`` (B, G, T, D) into their places; attention of ``q`` (B, H, T, D)."""
        cache, (B, H, _, D), G = self.cache, q.shape, k.shape[1]
        self.keys.index_copy_(0, cache.places, k.reshape(-1, D))
        self.values.index_copy_(0, cache.places, v.reshape(-1, D))
        if not cache.filled:  # the start of a text, which sees only itself
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=G != H)
        keys, values = (
            held.view(B, G, -1, D)[:, :, : cache.filled] for held in (self.keys, self.values)
        )
        # The query heads that share a key head stand where positions do: nothing is repeated.
        y = F.scaled_dot_product_attention(
            q.reshape(B, G, H // G, D), keys, values, attn_mask=cache.mask
        )
        return y.view(B, H, 1, D)


class KVCache:
    """Remembers keys and values for B rows of text, each at a position of its own.

    Takes 2 * B * n_layer * n_kv_head * block_size * head_size numbers, allocated once. On a GPU
    shapes never change from token to token, as CUDA graphs and torch.compile want it; on a CPU
    attention reads the filled part only.
    """

    positions: Tensor  # (B, T) of the tokens that are being read
    places: Tensor  # (B * G * T,) where in the layers their keys and values go
    mask: Tensor | None  # (B, 1, 1, filled), minus infinity where a row's newest token may not look

    def __init__(self, model: GPT) -> None:
        config = self.config = model.config
        assert config.n_kv_head and config.head_size
        self.model, self.weight = model, model.embed.weight
        self.static = self.weight.device.type != "cpu"
        self.n_kv_head, self.head_size = config.n_kv_head, config.head_size
        self.windows = list[list[int]]()
        self.layers = list[LayerKeys]()
        self.filled = 0  # places that the next token may read; 0: a text begins

    def read(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """As :meth:`Reader.read` says."""
        S = self.config.block_size
        self.windows = [list(prompt)[-S:] for prompt in prompts]
        size = (len(prompts) * self.n_kv_head * S, self.head_size)
        self.layers = [LayerKeys(self, size, self.weight) for _ in range(self.config.n_layer)]
        # Where each row and head begins in the rows of LayerKeys (B, G).
        self.begins = S * torch.arange(size[0] // S, device=self.weight.device)
        self.begins = self.begins.view(len(prompts), self.n_kv_head)
        self.columns = torch.arange(S, device=self.weight.device)
        return self.start(range(len(prompts)), self.windows)

    def add(self, tokens: Sequence[int | None]) -> Tensor:
        """As :meth:`Reader.add` says."""
        S = self.config.block_size
        full = [
            row
            for row, token in enumerate(tokens)
            if token is not None and slide(self.windows[row], token, S)
        ]
        if full and S > 3:  # else the half that is kept is the new token alone
            self.start(full, [self.windows[row][:-1] for row in full])
        lengths = [len(window) for window in self.windows]
        self.filled = S if self.static else max(lengths)
        device = self.weight.device
        newest = torch.tensor([window[-1:] for window in self.windows], device=device)
        positions = torch.tensor([[length - 1] for length in lengths], device=device)
        return self.step(newest, positions, self.static or min(lengths) < max(lengths))

    def before(self, count: int) -> Tensor | None:
        """As :meth:`llm.model.gpt.Cache.before` says."""
        if not self.filled:
            return None
        rows = [[-1] * count + window[:-1] for window in self.windows]
        return torch.tensor([row[-count:] for row in rows], device=self.weight.device)

    def step(self, newest: Tensor, positions: Tensor, masked: bool) -> Tensor:
        """Ids (B, 1) at ``positions`` (B, 1) -> logits (B, V) of the tokens after them."""
        self.positions, self.mask = positions, None
        self.places = (self.begins + positions).view(-1)
        if masked:
            unseen = (self.columns[: self.filled] > positions)[:, None, None]
            zero = torch.zeros(unseen.shape, dtype=self.weight.dtype, device=newest.device)
            self.mask = zero.masked_fill_(unseen, float("-inf"))
        return self.model.logits(self.model.hidden(newest, self)[:, -1])

    def start(self, rows: Sequence[int], windows: Sequence[list[int]]) -> Tensor:
        """Compute some rows from their beginning; logits (len(rows), V) of the tokens after.

        Shorter ones are padded at their end, which nothing before it sees; what that leaves in the
        cache is not read before it is overwritten.
        """
        device, T = self.weight.device, max(map(len, windows))
        padded = torch.tensor([w + [0] * (T - len(w)) for w in windows], device=device)
        self.filled, self.positions = 0, self.columns[None, :T]
        self.places = (self.begins[list(rows)][..., None] + self.columns[:T]).view(-1)
        hidden = self.model.hidden(padded, self)
        ends = torch.tensor([len(window) - 1 for window in windows], device=device)
        return self.model.logits(hidden[torch.arange(len(windows), device=device), ends])
