"""A manifest or a tensor file that cannot be right is refused by name."""

from pathlib import Path

import pytest
import torch

from llm.checkpoint.checkpoint import MANIFEST, WEIGHTS, Checkpoint
from llm.data.tokenizer import ByteTokenizer
from llm.errors import Refused
from llm.model.gpt import GPT
from tests.checkpoint.conftest import Edit, assert_equal, edit, replace_weights


def test_a_missing_file_is_refused_by_name(saved: Path) -> None:
    checkpoint = Checkpoint.open(saved)
    (saved / WEIGHTS).unlink()
    with pytest.raises(Refused, match=WEIGHTS):
        checkpoint.weights()
    (saved / MANIFEST).unlink()
    with pytest.raises(Refused, match=f"is not a checkpoint: it has no {MANIFEST}"):
        Checkpoint.open(saved)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"null", b"[" * 99_999], ids=len)
def test_a_manifest_that_is_no_json_object_is_refused(saved: Path, text: bytes) -> None:
    (saved / MANIFEST).write_bytes(text)
    with pytest.raises(Refused, match=MANIFEST):
        Checkpoint.open(saved)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: m.update(format_version=99), "format_version=99"),
        (lambda m: m.pop("format_version"), "format_version=None"),
        (lambda m: m.update(step="4"), "step=4 must be a whole number"),
        (lambda m: m.pop("state"), "state is missing"),
        (lambda m: m.update(identity=None), "identity=null must be a section"),
        (lambda m: m.update(files=[]), r"files=\[\] must be a section"),
        (lambda m: m.pop("model"), "model is missing"),
        (lambda m: m["model"].update(_target_="os.system"), "_target_ is an unknown key"),
        (lambda m: m["model"].update(n_layer="2"), r"model\.n_layer=2 must be a whole number"),
        (lambda m: m["model"].update(n_layer=True), r"model\.n_layer=true must be a whole number"),
        (lambda m: m["model"].update(n_layer=None), r"model\.n_layer=null must be a whole number"),
        (lambda m: m["model"].update(bias=0), r"model\.bias=0 must be true or false"),
        (lambda m: m["model"].update(norm="${oc.env:HOME}"), r"model\.norm=.* must be one of"),
        (lambda m: m["model"].update(n_layer=0), r"model\.n_layer=0"),
        (lambda m: m["model"].update(n_embed=10**9), r"model\.n_embed=1000000000 must be"),
        (lambda m: m["model"].update(vocab_size=None), r"model\.vocab_size is missing"),
        (lambda m: m["tokenizer"].update(kind="pickle"), "unknown tokenizer 'pickle'"),
        (lambda m: m.update(tokenizer=ByteTokenizer().to_json()), "tokenizer of 257 ids and a "),
    ],
)
def test_a_manifest_that_cannot_be_ours_is_refused_by_name(
    saved: Path, change: Edit, named: str
) -> None:
    edit(saved, change)
    with pytest.raises(Refused, match=named):
        Checkpoint.open(saved)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("norm.weight"), r"has no tensor norm\.weight"),
        (lambda t: t.update(stranger=torch.ones(1)), "has a tensor stranger that this model lacks"),
        (
            lambda t: t.update({"norm.weight": torch.ones(33)}),
            r"norm\.weight has shape \(33,\), this model needs \(32,\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_the_model_are_refused_by_name(
    saved: Path, change: Edit, named: str
) -> None:
    replace_weights(saved, change)
    with pytest.raises(Refused, match=named):
        Checkpoint.open(saved).load_model(torch.device("cpu"))


def test_refused_weights_leave_the_model_as_it_was(saved: Path, tiny_model: GPT) -> None:
    replace_weights(saved, lambda t: t["norm.weight"].fill_(torch.nan))
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    with pytest.raises(Refused, match=r"norm\.weight has values that are not finite"):
        Checkpoint.open(saved).load_into(tiny_model)
    assert_equal(tiny_model.state_dict(), before)
