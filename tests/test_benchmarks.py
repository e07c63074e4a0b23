"""The benchmarks run, at sizes of no interest, against a stand-in for nanoGPT's network."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import recipe, rows, step
from benchmarks.nanogpt import NanoGPT, learning_rate
from benchmarks.training import Ours, Shape, random_dataset, train, validation_loss
from llm.config.compose import compose_training
from llm.data.dataset import Dataset

TINY = Shape(n_layer=1, n_head=2, n_embed=16, block_size=8, batch_size=4, vocab_size=65)
# What is used of nanoGPT's model.py: the same names and results, from a bigram table.
STAND_IN = """
from dataclasses import dataclass
import torch


@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool


class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        assert config.dropout == 0.0 and not config.bias
        self.table = torch.nn.Embedding(config.vocab_size, config.vocab_size)
        print("number of parameters: none to speak of")

    def forward(self, idx, targets=None):
        logits = self.table(idx)
        if targets is None:
            return logits[:, [-1]], None
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), learning_rate, betas)
"""
KEYS = ["id", "what", "ours", "other", "ratio", "low", "high"]


@pytest.fixture(scope="module")
def nanogpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is taken for a clone of nanoGPT."""
    folder = tmp_path_factory.mktemp("nanogpt")
    (folder / "model.py").write_text(STAND_IN, encoding="utf-8")
    return folder


def measured(path: Path) -> dict[str, dict[str, float]]:
    """The rows of a JSON file by id, after a look at their keys."""
    found = json.loads(path.read_text(encoding="utf-8"))
    for row in found:
        assert list(row) == KEYS
        assert all(math.isfinite(row[key]) for key in KEYS[2:])
        assert row["low"] <= row["ratio"] <= row["high"]
    return {row["id"]: row for row in found}


def test_steps_are_measured_against_nanogpt_and_against_the_peak(
    nanogpt: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(step, "SHAPES", dict.fromkeys(step.SHAPES, TINY))
    only = "step_0.8M,peak_share_nano,peak_share"
    typed = ["--only", only, "--repeats", "2", "--seconds", "0", "--json", str(tmp_path / "rows")]
    step.main([*typed, "--nanogpt", str(nanogpt)])
    found = measured(tmp_path / "rows")
    assert list(found) == only.split(",")
    assert found["peak_share"]["ratio"] > 0
    assert "none to speak of" not in capsys.readouterr().out


def test_without_nanogpt_only_the_shares_of_the_peak_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "PRESETS", {"nano": ("shakespeare_char", 1)})
    monkeypatch.setattr(step, "QUICK", ["step_0.8M", "peak_share_nano"])
    step.main(["--repeats", "1", "--seconds", "0", "--json", str(tmp_path / "rows")])
    assert list(measured(tmp_path / "rows")) == ["peak_share_nano"]


