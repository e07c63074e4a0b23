"""How text is drawn, as plain values, without torch."""

from dataclasses import dataclass

from llm.errors import require

LARGEST_PENALTY = 1_000_000  # nats; float32, in which they are summed up, ends at 3e38


@dataclass
class SamplingOptions:
    """How the next token is chosen, and when a text ends."""

    max_new_tokens: int = 500
    temperature: float = 0.8  # 0: always the most likely one
    top_k: int | None = 200
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram: int = 0

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
        for key in ("top_p", "min_p"):
            share = getattr(self, key)
            require(share is None or 0 < share <= 1, f"{key}={share} must be in (0, 1], or null")
        require(
            0 < self.repetition_penalty < float("inf"),
            f"repetition_penalty={self.repetition_penalty} must be more than 0; 1 is none",
        )
        for key in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, key)
            require(
                abs(value) <= LARGEST_PENALTY,
                f"{key}={value} must be a number of nats, at most {LARGEST_PENALTY:,}; 0: none",
            )
        require(
            self.no_repeat_ngram >= 0,
            f"no_repeat_ngram={self.no_repeat_ngram} must be 0 (off) or a number of tokens",
        )
