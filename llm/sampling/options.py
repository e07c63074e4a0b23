"""The options of sampling; does not import torch."""

from dataclasses import dataclass

from llm.options import option

LARGEST_PENALTY = 1_000_000  # nats; sums of larger ones might overflow float32


@dataclass
class SamplingOptions:
    """How the next token is chosen, and when a text ends. conf/sample.yaml explains each key."""

    max_new_tokens: int = option(500, at_least=1)
    temperature: float = option(0.8, at_least=0)
    top_k: int | None = option(200, at_least=1)
    top_p: float | None = option(None, more_than=0, at_most=1)
    min_p: float | None = option(None, more_than=0, at_most=1)
    repetition_penalty: float = option(1.0, more_than=0)
    frequency_penalty: float = option(0.0, at_least=-LARGEST_PENALTY, at_most=LARGEST_PENALTY)
    presence_penalty: float = option(0.0, at_least=-LARGEST_PENALTY, at_most=LARGEST_PENALTY)
    no_repeat_ngram: int = option(0, at_least=0)
