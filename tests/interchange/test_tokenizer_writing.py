"""Written tokenizers give the ids of ours in the library ``tokenizers``, and come back."""

import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from llm.data.bpe import BPETokenizer
from llm.data.tokenizer import ByteTokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer
from llm.errors import Refused
from llm.interchange.gguf import open_gguf
from llm.interchange.hf_writing import write_tokenizer
from llm.interchange.source import start_from
from llm.interchange.tokenizer_writing import (
    end_text,
    our_tokenizer,
    spelled,
    tokenizer_config,
    tokenizer_json,
)
from llm.interchange.tokenizers import CONFIG, tokenizer_of_folder
from llm.settings.eval import EvalSettings
from llm.tasks.losses import SplitTask
from llm.tasks.subject import Subject
from tests.data.test_bpe import LIBRARIES, NAMES
from tests.interchange.gguf_files import write

ALPHABET = "\t\n abcXYZ019.'<|>éЖ你🙂"
KINDS = ["gpt2", "byte", "char"]


@functools.cache
def ours(kind: str) -> Tokenizer:
    if kind == "char":
        return CharTokenizer("".join(sorted(ALPHABET)))
    return GPT2Tokenizer() if kind == "gpt2" else ByteTokenizer()


@functools.cache
def theirs(kind: str) -> Library:
    return Library.from_str(json.dumps(tokenizer_json(ours(kind))))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50)
@given(text=st.text(ALPHABET, max_size=40))
@example(text="  two  spaces, 10 000\n\n\t'll")
def test_the_library_gives_the_same_ids_and_decodes_them(kind: str, text: str) -> None:
    text = "".join(letter for letter in text if kind != "char" or letter in ALPHABET)
    ids = ours(kind).encode(text).tolist()
    assert theirs(kind).encode(text).ids == ids
    assert theirs(kind).decode(ids) == text


@pytest.mark.parametrize("kind", ["byte", "char"])
def test_only_an_unchanged_tokenizer_is_recognized_as_ours(kind: str) -> None:
    values = tokenizer_json(ours(kind))
    found = our_tokenizer(json.loads(json.dumps(values)))
    assert found is not None and found.digest() == ours(kind).digest()
    changed: list[dict[str, Any]] = [
        values | {"normalizer": {"type": "NFC"}}, values | {"model": None},
        values | {"model": values["model"] | {"vocab": {}}}, {},
    ]  # fmt: skip
    assert [our_tokenizer(one) for one in changed] == [None] * 4


def test_only_a_tokenizer_with_an_end_names_it_in_the_configuration() -> None:
    def names(tokenizer: Tokenizer) -> set[str]:
        return {key for key in tokenizer_config(tokenizer, 64) if key.endswith("_token")}

    assert end_text(ours("char")) is None
    assert end_text(ours("gpt2")) == end_text(ours("byte")) == "<|endoftext|>"
    assert names(ours("char")) == {"add_bos_token"}
    assert names(ours("byte")) == {"add_bos_token", "bos_token", "eos_token"}
    assert tokenizer_config(ours("gpt2"), 64)["unk_token"] == "<|endoftext|>"
    assert spelled(b" a\n\xff") == "ĠaĊÿ"


@dataclass
class Weights:
    """A place of weights of which only the tokenizer is asked."""

    tokenizer: Tokenizer
    place: str = "theirs"


@dataclass
class Prepared:
    """Data of which only the tokenizer is asked."""

    tokenizer: Tokenizer
    template: dict[str, Any]
    folder: str = "data/chat"
    splits: dict[str, Any] = field(default_factory=dict)


def as_read(name: str, folder: Path) -> Tokenizer:
    """The tokenizer of a GGUF file, or of a folder that transformers wrote."""
    if name == "GGUF":
        return open_gguf(str(write(folder / "net.gguf"))).tokenizer
    from transformers import PreTrainedTokenizerFast

    end = "</s>" if name in ("llama2", "metaspace") else "<|im_end|>"
    library = PreTrainedTokenizerFast(tokenizer_object=LIBRARIES[name], eos_token=end)
    library.save_pretrained(folder / "theirs")
    return tokenizer_of_folder(folder / "theirs")


