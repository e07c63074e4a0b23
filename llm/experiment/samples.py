"""Prompts in, text out, for the command line."""

import sys
from collections.abc import Sequence

from llm.data.tokenizer import Tokenizer
from llm.device import describe
from llm.errors import Refused, Stop, require
from llm.model.gpt import GPT
from llm.sampling.cache import KVCache
from llm.sampling.generate import SamplingOptions, generate_batch, score, verify_cache
from llm.sampling.looping import Repeats, measure_repeats, remedy
from llm.sampling.speed import measure
from llm.sampling.text import TextStream
from llm.units import format_bytes

TOGETHER = 16  # samples drawn at once: each takes a key/value cache of its own
RULE = "-" * 80
LONGEST_PROMPT = 16 << 20  # bytes; a file may have no end, as /dev/zero


def read_prompt(
    tokenizer: Tokenizer, prompt: str, prompt_file: str | None, block_size: int
) -> list[int]:
    """Ids of the prompt, at least one; ``<|endoftext|>`` in it is one id.

    ``prompt_file`` is read instead where it is given (``-``: standard input), less one newline at
    its end. Raises :class:`llm.errors.Refused` for a file that cannot be read and for text outside
    the vocabulary.
    """
    if prompt_file is not None:
        prompt = _read_file(prompt_file)
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


def _read_file(name: str) -> str:
    try:
        if name == "-":
            require(sys.stdin is not None, "prompt_file=-: standard input is closed")
            raw = sys.stdin.buffer.read(LONGEST_PROMPT + 1)
        else:
            with open(name, "rb") as file:
                raw = file.read(LONGEST_PROMPT + 1)
        size = f"prompt_file={name} holds more than {format_bytes(LONGEST_PROMPT)}"
        require(len(raw) <= LONGEST_PROMPT, f"{size}: give the end of it, which is what is seen")
        return raw.decode("utf-8").removesuffix("\n")
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise Refused(f"prompt_file={name} is not UTF-8: offset {error.start}") from None
        reason = getattr(error, "strerror", None) or str(error)
        raise Refused(f"prompt_file={name} cannot be read: {reason}") from None


def check_stops(tokenizer: Tokenizer, stops: Sequence[str]) -> None:
    """Raise :class:`llm.errors.Refused` for a stop string that no text of the model can hold."""
    for stop in stops:
        try:
            tokenizer.encode(stop)
        except Refused as refusal:
            raise Refused(f"stop={stop!r} can never appear: {refusal}") from None


