"""Prompts from the command line, samples to standard output."""

import sys
from collections.abc import Sequence
from pathlib import Path

from llm.answer import answer
from llm.data.tokenizer import Tokenizer
from llm.device import describe
from llm.errors import Refused, Stop, reason_for, require
from llm.model.gpt import GPT
from llm.sampling.cache import KVCache
from llm.sampling.checks import compare_with_uncached, measure_speed
from llm.sampling.generate import Drawn, generate_batch, score_tokens
from llm.sampling.looping import Repeats, measure_repeats, remedy
from llm.sampling.options import SamplingOptions
from llm.sampling.text import SampleText
from llm.sealed import Plain
from llm.units import format_bytes

TOGETHER = 16  # samples drawn at once: each takes the memory of a key/value cache
RULE = "-" * 80
LONGEST_PROMPT = 16 * 2**20  # bytes; a file such as /dev/zero has no end


def read_prompt(
    tokenizer: Tokenizer, prompt: str, prompt_file: str | None, block_size: int
) -> list[int]:
    """Ids of the prompt, at least one; ``<|endoftext|>`` in it is one id.

    ``prompt_file`` (``-``: standard input) replaces ``prompt`` and loses one newline at its end.
    Raises :class:`llm.errors.Refused` for a file that cannot be read and for text outside the
    vocabulary.
    """
    if prompt_file is not None:
        prompt = _read_file(prompt_file)
    try:
        prompt.encode("utf-8")  # bytes on the command line that are not UTF-8 are surrogates
        tokens = [int(token) for token in tokenizer.encode_special(prompt)]
    except UnicodeEncodeError as error:
        raise Refused(f"the prompt is not UTF-8: character {error.start + 1}") from None
    except Refused as refusal:
        raise Refused(f"the prompt has characters that are {refusal}") from None
    if not tokens:  # start a new document: after the end of another one, or else after a newline
        tokens = [tokenizer.end_of_text] if tokenizer.end_of_text is not None else [0]
    if len(tokens) > block_size:
        print(
            f"the model sees {block_size} tokens: the first {len(tokens) - block_size} are cut",
            file=sys.stderr,
        )
    return tokens


