"""How text is drawn, as plain values, without torch."""

from dataclasses import dataclass

from llm.errors import require

LARGEST_PENALTY = 1_000_000  # nats; float32, in which they are added up, ends at 3e38


@dataclass
class SamplingOptions:
    """How the next token is chosen, and when a text ends."""

    max_new_tokens: int = 500
    temperature: float = 0.8  # 0: always the most likely token
    top_k: int | None = 200
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram: int = 0

    def check(self) -> None:
        """Raise :class:`llm.errors.Refused` naming the first value out of its range."""
        largest, infinity = LARGEST_PENALTY, float("inf")
        bounds = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (0 <= self.temperature < infinity, "0 or more"),
            "top_k": (self.top_k is None or self.top_k >= 1, "at least 1, or null"),
            "top_p": (self.top_p is None or 0 < self.top_p <= 1, "in (0, 1], or null"),
            "min_p": (self.min_p is None or 0 < self.min_p <= 1, "in (0, 1], or null"),
            "repetition_penalty": (
                0 < self.repetition_penalty < infinity,
                "more than 0; 1 turns it off",
            ),
            "frequency_penalty": (
                abs(self.frequency_penalty) <= largest,
                f"a number of nats, at most {largest:,}; 0 turns it off",
            ),
            "presence_penalty": (
                abs(self.presence_penalty) <= largest,
                f"a number of nats, at most {largest:,}; 0 turns it off",
            ),
            "no_repeat_ngram": (self.no_repeat_ngram >= 0, "0 (off) or a number of tokens"),
        }
        for key, (is_inside, range_) in bounds.items():
            require(is_inside, f"{key}={getattr(self, key)} must be {range_}")
