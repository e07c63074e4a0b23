"""What has been said, and how to say less of it again. Logits are (B, V), one row a text."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from llm.sampling.filters import BARRED


class Repetition:
    """Remembers B texts and penalises or bars the tokens that would repeat them.

    ``repetition`` and ``no_repeat_ngram`` count the prompt as well, as their authors do;
    ``frequency`` and ``presence`` count only what was drawn.
    """

    def __init__(
        self, prompts: Sequence[Sequence[int]], n_tokens: int, *, repetition: float,
        frequency: float, presence: float, no_repeat_ngram: int,
    ) -> None:  # fmt: skip
        self.repetition, self.frequency, self.presence = repetition, frequency, presence
        self.n = no_repeat_ngram
        self.seen = torch.zeros(len(prompts), n_tokens, dtype=torch.bool)
        self.drawn = torch.zeros(len(prompts), n_tokens)  # how often
        self.texts = [list[int]() for _ in prompts]
        # For each text, what has followed each run of n - 1 tokens.
        self.followers = [defaultdict[tuple[int, ...], set[int]](set) for _ in prompts]
        for row, prompt in enumerate(prompts):
            for token in prompt:
                self._remember(row, token)

    @property
    def active(self) -> bool:
        """Whether there is anything to do."""
        return self.repetition != 1 or self.frequency != 0 or self.presence != 0 or self.n > 0

    def add(self, row: int, token: int) -> None:
        """``token`` was drawn for text ``row``."""
        self.drawn[row, token] += 1
        self._remember(row, token)

    def apply(self, logits: Tensor) -> Tensor:
        """Logits (B, V) after penalties, with what would repeat an n-gram at minus infinity."""
        if self.repetition != 1:  # Keskar et al. 2019, arXiv:1909.05858, for logits of both signs
            less = torch.where(logits > 0, logits / self.repetition, logits * self.repetition)
            logits = torch.where(self.seen, less, logits)
        if self.frequency or self.presence:  # as OpenAI's interface defines them
            penalty = self.frequency * self.drawn + self.presence * (self.drawn > 0)
            logits = logits - penalty
        return self._without_ngrams(logits) if self.n else logits

    def _without_ngrams(self, logits: Tensor) -> Tensor:
        """Bar each token that would end an n-gram of the text again.

        From Paulus et al. 2017, arXiv:1705.04304, section 2.5. A text in which that bars every
        token goes on as if nothing were barred.
        """
        logits = logits.clone()
        for row, (text, followers) in enumerate(zip(self.texts, self.followers, strict=True)):
            last = tuple(text[len(text) - self.n + 1 :]) if len(text) >= self.n - 1 else None
            barred = list(followers.get(last, ())) if last is not None else []
            if len(barred) < logits.shape[1]:
                logits[row, barred] = BARRED
        return logits

    def _remember(self, row: int, token: int) -> None:
        if token < self.seen.shape[1]:  # a prompt may hold what is never drawn
            self.seen[row, token] = True
        if self.n:
            text = self.texts[row]
            if len(text) >= self.n - 1 and token < self.seen.shape[1]:
                self.followers[row][tuple(text[len(text) - self.n + 1 :])].add(token)
            text.append(token)