class Sample:
    """One sample on its way to the screen: text, or a line per token with its log-probability."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], logprobs: bool) -> None:
        self.tokenizer, self.logprobs = tokenizer, logprobs
        self.text = TextStream(stop)
        self.waiting: list[tuple[bytes, float | None]] = []  # tokens that may begin a stop string
        self.passed = 0  # bytes of them that are known not to

    def prompt(self, tokens: list[int], scores: list[float | None]) -> str:
        """What to show of the prompt, in which no stop string is looked for."""
        pieces = [self.tokenizer.token_bytes(token) for token in tokens]
        if self.logprobs:
            return "".join(map(_line, pieces, scores))
        return self.text.prompt(b"".join(pieces))

    def add(self, token: int, score: float) -> str:
        """What can be shown once ``token`` was drawn."""
        piece = self.tokenizer.token_bytes(token)
        if not self.logprobs:
            return self.text.add(piece)
        self.waiting.append((piece, score))
        self.passed += len(self.text.stops.add(piece))
        return self._lines()

    def rest(self) -> str:
        """What remains at the end."""
        if not self.logprobs:
            return self.text.rest() + "\n"
        self.passed += len(self.text.stops.rest())
        lines = self._lines()
        if self.passed:  # of a token in which a stop string begins, what is before it
            piece, score = self.waiting.pop(0)
            lines += _line(piece[: self.passed], score)
        return lines

    def _lines(self) -> str:
        lines = ""
        while self.waiting and len(self.waiting[0][0]) <= self.passed:
            piece, score = self.waiting.pop(0)
            self.passed -= len(piece)
            lines += _line(piece, score)
        return lines


def _line(piece: bytes, score: float | None) -> str:
    shown = "" if score is None else f"{score:.4f}"
    try:
        text = repr(piece.decode("utf-8"))
    except UnicodeDecodeError:  # a part of a character
        text = repr(piece)
    return f"{shown:>10}  {text}\n"


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
) -> None:
    """Print a sample for each seed: its text, or a line per token with its log-probability in nats.

    Samples are drawn together, :data:`TOGETHER` at a time; the first of them is shown as it comes.
    """
    shown = prompt if echo and prompt != [tokenizer.end_of_text] else []
    scores = score(model, prompt) if shown and logprobs else []
    repeats: list[Repeats] = []
    for first in range(0, len(seeds), TOGETHER):
        group = seeds[first : first + TOGETHER]
        samples = [Sample(tokenizer, stop, logprobs) for _ in group]
        later = [sample.prompt(shown, scores) for sample in samples]
        said: list[list[int]] = [[] for _ in group]
        if first:
            print(RULE)
        print(later[0], end="", flush=stream)

        def is_last(row: int, _: int, samples: list[Sample] = samples) -> bool:
            return samples[row].text.stopped

        drawn = generate_batch(
            KVCache(model), [prompt] * len(group), options, group, tokenizer.vocab_size,
            tokenizer.end_of_text, is_last,
        )  # fmt: skip
        for pairs in drawn:
            for row, pair in enumerate(pairs):
                if pair is None:
                    continue
                said[row].append(pair[0])
                text = samples[row].add(*pair)
                if row:
                    later[row] += text
                elif text:
                    print(text, end="", flush=stream)
        print(samples[0].rest(), end="", flush=stream)
        for sample, text in zip(samples[1:], later[1:], strict=True):
            print(RULE, text + sample.rest(), sep="\n", end="", flush=stream)
        repeats += [measure_repeats(tokenizer.decode(tokens)) for tokens in said]
    warn_of_loops(repeats, options, words=tokenizer.kind == "gpt2")


def warn_of_loops(repeats: Sequence[Repeats], options: SamplingOptions, words: bool) -> None:
    """One line where samples got stuck, with the setting to try."""
    stuck = [found for found in repeats if found.loops]
    if stuck:
        worst = max(stuck, key=lambda found: found.longest_loop)
        times = worst.longest_loop // len(worst.phrase)
        print(
            f"{len(stuck)} of {len(repeats)} samples loop ({worst.phrase!r} {times} times in a "
            f"row): try {remedy(options, words)}",
            file=sys.stderr,
        )


def print_verification(
    model: GPT, tokenizer: Tokenizer, prompt: list[int], options: SamplingOptions, seed: int
) -> None:
    """Say whether the cache changes anything; raise :class:`llm.errors.Stop` where it does."""
    found = verify_cache(model, prompt, options, seed, tokenizer.vocab_size)
    logits = f"the largest difference of a logit is {found.largest_difference:.1e}"
    if found.different is not None:
        raise Stop(
            f"verify_cache: token {found.different + 1} is another with the cache than without; "
            f"{logits}"
        )
    print(f"verify_cache: all {found.tokens} tokens are the same without the cache; {logits}")


def print_speed(
    model: GPT, tokenizer: Tokenizer, prompt: list[int], options: SamplingOptions, rows: int
) -> None:
    """Measure and print tokens per second for reading a prompt and for what follows it."""
    found = measure(model, prompt, options, rows, tokenizer.vocab_size)
    where = describe(model.embed.weight.device)
    for what, tokens, rate in (
        ("prefill", found.prefill_tokens, found.prefill_rate),
        ("decode", found.decode_tokens, found.decode_rate),
    ):
        print(f"{what:<8}{tokens:>8,} tokens{rate:>12,.1f} tokens/s  ({where})")
