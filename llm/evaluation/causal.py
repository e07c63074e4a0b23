"""Whether a network is causal: no logits may depend on later tokens.

A network that sees the token it predicts has a low loss and writes nonsense.
"""

import math

import torch

from llm.model.gpt import GPT

LONGEST = 256  # tokens: enough for any option, and quick
TEXTS = 2
TOLERANCE = 1e-4  # times the largest logit: rounding may change the last bits of a product


@torch.no_grad()
def largest_change(model: GPT, seed: int = 0) -> tuple[float, float]:
    """The largest change of a logit when all later tokens change, and the largest logit.

    The suffix is replaced from several places on, up to the last token alone. The change is
    infinite if a logit is not finite.
    """
    vocab_size, length = model.config.vocab_size or 1, min(model.config.block_size, LONGEST)
    generator = torch.Generator().manual_seed(seed)
    device = model.embed.weight.device
    tokens = torch.randint(vocab_size, (TEXTS, length), generator=generator)
    others = tokens + 1 + torch.randint(max(1, vocab_size - 1), tokens.shape, generator=generator)
    others %= vocab_size
    logits = model(tokens.to(device))
    change, scale = 0.0, float(logits.abs().max())
    for cut in sorted({1, 2, length // 3, length // 2, length - 2, length - 1}):
        if 0 < cut < length:
            changed = torch.cat([tokens[:, :cut], others[:, cut:]], dim=1).to(device)
            difference = (model(changed)[:, :cut] - logits[:, :cut]).abs().max()
            change = max(change, float(difference.nan_to_num(nan=torch.inf)))
    return change, scale


def is_causal(change: float, scale: float) -> bool:
    """Whether a :func:`largest_change` is only rounding; False if a logit is not finite."""
    return math.isfinite(scale) and change <= TOLERANCE * max(1.0, scale)
