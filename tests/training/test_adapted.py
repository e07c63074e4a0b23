"""Optimizers of the user's own: what they keep is measured, saved and restored to the bit."""

import functools
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.tracked import memory_tracker
from llm.checkpoint.checkpoint import Checkpoint
from llm.errors import Diverged, Refused
from llm.memory.kept import Kept
from llm.memory.predict import Setup, training_step
from llm.model.config import GPTConfig
from llm.model.gpt import GPT
from llm.training.adapted import Adapted, adapted
from llm.training.measure import measure, small
from llm.training.optimizer import Optimizer, layout_bytes
from llm.training.optimizer import adamw as ours
from llm.training.precision import Precision
from llm.training.update import Update
from tests.custom_classes import Blocks, Factored, KeepsAList, Lion, NeedsClosure
from tests.training.conftest import MODEL, MakeTrainer
from tests.training.test_resume import (
    DROPPING,
    assert_same_run,
    interrupted_and_resumed,
    resumed,
    stopped,
)

CPU = torch.device("cpu")
CONFIG = GPTConfig(**MODEL, vocab_size=50).resolve()
CLASSES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "SGD": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "plain SGD": (torch.optim.SGD, {"lr": 0.1}),
    "NAdam": (torch.optim.NAdam, {"lr": 2e-3, "weight_decay": 0.1}),
    "Adafactor": (torch.optim.Adafactor, {"lr": 1e-2}),
    "Lion": (Lion, {"lr": 1e-3, "betas": [0.9, 0.99], "weight_decay": 0.1}),
    "Factored": (Factored, {"lr": 1e-3}),
}


def own(name: str) -> Callable[..., Optimizer]:
    """As the fixture ``make_trainer`` wants it."""
    make, keys = CLASSES[name]
    return lambda model, **others: adapted(f"optimizer={name}", make, keys, model)


@pytest.mark.parametrize(
    ("name", "precision", "step"),
    [(name, "fp32", 3) for name in CLASSES] + [("NAdam", "fp16", 3), ("Lion", "fp16", 6)],
)
def test_an_interrupted_run_ends_with_the_bits_of_an_uninterrupted_one(
    name: str, precision: str, step: int, make_trainer: MakeTrainer
) -> None:
    options = DROPPING | {"optimizer": own(name), "precision": precision}
    whole = make_trainer("whole", **options)
    whole.fit()
    assert isinstance(whole.optimizer, Adapted)
    assert_same_run(interrupted_and_resumed(make_trainer, step, **options), whole)


