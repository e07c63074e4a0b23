"""The benchmarks of fine-tuning run at tiny sizes, and both sides compute the same."""

import contextlib
import io
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import finetune, lora
from llm.model.config import GPTConfig
from llm.model.gpt import GPT
from tests.conftest import ROOT

SHAPE = lora.SHAPE | {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
NETWORK = GPTConfig(n_layer=2, n_embed=64, head_size=16, intermediate_size=128, vocab_size=5000)


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """A tiny network in ``tmp_path``; returns how our allocator was tuned, which is not done."""
    for name in ("transformers", "peft"):
        pytest.importorskip(name)
    seen: list[tuple[int, bool]] = []
    monkeypatch.setattr(lora, "SHAPE", SHAPE)
    monkeypatch.setattr(lora, "STEPS", 1)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(
        "llm.device.tune_allocator", lambda width, adapters=False: seen.append((width, adapters))
    )
    lora.random_llama(tmp_path)
    return seen


def filled(side: Callable[..., Any], folder: Path, share: float) -> tuple[float, int]:
    """The loss when all adapters hold one number, and how many numbers are trained."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft reads names that transformers has deprecated
        model, loss = side(folder, share)
    trained = [one for one in model.parameters() if one.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.fill_(0.05)
        return float(loss()), sum(one.numel() for one in trained)


@pytest.mark.parametrize("share", [0.39, 1.0])
def test_the_targets_of_lora_are_the_next_tokens_and_a_share_of_them_counts(share: float) -> None:
    x, y, counts = lora.batch(share)
    assert x.shape == y.shape == counts.shape == (4, 256)
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert float(counts.float().mean()) == pytest.approx(share, abs=0.05)


@pytest.mark.slow  # importing transformers and peft takes seconds
@pytest.mark.parametrize("share", [0.39, 1.0])
def test_both_sides_of_lora_train_as_much_and_compute_the_same_loss(
    share: float, tmp_path: Path, tuned: list[tuple[int, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y, counts = lora.batch(share)
    counts[:, -1] = False  # transformers shifts the labels and so leaves out the last target
    monkeypatch.setattr(lora, "batch", lambda share: (x, y, counts))
    ours, theirs = (filled(side, tmp_path, share) for side in (lora.our_loss, lora.their_loss))
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6)
    assert ours[1] == theirs[1] > 0
    assert tuned == [(32, True)]


@pytest.mark.slow
def test_steps_and_decoding_of_both_sides_are_measured(
    tmp_path: Path, tuned: list[tuple[int, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fresh(side: str, folder: Path, share: float) -> tuple[float, float]:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lora.train(side, folder, share)
        speed, peak = map(float, out.getvalue().split())
        return speed, peak

    monkeypatch.setattr(lora, "fresh", fresh)
    found = list(lora.compared(["lora_speed", "lora_heap"], 1))
    assert [row.id for row in found] == [
        "lora_speed", "lora_memory", "lora_heap", "lora_heap_memory",
    ]  # fmt: skip
    assert [adapters for _, adapters in tuned] == [True, True, False], "the last: mapped tensors"
    found.append(lora.decodes(1, new_tokens=2))
    assert all(min(row.ours, row.other, row.ratio) > 0 for row in found)


def test_the_rows_and_the_table_of_what_fits_are_of_the_same_predictions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cells_of(name: str) -> list[str]:
        """The cells of one line, with GiB."""
        (line,) = (line for line in finetune.table() if line.startswith(f"{start} | {name} |"))
        return line.removesuffix(" |").split(" | ")[-2:]

    monkeypatch.setattr(finetune, "networks", lambda: {"tiny": NETWORK})
    monkeypatch.setattr(finetune, "CONTEXTS", (256, 512))
    size = sum(one.numel() for one in GPT(**asdict(NETWORK)).parameters()) / 1e6
    start = f"| tiny, {size:,.0f} million"
    names = [f"{method} | {precision}" for method, precision in finetune.METHODS]
    rows = {row.id: row for row in finetune.rows()}
    assert list(rows) == [f"finetune_tiny_{name.replace(' | ', '_')}" for name in names]
    for row, name in zip(rows.values(), names, strict=True):
        shares = [float(cell) / 4 for cell in cells_of(name)]
        assert shares == pytest.approx([row.low, row.high], abs=0.005 / 4)
    full, adapters = (rows[f"finetune_tiny_{name}_bf16"] for name in ("full", "lora"))
    assert adapters.ours < full.ours
    monkeypatch.setattr(finetune, "BUDGET", int(full.high * 2**32) - 1)
    shorter, longer = cells_of("full | bf16")
    assert shorter[0].isdigit() and longer[0] == "(", "only with changes"
    monkeypatch.setattr(finetune, "BUDGET", 2**20)
    assert cells_of("full | bf16") == ["-", "-"]


@pytest.mark.slow
def test_the_table_of_the_docs_is_the_one_that_is_printed() -> None:
    page = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    assert "\n".join(finetune.table()) in page
