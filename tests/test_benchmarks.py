"""The benchmarks run at tiny sizes, with a stand-in for nanoGPT's network."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.text import Text
from torch import Tensor

from benchmarks import (
    decoding,
    durability,
    int8,
    largest,
    levers,
    looping,
    memory,
    real_runs,
    recipe,
    rows,
    screen,
    step,
    transfer,
    vs_nanogpt,
)
from benchmarks import report as report_benchmark
from benchmarks.nanogpt import NanoGPT, learning_rate
from benchmarks.training import Ours, Shape, train, validation_loss
from llm.config.inside import compose_training
from llm.data.dataset import Dataset
from llm.memory.predict import Setup
from llm.model.config import GPTConfig
from llm.model.gpt import GPT
from llm.planning.setup import setup_of
from llm.report.runs import find_runs
from tests.command_line import here
from tests.conftest import ROOT, TINY_RUN
from tests.model.test_reference import randomised

TINY = Shape(n_layer=1, n_head=2, n_embed=16, block_size=8, batch_size=4, vocab_size=65)
SMALL = {"n_layer": 1, "n_embed": 16, "n_head": 2, "head_size": 8, "vocab_size": 65}
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
        assert config.dropout == 0.0
        self.table = torch.nn.Embedding(config.vocab_size, config.vocab_size)
        print("number of parameters: none to speak of")

    def forward(self, idx, targets=None):
        logits = self.table(idx)
        if targets is None:
            return logits[:, [-1]], None
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), learning_rate, betas)

    def generate(self, idx, max_new_tokens, top_k):
        for _ in range(max_new_tokens):
            logits, _ = self(idx)
            idx = torch.cat((idx, logits.topk(top_k).indices[:, -1]), dim=1)
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


def refusal(
    main: Callable[[list[str]], None], typed: list[str], capsys: pytest.CaptureFixture[str]
) -> str:
    """The only line that a command says before it exits with status 2."""
    with pytest.raises(SystemExit) as stop:
        main(typed)
    said = capsys.readouterr()
    assert (stop.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    return said.err


def test_steps_and_writing_are_measured_against_nanogpt(
    nanogpt: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(step, "SHAPES", dict.fromkeys(step.SHAPES, TINY))
    monkeypatch.setattr(decoding, "LARGE", decoding.LARGE | SMALL)
    only = ["step_0.8M", "step_124M", "decode_124M_nanogpt"]
    typed = ["--only", ",".join(reversed(only)), "--repeats", "1", "--seconds", "0"]
    vs_nanogpt.main([*typed, "--nanogpt", str(nanogpt), "--json", str(tmp_path / "rows")])
    assert list(measured(tmp_path / "rows")) == only
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()[2:]] == only
    assert "none to speak of" not in shown


def test_steps_are_measured_against_the_peak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "SHAPES", dict.fromkeys(step.SHAPES, TINY))
    only = "peak_share,peak_share_nano"
    typed = ["--only", only, "--repeats", "2", "--seconds", "0", "--json", str(tmp_path / "rows")]
    step.main(typed)
    found = measured(tmp_path / "rows")
    assert list(found) == only.split(",")
    assert found["peak_share"]["ratio"] > 0


def test_memory_is_measured_before_torch_makes_the_process_large() -> None:
    assert vs_nanogpt.IDS[0] == "step_memory"
    look = "import sys, benchmarks.vs_nanogpt; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look], cwd=ROOT).returncode == 0


def test_a_mistake_in_what_is_typed_is_named_in_one_line(
    nanogpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clone = ["--nanogpt", str(nanogpt)]
    for command, typed, words in (
        (vs_nanogpt, [*clone, "--only", "step_0.9M"], "step_0.9M is unknown: take from "),
        (vs_nanogpt, ["--nanogpt", str(tmp_path)], f"{tmp_path} is not a clone of nanoGPT"),
        (vs_nanogpt, clone, "time_to_loss needs --data"),
        (vs_nanogpt, [*clone, "--data", str(tmp_path)], f"--data {tmp_path} is not a file"),
        (memory, ["--only", "plan,largest_in_4gib"], "largest_in_4gib needs --nanogpt CLONE"),
        (int8, ["--ckpt", "x"], "--data go together"),
    ):
        assert words in refusal(command.main, typed, capsys)


@pytest.mark.slow
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
        "--only", "time_to_loss,loss_at_time", "--seeds", "1,2", "--steps", "3",
        "--nanogpt-steps", "4", "--minutes", "0.005", "--json", str(tmp_path / "rows"),
        "optimizer.lr=3e-3",
    ]  # fmt: skip
    vs_nanogpt.main(arguments)
    found = measured(tmp_path / "rows")
    assert list(found) == ["time_to_loss", "loss_at_time"]
    loss = found["loss_at_time"]
    assert math.isclose(loss["ratio"], loss["other"] - loss["ours"])
    assert "after 3 steps" in str(found["time_to_loss"]["what"])
    assert "after 4 steps" in str(found["time_to_loss"]["what"])
    assert capsys.readouterr().out.count("seed 2: loss") == 4


def test_what_was_measured_is_kept_when_a_later_row_fails(tmp_path: Path) -> None:
    def measure() -> Iterator[rows.Row]:
        yield rows.row("first", "what", [(1.0, 2.0)], lambda ours, other: ours / other)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rows.report(measure(), tmp_path / "rows")
    assert list(measured(tmp_path / "rows")) == ["first"]


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


def test_the_validation_loss_counts_every_token_but_the_first_once() -> None:
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
    windows = torch.cat(training.seen)
    assert torch.equal(windows[:112].flatten(), torch.arange(112 * 8))
    assert torch.equal(windows[112:].flatten(), torch.arange(891, 899))  # the tail: 3 targets


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


def test_a_rate_shared_by_all_sizes_is_held_against_the_best_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = {  # by width, depth and rate: two seeds
        (64, 4): {0.01: (3.0, 3.2), 0.02: (2.0, 2.2)},
        (128, 4): {0.01: (1.0, 1.2), 0.02: (1.1, 1.5)},
        (64, 8): {0.01: (1.5, 1.7), 0.02: (1.5, 1.5)},
    }
    for (n_embed, n_layer), rates in losses.items():
        for lr, seeds in rates.items():
            for seed, loss in enumerate(seeds):
                run = tmp_path / "sweep" / f"{n_embed}-{n_layer}-{lr}-{seed}"
                run.mkdir(parents=True)
                config = {
                    "model": {"n_embed": n_embed, "n_layer": n_layer},
                    "optimizer": {"lr": lr},
                }
                (run / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
                summary = {"status": "finished", "val_loss": loss}
                (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    typed = ["--folders", str(tmp_path / "sweep"), "--out", str(tmp_path / "picture.png")]
    monkeypatch.setattr(sys, "argv", ["transfer", *typed, "--json", str(tmp_path / "rows")])
    transfer.main()
    found = measured(tmp_path / "rows")
    assert {id: round(row["ratio"], 6) for id, row in found.items()} == {
        "transfer: n_embed=64 n_layer=4": 0,
        "transfer: n_embed=64 n_layer=8": 0,
        "transfer: n_embed=128 n_layer=4": 0.2,
    }
    said = capsys.readouterr().out
    assert said.startswith("shared rate 0.02; two means differ by 0.1633 by chance\n")
    assert "| 128 | 4 | 1.1000 | +0.0000 | +0.2000 |" in said
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"


def test_greedy_texts_loop_less_where_repeats_are_forbidden(
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = ["data=text", f"data.path={text_file}", "data.tokenizer=char"]
    assert here("train", *data, *TINY_RUN, "run.dir=run", cwd=tmp_path).returncode == 0
    (prepared,) = (tmp_path / "data").glob("text-*")
    typed = ["--ckpt", str(tmp_path / "run"), "--data", str(prepared)]
    chosen = ["temperature=0", "temperature=0 no_repeat_ngram=4"]
    monkeypatch.setattr(looping, "SETTINGS", chosen)
    looping.main([*typed, "--json", str(tmp_path / "rows")])
    found = measured(tmp_path / "rows")
    greedy, barred = (found[f"looping: {setting}"] for setting in chosen)
    assert greedy["ours"] == greedy["other"] == barred["other"]
    assert barred["ours"] < greedy["ours"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines] == [
        "| setting", "|---|---|---|---|---|---|", "| the text itself",
        *(f"| `{setting}`" for setting in chosen),
    ]  # fmt: skip
    assert "many is an unknown key" in refusal(looping.main, [*typed, "many=1"], capsys)
    assert "top_p=most" in refusal(looping.main, [*typed, "top_p=most"], capsys)
    (tmp_path / "other").mkdir()
    typed[-1] = str(tmp_path / "other")
    assert str(tmp_path / "other") in refusal(looping.main, typed, capsys)


@torch.no_grad()
def test_a_network_in_8_bits_is_nearly_the_same() -> None:
    model = randomised(
        GPT(n_layer=2, n_embed=64, n_head=4, n_kv_head=2, head_size=16, block_size=16,
            vocab_size=61, bias=True, qk_norm=True)
    )  # fmt: skip
    tokens = torch.arange(32).view(2, 16)
    full, eight = model(tokens), int8.in_8_bits(model)(tokens)
    assert not torch.equal(full, eight)
    assert (full - eight).norm() < 0.03 * full.norm()


@pytest.mark.slow
def test_saves_are_measured_beside_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = compose_training(*TINY_RUN)
    monkeypatch.setattr(durability, "compose_training", lambda: tiny)
    found = {row.id: row for row in durability.measure_saves(tmp_path, repeats=1)}
    assert list(found) == ["durability_cost", "durability_of_save"]
    assert all(row.ours > 0 and row.other > 0 for row in found.values())


@pytest.mark.slow
def test_the_first_step_of_a_real_start_is_waited_for(tmp_path: Path, text_file: Path) -> None:
    options = [*durability.QUICK, f"data.path={text_file}", "model.n_layer=1"]
    assert durability.seconds_to_first_step(tmp_path, *options) > 0
    assert (tmp_path / "outputs/run/checkpoints/last").exists(), "the next one goes on from it"


@pytest.mark.parametrize("own", [[], ["trainer.micro_batch_size=4"], memory.ALL_LEVERS])
def test_the_step_whose_memory_is_measured_changes_every_weight(own: list[str]) -> None:
    shape = ["model.n_layer=1", "model.n_embed=32", "model.head_size=16", "model.block_size=8"]
    typed = [word for word in own if "state_bits" not in word]  # whose library takes seconds
    built: list[GPT] = []
    init = GPT.__init__

    def remember(self: GPT, **options: object) -> None:
        init(self, **options)  # type: ignore[arg-type]  # by name
        built.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPT, "__init__", remember)
        make_step = memory.build_ours([*shape, *typed])
    (model,) = built
    before = [parameter.clone() for parameter in model.parameters()]
    make_step(torch.randint(memory.VOCAB_SIZE, (memory.BATCH_SIZE, 8)))
    assert not any(map(torch.equal, before, model.parameters()))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_jobs_that_are_limited_to_their_prediction_can_be_planned() -> None:
    jobs = real_runs.jobs()
    assert len(jobs) == real_runs.COUNT
    assert sum("optimizer=muon" in job for job in jobs) == real_runs.COUNT / 2
    data = ["data=text", "data.tokenizer=byte", "data.path=any"]
    setups = [setup_of(compose_training(*data, *job), "cpu") for job in jobs[:6]]
    assert len({str(setup) for setup in setups}) == 6


def test_a_process_with_too_little_memory_is_recognised(tmp_path: Path) -> None:
    hungry = ["-c", "print(len(bytearray(2**28)))"]
    assert real_runs.started(hungry, tmp_path, limit=2**30).output == f"{2**28}\n"
    ended = real_runs.started(hungry, tmp_path, limit=2**27)
    assert (ended.status, ended.of_memory) == (1, True)
    assert not real_runs.started(["-c", "1 / 0"], tmp_path, limit=2**30).of_memory
    assert real_runs.Ended(real_runs.OUT_OF_MEMORY, "", 0).of_memory


def small_setup(**own: object) -> Setup:
    """Of which a step takes no time."""
    config = GPTConfig(n_layer=2, n_embed=32, head_size=16, block_size=16, vocab_size=61)
    setup = Setup(replace(config, loss="full").resolve(), batch_size=4, micro_batch=4)
    return replace(setup, **own)  # type: ignore[arg-type]  # by name


def test_each_lever_is_measured_beside_a_step_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levers, "tune_allocator", lambda n_embed: None)
    plain = small_setup(batch_size=8, micro_batch=8)
    chosen = {
        "in_backward": (plain, replace(plain, step_in_backward=True)),
        "micro_batch": (plain, replace(plain, micro_batch=1)),
    }
    monkeypatch.setattr(levers, "LEVERS", chosen)
    found = {row.id: row for row in levers.costs(repeats=1)}
    assert list(found) == [f"lever_{n}{b}" for n in chosen for b in ("", "_128", "_512")]
    assert min(row.ours for row in found.values()) > 0
    assert found["lever_micro_batch_128"].other > 4 * 109e6, "of model=small"
    monkeypatch.setattr(levers, "PLAIN", plain)
    assert math.isfinite(levers.few_tokens(repeats=1).ratio)


def test_what_auto_picks_is_among_all_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levers, "tune_allocator", lambda n_embed: None)
    monkeypatch.setattr(levers, "CASES", {"small": small_setup(batch_size=8, micro_batch=8)})
    (found,) = levers.choices(repeats=1)
    assert found.id == "auto_vs_best_small"
    assert found.ratio > 0 and "settings of 32 bits that fit" in found.what


# MemTracker looks at gradients that a step in the backward pass has freed already.
@pytest.mark.filterwarnings("ignore:Expected a tensor or a traceable wrapper:UserWarning")
def test_predictions_are_measured_beside_memtracker(
    nanogpt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(largest, "drawn", lambda: [small_setup(), small_setup(optimizer="muon")])
    high, low = largest.errors()
    assert -0.02 < low.ratio <= high.ratio < 0.03
    for name, value in {"VOCAB_SIZE": 512, "BLOCK_SIZE": 32, "MOST": 2, "RESERVE": 0}.items():
        monkeypatch.setattr(largest, name, value)
    monkeypatch.setattr(largest, "BUDGET", 8 * 2**20)
    size, tracked = largest.largest(nanogpt)
    assert size.other == 512 * 512, "of the stand-in, whatever its width"
    assert size.ours > 512 * 64
    assert tracked.ratio == pytest.approx(1, abs=0.05)


def test_a_terminal_is_drawn_in_its_colours(tmp_path: Path) -> None:
    lines = [Text("state", "bold"), Text.assemble(("killed", "red"), " 1.5 = $2^2$")]
    screen.draw(lines, 80, tmp_path / "table.png")
    with Image.open(tmp_path / "table.png") as picture:
        assert picture.size == (80 * 12 + 48, 2 * 27 + 48)
        colours = {rgb for _, rgb in picture.convert("RGB").getcolors(9999) or []}
    assert any(red > 2 * green for red, green, _ in colours)


def test_the_runs_that_a_report_is_timed_with_are_points_of_many_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_benchmark, "OVER", {"model.n_layer": [1, 2]})
    monkeypatch.setattr(report_benchmark, "SEEDS_OF_10000", 3)
    records = find_runs([report_benchmark.sweep_of_10000(tmp_path)])
    assert sorted((one.values["model.n_layer"], one.seed) for one in records) == [
        (n_layer, seed) for n_layer in ("1", "2") for seed in range(3)
    ]
    assert len({record.point for record in records}) == 2
    assert len({record.best_val_loss for record in records}) == 6
    assert {record.status for record in records} == {"finished"}


@pytest.mark.slow
def test_the_page_of_a_report_is_measured_in_chromium(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("playwright")
    monkeypatch.setattr(report_benchmark, "OVER", {"model.n_layer": [1, 2]})
    monkeypatch.setattr(report_benchmark, "EVALUATIONS", 3)
    size, *picture = report_benchmark.report_page(tmp_path, 1)
    assert size.ours < size.other
    assert all(row.ours > row.other > 0 for row in picture)