def test_it_steps_as_the_class_itself_does(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(optimizer=own("NAdam"), grad_clip=0)
    reference = GPT(**MODEL, vocab_size=trainer.model.config.vocab_size)
    reference.load_state_dict(trainer.model.state_dict())
    matrices = [p for p in reference.parameters() if p.dim() >= 2]
    vectors = [p for p in reference.parameters() if p.dim() < 2]
    optimizer = torch.optim.NAdam(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    )
    for step in (1, 2, 3):
        trainer.optimizer_step(step)
        x, y = map(torch.from_numpy, trainer.sampler.batch(step))
        (reference(x, y, reduction="sum") / y.numel()).backward()
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * trainer.schedule(step, 8)
        optimizer.step()
        optimizer.zero_grad()
    for mine, its in zip(trainer.model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_going_back_after_a_divergence_restores_all_that_it_keeps(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(optimizer=own("Lion"), rollbacks=1)
    saved: list[Any] = []
    admits = type(trainer.guard).admits

    def once(self: Any, step: int, *numbers: Any) -> bool:
        if step == 6 and not saved:
            saved.append(trainer.newest.training(trainer.optimizer.custom_layout()))
            raise Diverged("made up", step=step)
        if step == 5 and saved:  # the first one after going back
            found = trainer.state_dict()["tensors"]
            kept = {name for name in found if name.startswith("optimizer/")}
            assert kept
            assert all(torch.equal(found[name], saved[0][name]) for name in kept)
            assert {group["k"] for group in trainer.optimizer.param_groups} == {4}
        return bool(admits(self, step, *numbers))

    monkeypatch.setattr(type(trainer.guard), "admits", once)
    assert trainer.fit().rollbacks == 1
    assert saved


def test_what_is_saved_is_all_that_was_told_before_the_first_step(
    make_trainer: MakeTrainer,
) -> None:
    for name in ("NAdam", "Lion"):
        trainer = make_trainer(name, optimizer=own(name))
        told = layout_bytes(trainer.optimizer.full_layout())
        trainer.fit()
        tensors = trainer.state_dict()["tensors"]
        assert told == sum(t.nbytes for n, t in tensors.items() if n.startswith("optimizer/"))


CHANGES: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "another name": lambda t: t.update({"optimizer/norm.weight/evil": torch.zeros(32)}),
    "another shape": lambda t: t.update({"optimizer/norm.weight/mean": torch.zeros(31)}),
    "another type": lambda t: t.update({"optimizer/norm.weight/count": torch.tensor(1.0)}),
    "another weight": lambda t: t.update({"optimizer/x/mean": torch.zeros(32)}),
    "one missing": lambda t: t.pop("optimizer/norm.weight/mean"),
    "a weight without": lambda t: [t.pop(n) for n in list(t) if "/norm.weight/" in n],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_with_what_the_class_does_not_keep_is_refused(
    change: str, make_trainer: MakeTrainer
) -> None:
    first = stopped(make_trainer, 3, optimizer=own("Lion"))
    saved = first.newest
    tensors = saved.training(first.optimizer.custom_layout())
    CHANGES[change](tensors)
    hostile = make_trainer("hostile", optimizer=own("Lion"))
    hostile.checkpoints.save(3, saved.weights(), tensors, saved.state)
    with pytest.raises(Refused) as refusal:
        hostile.resume(hostile.newest)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("groups", [None, [], [{}], [{"k": 3, "d": "x"}] * 2, [{"lr": 1}] * 2, 7])
def test_values_of_groups_that_the_class_does_not_change_are_refused(
    groups: Any, make_trainer: MakeTrainer
) -> None:
    first = stopped(make_trainer, 3, optimizer=own("Lion"))
    second = make_trainer("second", optimizer=own("Lion"))
    saved: Checkpoint = first.newest
    saved.state["groups"] = groups
    with pytest.raises(Refused, match=r"param_groups|groups(\[0\])?=|the checkpoint.s groups"):
        second.resume(saved)


@pytest.mark.parametrize(
    ("make", "keys", "why"),
    [
        (NeedsClosure, {"lr": 1.0}, "closure"),
        (KeepsAList, {"lr": 1.0}, "keeps history for embed.weight, a list"),
        (Blocks, {"lr": 1.0}, "do not follow from the weight's"),
        (lambda params: nn.Linear(2, 2), {}, "makes a Linear, no param_groups"),
        (lambda model: torch.optim.SGD([model.embed.weight]), {}, "does not update each weight"),
    ],
)
def test_a_class_that_cannot_be_used_is_refused_before_it_trains(
    make: Any, keys: dict[str, Any], why: str
) -> None:
    with pytest.raises((Refused, TypeError), match=why):
        measure("optimizer=x", make, keys, CONFIG, CPU)


def test_a_function_that_takes_the_network_may_make_any_groups() -> None:
    model = GPT(**asdict(CONFIG))

    def make(model: nn.Module, lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": [p], "lr": lr / p.dim()} for p in model.parameters()])

    optimizer = adapted("optimizer=x", make, {"lr": 1.0}, model)
    assert {group["base_lr"] for group in optimizer.param_groups} == {0.5, 1.0}
    keys = {"lr": 1.0, "weight_decay": 0.1, "betas": [0.9, 0.95]}
    assert type(adapted("optimizer=x", ours, keys, model)) is Optimizer


LARGER = GPTConfig(
    n_layer=3, n_embed=96, n_head=3, head_size=32, n_kv_head=1, block_size=32, vocab_size=600,
    smear=2, residual_scalars=True, qk_norm=True, tie_embeddings=False,
).resolve()  # fmt: skip


# As torch's own classes step on a GPU: all weights at once.
WAYS = [(name, False) for name in CLASSES] + [("SGD", True), ("NAdam", True)]


@functools.cache
def kept(name: str, foreach: bool = False) -> Kept:
    return measure(name, *CLASSES[name], LARGER, CPU, foreach)


@pytest.mark.parametrize(("name", "foreach"), WAYS)
@pytest.mark.parametrize("batch", [1, 8])
def test_the_peak_of_a_training_step_is_predicted_as_memtracker_sees_it(
    name: str, batch: int, foreach: bool
) -> None:
    make, keys = CLASSES[name]
    setup = Setup(LARGER, name, kept(name, foreach), batch_size=batch, micro_batch=batch)
    predicted = max(sum(lines.values()) for lines in training_step(setup).values())
    model = GPT(**asdict(LARGER))
    keys = keys | ({"foreach": True} if foreach else {})
    optimizer = Adapted(name, make_of(make, keys, model), model, kept(name, foreach))
    tokens = torch.randint(600, (batch, LARGER.block_size))
    update = Update(model, optimizer, Precision("fp32", CPU), 1.0)

    def step() -> None:
        update.backward(model(tokens, tokens, reduction="sum") / tokens.numel())
        update.norm()
        update.step()
        update.drop()

    for _ in range(5):  # until all is there that is kept
        step()
    tracker = memory_tracker()
    state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    tracker.track_external(model, tokens, *state)
    with tracker:
        step()
    error = predicted / int(tracker.get_tracker_snapshot("peak")[CPU]["Total"]) - 1
    assert -0.02 <= error <= 0.03, f"{error:+.2%}"


def make_of(make: Callable[..., Any], keys: dict[str, Any], model: nn.Module) -> Any:
    return make(
        [
            {"params": [p for p in model.parameters() if p.dim() >= 2]},
            {"params": [p for p in model.parameters() if p.dim() < 2]},
        ],
        **keys,
    )


def test_the_state_of_every_weight_is_told_for_a_network_of_any_size() -> None:
    for name, (make, keys) in CLASSES.items():
        model = GPT(**asdict(LARGER))
        optimizer = make_of(make, keys, model)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        with torch.no_grad():
            for _ in range(5):
                optimizer.step()
        for weight, p in model.named_parameters():
            real = sum(v.nbytes for v in optimizer.state[p].values() if isinstance(v, torch.Tensor))
            assert kept(name).bytes(weight, tuple(p.shape)) == real, (name, weight)


def test_measuring_changes_no_random_number() -> None:
    before = torch.get_rng_state()
    measure("x", *CLASSES["Lion"], small(LARGER, 1, {}), CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_goes_on_only_with_the_class_it_was_begun_with(make_trainer: MakeTrainer) -> None:
    first = stopped(make_trainer, 3, optimizer=own("SGD"))
    for other in ("NAdam", "Lion"):
        with pytest.raises(Refused):
            resumed(make_trainer, first, optimizer=own(other))
