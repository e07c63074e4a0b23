"""Prompts in, text out, for the command line."""

import codecs
import sys
from pathlib import Path

from llm.data.tokenizer import Tokenizer
from llm.errors import Refused
from llm.model.gpt import GPT
from llm.sampling.generate import SamplingOptions, generate, score


def read_prompt(
    tokenizer: Tokenizer, prompt: str, prompt_file: str | None, block_size: int
) -> list[int]:
    """Ids of the prompt, at least one; ``<|endoftext|>`` in it is one id.

    ``prompt_file`` is read instead where it is given (``-``: standard input), less one newline at
    its end. Raises :class:`llm.errors.Refused` for a file that cannot be read and for text outside
    the vocabulary.
    """
    if prompt_file is not None:
        try:
            raw = sys.stdin.buffer.read() if prompt_file == "-" else Path(prompt_file).read_bytes()
            prompt = raw.decode("utf-8").removesuffix("\n")
        except OSError as error:
            raise Refused(f"prompt_file={prompt_file} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise Refused(f"prompt_file={prompt_file} is not UTF-8: offset {error.start}") from None
    try:
        prompt.encode("utf-8")  # bytes of the command line that are not UTF-8 come as surrogates
        tokens = [int(token) for token in tokenizer.encode(prompt, special=True)]
    except UnicodeEncodeError as error:
        raise Refused(f"the prompt is not UTF-8: character {error.start + 1}") from None
    except Refused as refusal:
        raise Refused(f"the prompt has characters that are {refusal}") from None
    if not tokens:  # the start of a document: after the end of another, or after a line
        tokens = [tokenizer.end_of_text] if tokenizer.end_of_text is not None else [0]
    if len(tokens) > block_size:
        print(
            f"the model sees {block_size} tokens: the first {len(tokens) - block_size} are cut",
            file=sys.stderr,
        )
    return tokens


def print_sample(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: list[int],
    options: SamplingOptions,
    seed: int,
    *,
    stream: bool,
    echo: bool,
    logprobs: bool,
) -> None:
    """Print one sample: its text, or a line per token with its log-probability in nats."""
    drawn = generate(model, prompt, options, seed, tokenizer.vocab_size, tokenizer.end_of_text)
    shown = prompt if echo and prompt != [tokenizer.end_of_text] else []
    if logprobs:
        known = zip(shown, score(model, prompt), strict=False) if shown else []
        for pairs in (known, drawn):
            for token, value in pairs:
                print(
                    f"{'' if value is None else f'{value:.4f}':>10}  {tokenizer.decode([token])!r}",
                    flush=stream,
                )
        return
    # A token may end inside a character.
    utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for tokens in (shown, (token for token, _ in drawn)):
        for token in tokens:
            print(utf8.decode(tokenizer.token_bytes(token)), end="", flush=stream)
    print(utf8.decode(b"", final=True))
