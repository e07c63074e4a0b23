"""A text that the model writes while it trains."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from llm.data.tokenizer import Tokenizer
from llm.model.gpt import GPT
from llm.sampling.generate import generate
from llm.sampling.looping import measure_repeats
from llm.sampling.options import SamplingOptions

SAMPLE = SamplingOptions(max_new_tokens=200)


def sample_text(
    model: GPT, tokenizer: Tokenizer, seed: int, each: Callable[[Iterable[Any]], Iterator[Any]]
) -> tuple[str, str, dict[str, float]]:
    """(prompt, text, how much the text repeats itself), drawn without torch's random generator.

    ``each`` passes the tokens on one by one, and may end them by an exception.
    """
    end = tokenizer.end_of_text
    prompt = [0 if end is None else end]
    model.eval()
    drawn = generate(model, prompt, SAMPLE, seed, tokenizer.vocab_size, end)
    tokens = [token for token, _ in each(drawn)]
    text = tokenizer.decode(tokens)
    scores = measure_repeats(text).scores
    scores["end_of_text"] = float(len(tokens) < SAMPLE.max_new_tokens)
    return tokenizer.decode(prompt), text, scores
