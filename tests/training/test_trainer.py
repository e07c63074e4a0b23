"""The loop does what a plain loop in torch does, and logs what it did."""

import json
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from llm.data.batches import Batch
from llm.functional import IGNORED
from llm.model.gpt import GPT
from llm.sampling.looping import measure_repeats
from llm.sampling.options import SamplingOptions
from llm.training import throughput
from llm.training.schedule import Constant
from tests.training.conftest import MODEL, HandBuilt, MakeTrainer, copied

TRAINING_KEYS = {
    "step", "tokens", "train_seconds", "train/loss", "lr", "grad_norm", "tokens_per_second", "mfu",
    "peak_memory_bytes",
}  # fmt: skip
EVALUATION_KEYS = {
    "step",
    "tokens",
    "train_seconds",
    "val/loss",
    "val/perplexity",
    "val/bits_per_byte",
    "best/val_loss",
}


def some_ignored(batch: Callable[[int], Batch]) -> Callable[[int], Batch]:
    """The same batches, with targets ignored in unequal numbers: all, some or none of a row."""

    def inner(step: int) -> Batch:
        inputs, targets = batch(step)
        targets = targets.copy()
        targets[0] = IGNORED
        targets[1, : 3 * step] = IGNORED
        return inputs, targets

    return inner


def train_plainly(trainer: HandBuilt, lr: float) -> tuple[GPT, list[float], list[float]]:
    """The same training with nothing but torch, the network and the batches."""
    model = GPT(**MODEL, vocab_size=trainer.model.config.vocab_size)
    model.load_state_dict(copied(trainer.model.state_dict()))
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=False, foreach=False)
    losses, norms = [], []
    for step in range(1, trainer.options.max_steps + 1):
        inputs, targets = map(torch.from_numpy, trainer.sampler.batch(step))
        logits = model(inputs).flatten(0, 1)
        loss = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        losses.append(loss.item())
        norms.append(gradients.norm().item())
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad *= min(1.0, trainer.options.grad_clip / norms[-1])
        optimizer.step()
    return model, losses, norms


@pytest.mark.parametrize("ignoring", [False, True], ids=["all targets", "some ignored"])
@pytest.mark.parametrize("micro_batch_size", [1, 2, None])
def test_it_trains_as_a_plain_loop_does_however_the_batch_is_cut(
    make_trainer: MakeTrainer, micro_batch_size: int | None, ignoring: bool
) -> None:
    trainer = make_trainer(
        lr=1e-3, schedule=Constant("constant", warmup_steps=0), max_steps=5, log_interval=1,
        micro_batch_size=micro_batch_size, grad_clip=0.5,
    )  # fmt: skip
    if ignoring:
        trainer.sampler.batch = some_ignored(trainer.sampler.batch)
    model, losses, norms = train_plainly(trainer, lr=1e-3)
    tokens = sum(trainer.sampler.batch(step)[0].size for step in range(1, 6))
    assert trainer.fit().tokens == tokens, "that the network read, whether their loss counts or not"
    assert min(norms) > 0.5, "every step is clipped"
    assert list(trainer.logger.column("train/loss").values()) == pytest.approx(losses, abs=1e-6)
    assert list(trainer.logger.column("grad_norm").values()) == pytest.approx(norms, abs=1e-5)
    for (name, found), wanted in zip(
        trainer.model.named_parameters(), model.parameters(), strict=True
    ):
        assert torch.allclose(found, wanted, rtol=0, atol=1e-6), name