def _read_file(name: str) -> str:
    try:
        if name == "-":
            require(sys.stdin is not None, "prompt_file=-: standard input is closed")
            raw = sys.stdin.buffer.read(LONGEST_PROMPT + 1)
        else:
            with open(name, "rb") as file:
                raw = file.read(LONGEST_PROMPT + 1)
        require(
            len(raw) <= LONGEST_PROMPT,
            f"prompt_file={name} is larger than {format_bytes(LONGEST_PROMPT)}: take only its end, "
            "since the model sees only block_size tokens",
        )
        return raw.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise Refused(f"prompt_file={name} is not UTF-8: offset {error.start}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        reason = reason_for(Path(name), error)
        raise Refused(f"prompt_file={name} cannot be read: {reason}") from None


def check_stops(tokenizer: Tokenizer, stops: Sequence[str]) -> None:
    """Raise :class:`llm.errors.Refused` for a stop string outside the vocabulary."""
    for stop in stops:
        try:
            tokenizer.encode(stop)
        except Refused as refusal:
            raise Refused(f"stop={stop!r} can never appear: {refusal}") from None


def print_samples(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: list[int],
    options: SamplingOptions,
    seeds: Sequence[int],
    *,
    stream: bool,
    echo: bool,
    logprobs: bool,
    stop: Sequence[str] = (),
    title: str = "",
) -> list[Plain]:
    """Print a sample for each seed: its text, or a line per token with its log-probability in nats.

    Samples are drawn :data:`TOGETHER` at a time; with ``stream`` the first of them is printed token
    by token. ``title``: the name of the adapter, printed above its samples. Returns the samples as
    plain values.
    """
    is_empty = prompt == [tokenizer.end_of_text]
    shown = prompt if echo and not is_empty else []
    pieces = [tokenizer.token_bytes(token) for token in shown]
    scores = score_tokens(model, shown) if shown and logprobs else [None] * len(shown)
    repeats: list[Repeats] = []
    plain: list[Plain] = []
    if title:
        print(f"=== {title} ===")
    for first in range(0, len(seeds), TOGETHER):
        group = seeds[first : first + TOGETHER]
        samples = [SampleText(stop, logprobs) for _ in group]
        texts = [sample.prompt(pieces, scores) for sample in samples]
        drawn: list[list[Drawn]] = [[] for _ in group]
        if first:
            print(RULE)
        print(texts[0], end="", flush=stream)

        def is_stopped(row: int, samples: list[SampleText] = samples) -> bool:
            return samples[row].stopped

        for pairs in generate_batch(
            KVCache(model), [prompt] * len(group), options, group, tokenizer.vocab_size,
            tokenizer.end_of_text, is_stopped,
        ):  # fmt: skip
            for row, pair in enumerate(pairs):
                if pair is None:
                    continue
                token, score = pair
                drawn[row].append(pair)
                text = samples[row].add(tokenizer.token_bytes(token), score)
                texts[row] += text
                if row == 0 and text:
                    print(text, end="", flush=stream)
        end = "" if logprobs else "\n"
        print(samples[0].rest(), end=end, flush=stream)
        for sample, text in zip(samples[1:], texts[1:], strict=True):
            print(RULE)
            print(text + sample.rest(), end=end, flush=stream)
        for seed, sample, draws in zip(group, samples, drawn, strict=True):
            repeats.append(measure_repeats(tokenizer.decode([token for token, _ in draws])))
            plain.append(
                ({"adapter": title} if title else {})
                | {"seed": seed, "prompt": "" if is_empty else tokenizer.decode(prompt)}
                | _plain(tokenizer, draws, stop, options.max_new_tokens, sample.stopped)
                | {"scores": repeats[-1].scores}
                | ({"logprobs": _logprobs(tokenizer, draws)} if logprobs else {})
            )
    warn_of_loops(repeats, options, words=tokenizer.kind == "gpt2")
    return plain


def _plain(
    tokenizer: Tokenizer, drawn: Sequence[Drawn], stops: Sequence[str], most: int, stopped: bool
) -> Plain:
    """The drawn text up to the first stop string, and why it ended."""
    raw = b"".join(tokenizer.token_bytes(token) for token, _ in drawn)
    places = [place for stop in stops if (place := raw.find(stop.encode("utf-8"))) >= 0]
    ended_by = "max_new_tokens" if len(drawn) == most else "end_of_text"
    return {
        "text": raw[: min(places, default=len(raw))].decode("utf-8", errors="replace"),
        "tokens": len(drawn),
        "ended_by": "stop" if stopped else ended_by,
    }


def _logprobs(tokenizer: Tokenizer, drawn: Sequence[Drawn]) -> list[Plain]:
    """Each drawn token with its log-probability in nats."""
    return [
        {"token": token, "text": tokenizer.decode([token]), "logprob": score}
        for token, score in drawn
    ]


def sample_text(
    model: GPT, tokenizer: Tokenizer, prompt: list[int], options: SamplingOptions, seed: int,
    echo: bool = True, stop: Sequence[str] = (),
) -> str:  # fmt: skip
    """The text of one sample, as :func:`print_samples` prints it, without the last newline."""
    is_empty = prompt == [tokenizer.end_of_text]
    shown = prompt if echo and not is_empty else []
    sample = SampleText(stop)
    text = sample.prompt([tokenizer.token_bytes(token) for token in shown], [None] * len(shown))
    for pairs in generate_batch(
        KVCache(model), [prompt], options, [seed], tokenizer.vocab_size, tokenizer.end_of_text,
        lambda row: sample.stopped,
    ):  # fmt: skip
        if pairs[0] is not None:
            text += sample.add(tokenizer.token_bytes(pairs[0][0]))
    return text + sample.rest()


def warn_of_loops(repeats: Sequence[Repeats], options: SamplingOptions, words: bool) -> None:
    """One line if samples repeat a phrase again and again, with the setting to try."""
    stuck = [each for each in repeats if each.loops]
    if stuck:
        worst = max(stuck, key=lambda each: each.longest_loop)
        times = worst.longest_loop // len(worst.phrase)
        print(
            f"{len(stuck)} of {len(repeats)} samples loop ({worst.phrase!r} {times} times in a "
            f"row): try {remedy(options, words)}",
            file=sys.stderr,
        )


def print_verification(
    model: GPT, tokenizer: Tokenizer, prompt: list[int], options: SamplingOptions, seed: int
) -> None:
    """Compare the text with and without the cache; :class:`llm.errors.Stop` if it differs."""
    result = compare_with_uncached(model, prompt, options, seed, tokenizer.vocab_size)
    answer(verify_cache=vars(result))
    difference = f"log-probabilities differ by at most {result.largest_difference:.1e} nats"
    if result.differs:
        raise Stop(
            f"verify_cache: token {result.tokens + 1} differs with and without the cache; "
            f"before it, {difference}"
        )
    print(f"verify_cache: all {result.tokens} tokens are the same without the cache; {difference}")


def print_speed(
    model: GPT, tokenizer: Tokenizer, prompt: list[int], options: SamplingOptions, rows: int
) -> None:
    """Print tokens per second of reading prompts (prefill) and of generating text (decode)."""
    speeds = measure_speed(model, prompt, options, rows, tokenizer.vocab_size)
    device = describe(model.embed.weight.device)
    answer(
        device=device,
        benchmark={
            what: {"tokens": tokens, "tokens_per_second": rate}
            for what, (tokens, rate) in zip(("prefill", "decode"), speeds, strict=True)
        },
    )
    for what, (tokens, rate) in zip(("prefill", "decode"), speeds, strict=True):
        print(f"{what:<8}{tokens:>8,} tokens{rate:>12,.1f} tokens/s  ({device})")