@pytest.mark.parametrize("name", ["GGUF", *NAMES])
def test_an_exported_bpe_is_read_back_as_the_same_one(name: str, tmp_path: Path) -> None:
    tokenizer = as_read(name, tmp_path)
    write_tokenizer(tmp_path, tokenizer, 64, None)
    assert tokenizer_of_folder(tmp_path).to_json() == tokenizer.to_json()

    # An export of an earlier version: equal for every text, though its definition is not.
    values = json.loads((tmp_path / CONFIG).read_text())
    del values["tokens_outside_vocab"]
    (tmp_path / CONFIG).write_text(json.dumps(values))
    earlier = tokenizer_of_folder(tmp_path)
    assert name != "GGUF" or earlier.digest() != tokenizer.digest()
    assert earlier.is_same(tokenizer) and tokenizer.is_same(earlier)


@pytest.mark.parametrize(
    ("change", "end", "said"),
    [
        ({"vocab": {"h": "t", "t": "h"}}, "", "with '{}' as id "),
        ({"merges": ["Ġ t", "t h", "Ġt h"]}, "<|im_end|>", "with its own merges"),
        ({"ignore_merges": True}, "<|im_end|>", "with its own options of BPE"),
        ({}, "<|endoftext|>", "with <|endoftext|> at the end of a text"),
    ],
    ids=["ids", "merges", "options", "end"],
)
def test_two_bpe_of_one_size_are_refused_with_their_difference(
    change: dict[str, Any], end: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = as_read("GGUF", tmp_path)
    assert isinstance(ours, BPETokenizer)
    model = dict(ours.values["model"])
    swapped = change.get("vocab", {})
    model |= change | {"vocab": {swapped.get(t, t): n for t, n in model["vocab"].items()}}
    theirs = BPETokenizer(json.dumps(ours.values | {"model": model}), end or ours.end)
    assert not ours.is_same(theirs) and theirs.is_same(BPETokenizer(theirs.definition, theirs.end))
    size = f"the {ours.vocab_size} tokens of bpe "
    with pytest.raises(Refused, match="init_from=theirs was trained on ") as refusal:
        start_from(None, Weights(theirs), ours)  # type: ignore[arg-type]
    assert str(refusal.value).count(size) == 2 and said.format("h") in str(refusal.value)
    for template, remedy in (
        ({}, "FILE.txt"),
        ({"end": ""}, "data.tokenizer=mine (run_prepare.py)"),
    ):
        data = Prepared(ours, template)
        monkeypatch.setattr("llm.tasks.losses._opened", lambda _, data=data: data)
        subject = Subject("mine", Weights(theirs))  # type: ignore[arg-type]
        with pytest.raises(Refused) as refusal:
            SplitTask(EvalSettings(), Path("data/chat")).evaluate(subject, None, iter)  # type: ignore
        assert str(refusal.value).startswith(f"mine has {size}{said.format('t')[:9]}")
        assert str(refusal.value).endswith(remedy)
    # The same definition in another order of keys is no reason to refuse.
    again = BPETokenizer(json.dumps(ours.values, sort_keys=True), ours.end)
    assert again.digest() != ours.digest()
    monkeypatch.setattr("llm.tasks.losses._opened", lambda _: Prepared(again, {}))
    subject = Subject("mine", Weights(ours))  # type: ignore[arg-type]
    with pytest.raises(Refused, match="was prepared without it"):
        SplitTask(EvalSettings(), Path("data/chat")).evaluate(subject, None, iter)  # type: ignore
    with pytest.raises(AttributeError, match="model"):  # asked for after the tokenizers
        start_from(None, Weights(ours), again)  # type: ignore[arg-type]
