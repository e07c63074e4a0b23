"""Prompts are read without change, and samples are printed token by token."""

import io
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from llm.data.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer
from llm.errors import Refused
from llm.experiment import samples
from llm.experiment.samples import check_stops, print_samples, read_prompt
from llm.model.gpt import GPT
from llm.sampling.generate import generate
from llm.sampling.options import SamplingOptions

BYTES = ByteTokenizer()
OPTIONS = SamplingOptions(max_new_tokens=12, top_k=None)


@pytest.fixture(scope="module")
def model() -> GPT:
    """Two layers over bytes, untrained."""
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_embed": 16, "head_size": 8, "block_size": 8}
    return GPT(**shape, vocab_size=257).eval()


def show(model: GPT, prompt: str, capsys: pytest.CaptureFixture[str], **how: Any) -> str:
    given = {"stream": False, "echo": True, "logprobs": False} | how
    print_samples(model, BYTES, read_prompt(BYTES, prompt, None, 8), OPTIONS, [5], **given)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ['ROMEO: What\'s "this", (my lord)?\n\\', " ", "é😀\x00", "a\r\nb"]
)
def test_every_character_of_a_prompt_counts(text: str) -> None:
    assert bytes(read_prompt(BYTES, text, None, 99)) == text.encode()


def test_an_empty_prompt_starts_a_document_and_the_end_of_one_is_one_token() -> None:
    assert read_prompt(BYTES, "", None, 8) == [256]
    assert read_prompt(CharTokenizer("\nab"), "", None, 8) == [0]
    assert read_prompt(BYTES, "a<|endoftext|>b", None, 8) == [97, 256, 98]


def test_a_prompt_file_or_standard_input_loses_one_newline_at_its_end(tmp_path: Path) -> None:
    file = tmp_path / "it's [one]"
    file.write_bytes("  é\n\n".encode())
    assert bytes(read_prompt(BYTES, "", str(file), 8)) == "  é\n".encode()
    with patch("sys.stdin", io.TextIOWrapper(io.BytesIO(b"To be"))):
        assert bytes(read_prompt(BYTES, "", "-", 8)) == b"To be"


def test_an_endless_prompt_file_or_a_closed_standard_input_is_refused() -> None:
    with pytest.raises(Refused, match=r"prompt_file=/dev/zero is larger than 16 MiB"):
        read_prompt(BYTES, "", "/dev/zero", 8)
    with patch("sys.stdin", None), pytest.raises(Refused, match="standard input is closed"):
        read_prompt(BYTES, "", "-", 8)


def test_a_prompt_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"abc\xff")
    cases: list[tuple[Tokenizer, str, str | None, str]] = [
        (BYTES, "", str(tmp_path / "none.txt"), "none.txt cannot be read: No such file"),
        (BYTES, "", str(tmp_path), "cannot be read: Is a directory"),
        (BYTES, "", str(bad), "bad.txt is not UTF-8: offset 3"),
        (BYTES, "ab\udcff", None, "the prompt is not UTF-8: character 3"),
        (CharTokenizer("ab"), "aéb", None, "not in this vocabulary of 2 characters: 'é' (U+00E9)"),
    ]
    for tokenizer, prompt, file, message in cases:
        with pytest.raises(Refused) as refusal:
            read_prompt(tokenizer, prompt, file, 8)
        assert message in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_a_prompt_beyond_block_size_is_cut_with_a_note(
    capsys: pytest.CaptureFixture[str],
) -> None:
    read_prompt(BYTES, "12345678", None, 8)
    assert capsys.readouterr().err == ""
    read_prompt(BYTES, "1234567890", None, 8)
    assert capsys.readouterr().err == "the model sees 8 tokens: the first 2 are cut\n"


def test_a_sample_is_the_prompt_and_the_drawn_text(
    model: GPT, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = [token for token, _ in generate(model, list(b"To be"), OPTIONS, 5, 257, 256)]
    text = BYTES.decode(drawn)
    assert len(drawn) == OPTIONS.max_new_tokens
    assert show(model, "To be", capsys) == f"To be{text}\n"
    assert show(model, "To be", capsys, stream=True) == f"To be{text}\n"
    assert show(model, "To be", capsys, echo=False) == f"{text}\n"
    assert "<|endoftext|>" not in show(model, "", capsys), "an empty prompt was not typed"


def test_samples_are_the_same_together_and_one_by_one(
    model: GPT, capsys: pytest.CaptureFixture[str]
) -> None:
    how: dict[str, Any] = {"stream": True, "echo": True, "logprobs": False, "stop": ["e"]}
    seeds = range(samples.TOGETHER + 3)
    print_samples(model, BYTES, list(b"To"), OPTIONS, seeds, **how)
    together = capsys.readouterr().out.split(samples.RULE + "\n")
    for seed in seeds:
        print_samples(model, BYTES, list(b"To"), OPTIONS, [seed], **how)
        assert capsys.readouterr().out == together[seed]


def test_each_token_has_a_line_with_the_models_log_probability(
    model: GPT, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        line.split(maxsplit=1) for line in show(model, "ab", capsys, logprobs=True).splitlines()
    ]
    assert lines[0] == ["'a'"], "nothing comes before the first token"
    with torch.no_grad():
        expected = model(torch.tensor([[97]]))[0, -1].log_softmax(-1)[98]
    assert lines[1] == [f"{float(expected):.4f}", "'b'"]
    assert len(lines) == 2 + OPTIONS.max_new_tokens
    assert all(float(value) < 0 for value, _ in lines[1:])
    unseen = show(model, "ab", capsys, logprobs=True, echo=False).splitlines()
    assert [line.split(maxsplit=1) for line in unseen] == lines[2:]


def test_a_stop_string_that_can_never_appear_is_refused() -> None:
    check_stops(CharTokenizer("abc"), ["ab", "c"])
    check_stops(BYTES, ["é€"])
    with pytest.raises(Refused, match=r"^stop='a€' can never appear: .*'€'"):
        check_stops(CharTokenizer("abc"), ["ab", "a€"])