@pytest.mark.parametrize("only", ["step_0.9M", "step_0.8M"])
def test_a_row_that_cannot_be_measured_is_named(
    only: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        step.main(["--only", only])
    assert ("step_0.9M" if only == "step_0.9M" else "--nanogpt") in capsys.readouterr().err


def test_recipes_are_compared_by_time_and_by_loss(
    nanogpt: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = ["data=text", "data.tokenizer=char", "data.path=elsewhere"]
    monkeypatch.setattr(recipe, "DATA", data)
    monkeypatch.setattr(recipe, "README_CPU", TINY)
    monkeypatch.setattr(recipe, "LARGER", TINY)
    arguments = [
        "--nanogpt", str(nanogpt), "--data", str(text_file), "--experiment", "null",
        "--seeds", "1,2", "--steps", "3", "--nanogpt-steps", "4", "--minutes", "0.005",
        "--json", str(tmp_path / "rows"), "optimizer.lr=3e-3",
    ]  # fmt: skip
    recipe.main(arguments)
    found = measured(tmp_path / "rows")
    assert list(found) == ["time_to_loss", "loss_at_time"]
    loss = found["loss_at_time"]
    assert math.isclose(loss["ratio"], loss["other"] - loss["ours"])
    assert "after 3 steps" in str(found["time_to_loss"]["what"])
    assert "after 4 steps" in str(found["time_to_loss"]["what"])
    assert capsys.readouterr().out.count("seed 2: loss") == 4


def test_our_side_trains_as_the_recipe_says_and_is_repeatable(dataset: Dataset) -> None:
    settings = compose_training(
        "data=text", "data.tokenizer=char", "data.path=elsewhere", "trainer.max_steps=4",
        *TINY.overrides(),
    )  # fmt: skip
    runs = [Ours(settings, dataset) for _ in range(2)]
    before = validation_loss(runs[0], dataset.val, 8)
    assert [train(run, steps=4)[1] for run in runs] == [4, 4]
    assert runs[0].trainer.progress.tokens == 4 * TINY.tokens
    after = [validation_loss(run, dataset.val, 8) for run in runs]
    assert after[0] == after[1] < before


def test_training_stops_when_the_time_is_over(nanogpt: Path, tmp_path: Path) -> None:
    random_dataset(tmp_path, vocab_size=65, tokens=1000)
    spent, done = train(NanoGPT(nanogpt, TINY, tmp_path / "train.bin", 10), steps=10, seconds=0)
    assert (spent, done) == (0.0, 0)


def test_nanogpts_loop_takes_targets_one_further_on_and_follows_its_schedule(
    nanogpt: Path, tmp_path: Path
) -> None:
    (tmp_path / "train.bin").write_bytes(np.arange(60, dtype=np.uint16).tobytes())
    training = NanoGPT(nanogpt, TINY, tmp_path / "train.bin", max_iters=2000)
    x, y = training.batch
    assert x.shape == (4, 8)
    assert torch.equal(x + 1, y)
    training.step()
    assert training.optimizer.param_groups[0]["lr"] == learning_rate(0, 2000, 100)


def test_nanogpts_learning_rate_rises_for_100_steps_and_ends_at_a_tenth() -> None:
    # Values of get_lr of its train.py at learning_rate 1e-3, min_lr 1e-4, lr_decay_iters 2000.
    assert learning_rate(0, 2000, 100) == pytest.approx(1e-3 / 101)
    assert learning_rate(100, 2000, 100) == pytest.approx(1e-3)
    assert learning_rate(1050, 2000, 100) == pytest.approx(5.5e-4)
    assert learning_rate(2000, 2000, 100) == pytest.approx(1e-4)
    assert learning_rate(2001, 2000, 100) == 1e-4


def test_the_validation_loss_counts_every_whole_window_once() -> None:
    class Knows:
        """Gives all its probability to the next number."""

        seen: list[Tensor]

        def __init__(self) -> None:
            self.seen = []

        def step(self) -> None: ...

        def n_parameters(self) -> int:
            return 0

        def logits(self, tokens: Tensor) -> Tensor:
            self.seen.append(tokens)
            return 100.0 * torch.nn.functional.one_hot(tokens + 1, 1000)

    training = Knows()
    assert validation_loss(training, np.arange(900, dtype=np.uint16), 8) == pytest.approx(0)
    assert torch.equal(torch.cat(training.seen).flatten(), torch.arange(112 * 8))


def test_pairs_alternate_who_is_first_and_their_ratios_are_taken_pair_by_pair() -> None:
    order: list[str] = []

    def side(name: str, value: float) -> float:
        order.append(name)
        return value

    pairs = rows.alternate(
        lambda i: side("ours", [4.0, 30.0, 2.0][i]), lambda i: side("other", [2, 10, 4][i]), 3
    )
    assert order == ["ours", "other", "other", "ours", "ours", "other"]
    row = rows.row("id", "what", pairs, lambda ours, other: ours / other)
    assert (row.ours, row.other, row.ratio, row.low, row.high) == (4, 4, 2, 0.5, 3)