def test_overfitting_one_batch_drives_its_loss_near_zero(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(
        max_steps=150, overfit_batches=1, eval_interval=150, checkpoint_interval=None
    )
    trainer.fit()
    assert trainer.logger.column("train/loss")[150] < 0.1


def test_rows_hold_the_keys_of_the_contract_at_the_steps_asked_for(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer(max_steps=7, log_interval=3, eval_interval=2, lr=0.5)
    trainer.fit()
    rows = {row["step"]: row for row in trainer.logger.rows}
    assert [row["step"] for row in trainer.logger.rows] == [0, 2, 3, 4, 6, 7], "one row a step"
    for step, row in rows.items():
        assert set(row) == {
            0: EVALUATION_KEYS, 2: EVALUATION_KEYS, 3: TRAINING_KEYS, 4: EVALUATION_KEYS,
            6: TRAINING_KEYS | EVALUATION_KEYS, 7: TRAINING_KEYS | EVALUATION_KEYS,
        }[int(step or 0)]  # fmt: skip
        assert row["tokens"] == 4 * 16 * int(step or 0)
        assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert trainer.logger.steps == [1, 2, 3, 4, 5, 6, 7]
    seconds = [row["train_seconds"] or 0.0 for row in trainer.logger.rows]
    assert seconds == sorted(seconds) and seconds[0] == 0 < seconds[1]
    assert seconds[-1] == trainer.progress.train_seconds
    assert rows[3]["lr"] == pytest.approx(0.5 * trainer.schedule(3, 7))


def test_speed_is_measured_since_the_last_row(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=4, log_interval=2)
    seconds: list[float] = []
    trainer.logger.on_tick = lambda _: seconds.append(trainer.progress.train_seconds)
    trainer.fit()
    rate = trainer.logger.column("tokens_per_second")[4]
    assert rate == pytest.approx(2 * 64 / (seconds[3] - seconds[1]))
    assert trainer.throughput.peak is not None
    mfu = rate * trainer.throughput.flops_per_token / trainer.throughput.peak
    assert trainer.logger.column("mfu")[4] == pytest.approx(mfu)


def test_a_run_faster_than_the_measured_peak_has_the_peak_measured_again(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(max_steps=2, log_interval=1)
    trainer.throughput.peak = 1.0  # as measured on a busy machine
    trainer.fit()
    assert 0 < trainer.logger.column("mfu")[1] < 1
    monkeypatch.setattr(throughput, "measured_matmul_flops", lambda: 1.0)
    still_busy = make_trainer(max_steps=1, log_interval=1)
    still_busy.fit()
    assert [row["mfu"] for row in still_busy.logger.rows if "mfu" in row] == [None]


def test_samples_come_at_their_interval_and_are_reproducible(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm.training.trainer.SAMPLE", SamplingOptions(max_new_tokens=12))
    trainer = make_trainer("once", sample_interval=3)
    trainer.fit()
    assert [step for step, *_ in trainer.logger.samples] == [3, 6]
    for step, prompt, text, scores in trainer.logger.samples:
        assert len(prompt) == 1 and len(text) == 12
        assert scores == measure_repeats(text).scores | {"end_of_text": 0.0}
        (row,) = [row for row in trainer.logger.rows if row["step"] == step]
        assert {key: row[f"sample/{key}"] for key in scores} == scores
    again = make_trainer("twice", sample_interval=3, log_interval=1)
    again.fit()
    assert again.logger.samples == trainer.logger.samples


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # torch's own, of its own parts
def test_a_compiled_network_learns_the_same(make_trainer: MakeTrainer) -> None:
    plain, compiled = make_trainer("plain", lr=1e-3), make_trainer("fast", lr=1e-3, compile=True)
    plain.fit()
    compiled.fit()
    assert set(compiled.model.state_dict()) == set(plain.model.state_dict())
    found, wanted = compiled.logger.column("val/loss"), plain.logger.column("val/loss")
    assert found == pytest.approx(wanted, abs=1e-4)


@pytest.mark.slow
def test_evaluating_and_sampling_do_not_compile_again(make_trainer: MakeTrainer) -> None:
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    options = {"eval_interval": 2, "sample_interval": 2, "eval_batches": 3, "dropout": 0.1}
    make_trainer(compile=True, max_steps=8, **options).fit()
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_checkpointed_blocks_train_to_the_same_bits(
    make_trainer: MakeTrainer, dropout: float
) -> None:
    losses = []
    for setting in ("none", "full", "every_2"):
        trainer = make_trainer(setting, dropout=dropout, activation_checkpointing=setting)
        trainer.fit()
        losses.append(trainer.logger.column("train/loss"))
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("steps", [1, 2, 12])
def test_a_profile_shows_where_the_time_of_a_step_goes(
    make_trainer: MakeTrainer, steps: int
) -> None:
    trainer = make_trainer(max_steps=steps, profile=True, eval_interval=20)
    trainer.fit()
    table = (trainer.folder.parent / "profile.txt").read_text(encoding="utf-8")
    assert "Self CPU time total" in table
    profile = json.loads((trainer.folder.parent / "profile.json").read_text(encoding="utf-8"))
    assert any("scaled_dot_product" in str(event.get("name")) for event in profile["traceEvents"])
    assert not trainer.logger.warnings


def test_the_logger_shows_what_takes_time_besides_training(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=2, eval_interval=2, sample_interval=2, micro_batch_size=4)
    trainer.fit()
    done = [what for what in trainer.logger.done if not what.startswith("sampling")]
    evaluation = [f"evaluating {n}/4" for n in (1, 2, 3, 4)]  # two batches of 8, cut in two
    assert done == [*evaluation, *evaluation, "saving"]
