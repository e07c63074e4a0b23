"""init_from takes only weights that were trained with the same tokenizer."""

from pathlib import Path

import pytest
import torch

from llm.checkpoint.folder import CheckpointFolder
from llm.data.tokenizer import ByteTokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer
from llm.errors import Refused
from llm.interchange.source import open_source, start_from
from llm.model.gpt import GPT
from tests.checkpoint.conftest import IDENTITY, STATE

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
