"""Text from a model, one token at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from llm.errors import require
from llm.model.gpt import GPT
from llm.sampling.filters import filtered


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen."""

    max_new_tokens: int = 500
    temperature: float = 0.8  # 0: always the most likely one
    top_k: int | None = 200
    top_p: float | None = None

    def check(self) -> None:
        """Raise :class:`llm.errors.Refused` naming the first value out of its range."""
        require(
            self.max_new_tokens >= 1, f"max_new_tokens={self.max_new_tokens} must be at least 1"
        )
        require(
            0 <= self.temperature < float("inf"),
            f"temperature={self.temperature} must be 0 or more",
        )
        require(
            self.top_k is None or self.top_k >= 1, f"top_k={self.top_k} must be at least 1, or null"
        )
        require(
            self.top_p is None or 0 < self.top_p <= 1,
            f"top_p={self.top_p} must be in (0, 1], or null",
        )


@torch.no_grad()
def generate(
    model: GPT,
    prompt: list[int],
    options: SamplingOptions,
    seed: int,
    n_tokens: int,
    end: int | None = None,
) -> Iterator[tuple[int, float]]:
    """Yield (token id, log-probability in nats) until ``end`` or ``max_new_tokens``.

    ``prompt`` holds at least one id; where it and what follows outgrow ``block_size``, the oldest
    drop out. Ids from ``n_tokens`` on (a padded vocabulary) are never drawn. Draws come from a
    generator of their own; log-probabilities are the model's own, as in :func:`score`.
    """
    device = model.embed.weight.device
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same draws on every device
    tokens = list(prompt)
    for _ in range(options.max_new_tokens):
        window = torch.tensor([tokens[-model.config.block_size :]], device=device)
        logits = model.logits(model.hidden(window)[0, -1]).cpu()
        possible = logits[:n_tokens]
        if options.temperature == 0:
            token = int(possible.argmax())
        else:
            allowed = filtered(possible, options.temperature, options.top_k, options.top_p)
            token = int(torch.multinomial(allowed.softmax(dim=-1), 1, generator=generator))
        if token == end:
            return
        tokens.append(token)
        yield token, float(logits.log_softmax(dim=-1)[token])


@torch.no_grad()
def score(model: GPT, tokens: list[int]) -> list[float | None]:
    """Log-probability in nats of each token given those before it; None for those without one.

    These are the first, and where ``tokens`` outgrow ``block_size``, all up to the window's first.
    """
    window = tokens[-model.config.block_size :]
    logits = model(torch.tensor([window], device=model.embed.weight.device))[0]
    of_next = logits[:-1].log_softmax(dim=-1).cpu()
    known: list[float | None] = [
        float(row[token]) for row, token in zip(of_next, window[1:], strict=True)
    ]
    return [None] * (len(tokens) - len(known)) + known
