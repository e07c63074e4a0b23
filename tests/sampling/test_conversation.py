"""A conversation fits the window, keeps its cache, and shows no special token."""

from typing import Any

import pytest
import torch

from llm.data.template import Around, Message, Template
from llm.data.tokenizer import ByteTokenizer
from llm.errors import Refused
from llm.model.gpt import GPT
from llm.sampling.conversation import Conversation
from llm.sampling.generate import generate
from llm.sampling.options import SamplingOptions

GREEDY = SamplingOptions(temperature=0, max_new_tokens=6)
# Each message is a letter and its text; a ~ ends an answer.
MARKED = Template(user=Around("U"), assistant=Around("A"), system=Around("S"), end="~")


def network(block_size: int = 64, favourite: int | None = None) -> GPT:
    """A random network over bytes; ``favourite`` is the token that it always finds most likely."""
    torch.manual_seed(1)
    model = GPT(n_layer=2, n_embed=32, head_size=16, block_size=block_size, vocab_size=257,
                tie_embeddings=False)  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
        if favourite is not None:
            weights, logits = model.head_weight, model.logits
            model.logits = lambda x: logits(x) + 1e4 * (torch.arange(len(weights)) == favourite)  # type: ignore[method-assign]
    return model.eval()


def conversation(model: GPT | None = None, **options: Any) -> Conversation:
    return Conversation(model or network(), ByteTokenizer(), MARKED, **options)


def exchange(talk: Conversation, text: str, options: SamplingOptions = GREEDY) -> str:
    return "".join(talk.answer(talk.ask(text, options.max_new_tokens), options, seed=0))


def test_an_answer_is_the_text_that_the_model_writes_after_the_whole_conversation() -> None:
    model, tokenizer = network(), ByteTokenizer()
    talk = conversation(model, system="sys")
    first = exchange(talk, "hello")
    second = exchange(talk, "and?")
    for prompt, answer in (("SsysUhelloA", first), (f"SsysUhelloA{first}~Uand?A", second)):
        ids = [int(token) for token in tokenizer.encode(prompt)]
        drawn = [token for token, _ in generate(model, ids, GREEDY, 0, 257)]
        assert tokenizer.decode(drawn) == answer
    assert [one.content for one in talk.messages] == ["sys", "hello", first, "and?", second]
    assert talk.ended_by == "max_new_tokens"


def test_a_turn_reads_only_the_tokens_that_are_new() -> None:
    model, read = network(favourite=ord("x")), list[int]()
    hidden = model.hidden

    def counting(tokens: torch.Tensor, *more: Any) -> torch.Tensor:
        read.append(tokens.shape[1])
        return hidden(tokens, *more)

    model.hidden = counting  # type: ignore[method-assign]
    talk = conversation(model)
    assert exchange(talk, "hello") == "xxxxxx"
    assert read == [len("UhelloA"), 1, 1, 1, 1, 1]
    read.clear()
    exchange(talk, "more")
    assert read[0] == len("x~UmoreA")  # the last x was drawn, but not read


def test_a_special_token_ends_an_answer_and_is_no_part_of_it() -> None:
    talk = conversation(network(favourite=256))
    assert exchange(talk, "hello") == ""
    assert talk.ended_by == "end"


def test_the_text_of_a_special_token_in_a_message_is_ordinary_text() -> None:
    prompt = conversation().ask("<|endoftext|>", 6)
    assert 256 not in prompt and len(prompt) == len("U<|endoftext|>A")


def test_a_stop_string_ends_an_answer_and_is_no_part_of_it() -> None:
    talk = conversation(network(favourite=ord("U")), stops=["UU"])
    assert exchange(talk, "hello") == ""
    assert talk.ended_by == "stop"


def test_an_answer_that_the_reader_stops_is_kept_as_far_as_it_came() -> None:
    talk = conversation(network(favourite=ord("x")))
    for piece in talk.answer(talk.ask("hello", 6), GREEDY, seed=0):
        assert piece == "x"
        break
    assert talk.messages[-1] == Message("assistant", "x")
    assert talk.ended_by == "interrupted"
    assert exchange(talk, "more") == "xxxxxx"
    assert talk.ask("last", 6)[: len("UhelloAx~UmoreA")] == list(b"UhelloAx~UmoreA")


def test_the_oldest_exchanges_are_forgotten_until_half_the_window_is_free() -> None:
    talk = conversation(network(64, favourite=ord("x")), system="sys")
    prompts = []
    for number in range(12):
        prompt = talk.ask(f"m{number:02}", 6)
        prompts.append(bytes(prompt).decode())
        answer = "".join(talk.answer(prompt, GREEDY, seed=0))
        assert answer == "xxxxxx" and len(prompt) + len(answer) <= 64
    assert all(prompt.startswith("SsysUm") for prompt in prompts)
    assert all(prompt.endswith(f"Um{n:02}A") for n, prompt in enumerate(prompts))
    assert all(prompt.count("U") == prompt.count("A") for prompt in prompts)  # whole exchanges
    lengths = [len(prompt) for prompt in prompts]
    cuts = [n for n in range(1, 12) if lengths[n] < lengths[n - 1]]
    assert cuts and all(lengths[n] <= 32 and lengths[n - 1] > 32 + 11 for n in cuts)
    assert len(talk.history) == 24  # saved in full


def test_a_message_that_is_too_long_is_refused_and_the_conversation_goes_on() -> None:
    talk = conversation(network(64))
    exchange(talk, "hello")
    before = talk.messages
    with pytest.raises(Refused, match=r"needs 102 tokens, .* room for 58: shorten it"):
        talk.ask("a" * 100, 6)
    assert talk.messages == before and talk.first == 0
    assert exchange(talk, "a" * 56)  # alone it fits
    assert talk.first == 2


def test_an_answer_ends_where_the_window_is_full() -> None:
    talk = conversation(network(64, favourite=ord("x")))
    answer = exchange(talk, "a" * 40, SamplingOptions(temperature=0, max_new_tokens=500))
    assert len(answer) == 64 - 42
    assert talk.ended_by == "window"


def test_reset_keeps_the_system_text() -> None:
    talk = conversation(system="sys")
    exchange(talk, "hello")
    talk.reset()
    assert bytes(talk.ask("new", 6)) == b"SsysUnewA"
