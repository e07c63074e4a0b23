"""Several texts packed into a row are computed as if each were alone."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from llm.functional import IGNORED
from llm.model.gpt import GPT
from llm.model.layers import mask_between, positions_in

STYLES: dict[str, dict[str, Any]] = {
    "rotary": {},
    "learned positions": {"position": "learned", "norm": "layernorm", "mlp": "gelu", "bias": True},
    "smear": {"smear": 3, "residual_scalars": True},
    "shared heads": {"n_head": 4, "head_size": 8, "n_kv_head": 2, "qk_norm": True},
    "chunked loss": {"loss": "chunked", "tie_embeddings": False},
}
LENGTHS = ([5, 1, 7], [3, 10])  # of the texts in each row; a row is filled with padding
T = 16
LOOSE = {torch.float32: 2e-5, torch.bfloat16: 0.06}


def build(style: str, **options: Any) -> GPT:
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_embed": 32, "head_size": 16, "block_size": T, "vocab_size": 40}
    model = GPT(**shape | STYLES[style] | options)
    for parameter in model.parameters():  # no weight that is zero at first hides a mistake
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def packed() -> tuple[Tensor, Tensor, Tensor, list[tuple[int, slice]]]:
    """Tokens, targets and documents (2, T), and where each text is."""
    made = torch.Generator().manual_seed(1)
    tokens = torch.randint(40, (len(LENGTHS), T), generator=made)
    targets = torch.randint(40, (len(LENGTHS), T), generator=made)
    documents, places = torch.empty(len(LENGTHS), T, dtype=torch.int64), list[tuple[int, slice]]()
    for row, lengths in enumerate(LENGTHS):
        ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
        documents[row] = len(lengths)
        targets[row, ends[-1] :] = IGNORED
        for number, (start, end) in enumerate(pairwise(ends)):
            documents[row, start:end] = number
            places.append((row, slice(start, end)))
    return tokens, targets, documents, places


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", LOOSE, ids=str)
@pytest.mark.parametrize("checkpoint_every", [0, 1])
def test_each_text_has_the_logits_and_gradients_that_it_has_alone(
    style: str, dtype: torch.dtype, checkpoint_every: int
) -> None:
    model = build(style)
    model.checkpoint_every = checkpoint_every
    tokens, targets, documents, places = packed()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        together = model(tokens, documents=documents)
        for row, place in places:
            alone = model(tokens[row : row + 1, place])[0]
            assert torch.allclose(together[row, place], alone, atol=LOOSE[dtype] * 10), place
        model(tokens, targets, documents, reduction="sum").backward()
        gradients = {name: one.grad for name, one in model.named_parameters()}
        model.zero_grad()
        for row, place in places:
            part = tokens[row : row + 1, place], targets[row : row + 1, place]
            model(*part, reduction="sum").backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        # The bias of the keys shifts all scores of a query alike: its gradient is only rounding.
        scale = 0.1 if name.endswith("k.bias") else float(parameter.grad.abs().max())
        difference = float((gradients[name] - parameter.grad).abs().max())
        assert difference <= LOOSE[dtype] * scale, name


@pytest.mark.parametrize("style", STYLES)
def test_one_document_that_fills_the_row_gives_what_no_documents_give(style: str) -> None:
    model, tokens = build(style).eval(), packed()[0]
    whole = model(tokens, documents=torch.zeros_like(tokens))
    assert torch.allclose(whole, model(tokens), atol=1e-5)


@pytest.mark.parametrize("style", STYLES)
def test_without_the_documents_the_texts_would_influence_each_other(style: str) -> None:
    model, (tokens, _, documents, places) = build(style).eval(), packed()
    row, place = places[1]
    with_documents = model(tokens, documents=documents)[row, place]
    assert not torch.allclose(with_documents, model(tokens)[row, place], atol=1e-3)


def test_positions_restart_and_pairs_lie_in_one_document() -> None:
    documents = torch.tensor([[4, 4, 9, 9, 9], [0, 1, 2, 2, 0]])
    assert positions_in(documents).tolist() == [[0, 1, 0, 1, 2], [0, 0, 0, 1, 0]]
    assert mask_between(documents)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1],
    ]  # fmt: skip
