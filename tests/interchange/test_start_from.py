"""init_from takes only weights that were trained with the same tokenizer."""

import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llm.checkpoint.checkpoint import empty_model
from llm.checkpoint.folder import CheckpointFolder
from llm.data.tokenizer import ByteTokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer
from llm.errors import Refused
from llm.interchange.files import FileSource
from llm.interchange.source import fill, load_model, open_source, start_from
from llm.model.finetune import FinetuneOptions
from llm.model.gpt import GPT
from llm.model.lora import adapt
from llm.model.quantised import rounded
from llm.training.precision import to_precision
from tests.checkpoint.conftest import IDENTITY, STATE
from tests.interchange.theirs import VARIANTS

SHAPE = {"n_layer": 1, "n_embed": 16, "head_size": 8, "block_size": 8}


def trained(folder: Path, tokenizer: Tokenizer, vocab_size: int) -> tuple[GPT, str]:
    """A network, and the checkpoint with its weights and tokenizer."""
    model = GPT(**SHAPE, vocab_size=vocab_size)
    run = CheckpointFolder(folder, 1, model.config, tokenizer, IDENTITY)
    return model, str(run.save_best(3, model.state_dict(), STATE))


@pytest.mark.parametrize(
    ("theirs", "ours", "words"),
    [
        (
            CharTokenizer("abé"),
            CharTokenizer("abx"),
            "an alphabet of 3 characters with 'é' (U+00E9), and data.tokenizer=char has "
            "an alphabet of 3 characters with 'x' (U+0078): ",
        ),
        (ByteTokenizer(), GPT2Tokenizer(), "the 257 tokens of byte, and data.tokenizer=gpt2 has "),
    ],
    ids=["same size", "another size"],
)
def test_weights_of_another_tokenizer_are_refused_naming_both(
    tmp_path: Path, theirs: Tokenizer, ours: Tokenizer, words: str
) -> None:
    model, place = trained(tmp_path, theirs, vocab_size=theirs.vocab_size)
    before = model.embed.weight.clone()
    other = GPT(**SHAPE, vocab_size=max(ours.vocab_size, 3))
    with pytest.raises(Refused) as refusal:
        start_from(other, open_source("init_from", place), ours)
    assert str(refusal.value).startswith(f"init_from={place} was trained on {words}")
    assert "shape" not in str(refusal.value)
    assert torch.equal(model.embed.weight, before)


def test_weights_of_the_same_tokenizer_are_loaded_if_their_shape_fits(tmp_path: Path) -> None:
    model, place = trained(tmp_path, CharTokenizer("abé"), vocab_size=3)
    other = GPT(**SHAPE, vocab_size=3)
    source = open_source("init_from", place)
    start_from(other, source, CharTokenizer("abé"))
    assert torch.equal(other.embed.weight, model.embed.weight)
    with pytest.raises(Refused, match=r"embed\.weight has shape"):
        start_from(GPT(**SHAPE, vocab_size=64), source, CharTokenizer("abé"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("llama")
    VARIANTS["Llama"].save(path)
    return str(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [None, FinetuneOptions("qlora", bits=4), FinetuneOptions("qlora", bits=8)]
)
def test_a_network_without_memory_is_filled_as_one_with_weights(
    folder: str, options: FinetuneOptions | None, dtype: torch.dtype
) -> None:
    source = open_source("init_from", folder)
    model = to_precision(empty_model(source.model), dtype)
    fill(model, source, options)
    usual = load_model(source, torch.device("cpu"))
    for name, weight in usual.named_parameters():
        if options and options.adapts(name.removesuffix(".weight")):
            weight.data = rounded(weight, options.bits)  # the float32 matrix, as merging does
    to_precision(usual, dtype)
    for one, method in ((model, "qlora"), (usual, "lora")) if options else ():
        torch.manual_seed(1)
        adapt(one, replace(options, name=method))
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert {p.dtype for p in model.parameters()} == {dtype}
    names, theirs = ({name for name, _ in one.named_parameters()} for one in (model, usual))
    adapted = {name.replace("lora_A", "weight") for name in theirs if "lora_A" in name}
    assert names == theirs - adapted
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(model.eval()(tokens), usual(tokens))


def test_each_weight_is_freed_before_the_next_one_is_read(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source("init_from", folder)
    assert isinstance(source, FileSource)
    read, alive = source.tensors, []

    def watched(self: FileSource) -> Iterator[tuple[str, torch.Tensor]]:
        last: weakref.ref[torch.Tensor] | None = None
        for name, tensor in read():
            alive.append(last is not None and last() is not None)
            last = weakref.ref(tensor)
            yield name, tensor
            del tensor

    monkeypatch.setattr(FileSource, "tensors", watched)
    fill(empty_model(source.model), source)
    assert len(alive) > 10 and not any(alive)
