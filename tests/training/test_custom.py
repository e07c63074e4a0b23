"""Custom optimizers: their state is measured, saved and restored to the bit."""

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
from llm.memory.custom import CustomState
from llm.memory.predict import Setup, training_step
from llm.model.config import GPTConfig
from llm.model.gpt import GPT
from llm.training.custom import CustomOptimizer, custom_optimizer
from llm.training.measure import build_custom, measure, small
from llm.training.optimizer import Optimizer
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


def custom(name: str) -> Callable[..., Optimizer]:
    """The option ``optimizer`` of the fixture ``make_trainer``."""
    make, keys = CLASSES[name]
    return lambda model, **others: custom_optimizer(f"optimizer={name}", make, keys, model)


@pytest.mark.parametrize(
    ("name", "precision", "step"),
    [(name, "fp32", 3) for name in CLASSES] + [("NAdam", "fp16", 3), ("Lion", "fp16", 6)],
)
def test_an_interrupted_run_ends_with_the_bits_of_an_uninterrupted_one(
    name: str, precision: str, step: int, make_trainer: MakeTrainer
) -> None:
    options = DROPPING | {"optimizer": custom(name), "precision": precision}
    whole = make_trainer("whole", **options)
    whole.fit()
    assert isinstance(whole.optimizer, CustomOptimizer)
    assert_same_run(interrupted_and_resumed(make_trainer, step, **options), whole)


def test_it_steps_as_the_class_itself_does(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(optimizer=custom("NAdam"), grad_clip=0)
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


def test_a_rollback_restores_all_state(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(optimizer=custom("Lion"), rollbacks=1)
    saved: list[Any] = []
    admits = type(trainer.guard).admits

    def once(self: Any, step: int, *numbers: Any) -> bool:
        if step == 6 and not saved:
            saved.append(trainer.newest.training(trainer.optimizer.custom_layout()))
            raise Diverged("made up", step=step)
        if step == 5 and saved:  # the first step after the rollback
            found = trainer.state_dict()["tensors"]
            names = {name for name in found if name.startswith("optimizer/")}
            assert names
            assert all(torch.equal(found[name], saved[0][name]) for name in names)
            assert {group["k"] for group in trainer.optimizer.param_groups} == {4}
        return bool(admits(self, step, *numbers))

    monkeypatch.setattr(type(trainer.guard), "admits", once)
    assert trainer.fit().rollbacks == 1
    assert saved


CHANGES: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "another name": lambda t: t.update({"optimizer/norm.weight/evil": torch.zeros(32)}),
    "another shape": lambda t: t.update({"optimizer/norm.weight/mean": torch.zeros(31)}),
    "another type": lambda t: t.update({"optimizer/norm.weight/count": torch.tensor(1.0)}),
    "another weight": lambda t: t.update({"optimizer/x/mean": torch.zeros(32)}),
    "one missing": lambda t: t.pop("optimizer/norm.weight/mean"),
    "no state of a weight": lambda t: [t.pop(n) for n in list(t) if "/norm.weight/" in n],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_with_other_state_is_refused(change: str, make_trainer: MakeTrainer) -> None:
    first = stopped(make_trainer, 3, optimizer=custom("Lion"))
    saved = first.newest
    tensors = saved.training(first.optimizer.custom_layout())
    CHANGES[change](tensors)
    hostile = make_trainer("hostile", optimizer=custom("Lion"))
    hostile.checkpoints.save(3, saved.weights(), tensors, saved.state)
    with pytest.raises(Refused) as refusal:
        hostile.resume(hostile.newest)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("groups", [None, [], [{}], [{"k": 3, "d": "x"}] * 2, [{"lr": 1}] * 2, 7])
def test_other_group_values_are_refused(groups: Any, make_trainer: MakeTrainer) -> None:
    first = stopped(make_trainer, 3, optimizer=custom("Lion"))
    second = make_trainer("second", optimizer=custom("Lion"))
    saved: Checkpoint = first.newest
    saved.state["groups"] = groups
    with pytest.raises(Refused, match=r"param_groups|groups(\[0\])?=|the checkpoint.s groups"):
        second.resume(saved)


@pytest.mark.parametrize(
    ("make", "keys", "why"),
    [
        (NeedsClosure, {"lr": 1.0}, "closure"),
        (KeepsAList, {"lr": 1.0}, "keeps history for embed.weight, a list"),
        (Blocks, {"lr": 1.0}, "does not follow the weight's"),
        (lambda params: nn.Linear(2, 2), {}, "makes a Linear without param_groups"),
        (lambda model: torch.optim.SGD([model.embed.weight]), {}, "does not update each weight"),
    ],
)
def test_an_unusable_class_is_refused_before_training(
    make: Any, keys: dict[str, Any], why: str
) -> None:
    with pytest.raises((Refused, TypeError), match=why):
        measure("optimizer=x", make, keys, CONFIG, CPU)


def test_a_function_with_a_parameter_model_may_make_any_groups() -> None:
    model = GPT(**asdict(CONFIG))

    def make(model: nn.Module, lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": [p], "lr": lr / p.dim()} for p in model.parameters()])

    optimizer = custom_optimizer("optimizer=x", make, {"lr": 1.0}, model)
    assert {group["base_lr"] for group in optimizer.param_groups} == {0.5, 1.0}
    keys = {"lr": 1.0, "weight_decay": 0.1, "betas": [0.9, 0.95]}
    assert type(custom_optimizer("optimizer=x", ours, keys, model)) is Optimizer


LARGER = GPTConfig(
    n_layer=3, n_embed=96, n_head=3, head_size=32, n_kv_head=1, block_size=32, vocab_size=600,
    smear=2, residual_scalars=True, qk_norm=True, tie_embeddings=False,
).resolve()  # fmt: skip


@functools.cache
def measured(name: str, foreach: bool = False) -> CustomState:
    return measure(name, *CLASSES[name], LARGER, CPU, foreach)


# With foreach, torch's classes update all weights at once, as they do on a GPU.
@pytest.mark.parametrize(
    ("name", "foreach"), [(name, False) for name in CLASSES] + [("SGD", True), ("NAdam", True)]
)
def test_state_and_peak_memory_are_predicted_for_a_network_of_any_size(
    name: str, foreach: bool
) -> None:
    make, keys = CLASSES[name]
    state = measured(name, foreach)
    setup = Setup(LARGER, name, state, batch_size=1, micro_batch=1)
    predicted = max(sum(lines.values()) for lines in training_step(setup).values())
    model = GPT(**asdict(LARGER))
    inner = build_custom(make, keys | ({"foreach": True} if foreach else {}), model)
    optimizer = CustomOptimizer(name, inner, model, state)
    tokens = torch.randint(600, (1, LARGER.block_size))
    update = Update(model, optimizer, Precision("fp32", CPU), 1.0)

    def step() -> None:
        update.backward(model(tokens, tokens, reduction="sum") / tokens.numel())
        update.norm()
        update.step()
        update.drop()

    for _ in range(5):  # until the state is complete
        step()
    tensors = {
        name: [value for value in inner.state[p].values() if isinstance(value, torch.Tensor)]
        for name, p in model.named_parameters()
    }
    for weight, p in model.named_parameters():
        assert state.bytes(weight, tuple(p.shape)) == sum(t.nbytes for t in tensors[weight])
    tracker = memory_tracker()
    tracker.track_external(model, tokens, *(t for ts in tensors.values() for t in ts))
    with tracker:
        step()
    error = predicted / int(tracker.get_tracker_snapshot("peak")[CPU]["Total"]) - 1
    assert -0.02 <= error <= 0.03, f"{error:+.2%}"


def test_measuring_changes_no_random_number() -> None:
    before = torch.get_rng_state()
    measure("x", *CLASSES["Lion"], small(LARGER, 1, {}), CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_is_resumed_only_with_the_class_of_its_start(make_trainer: MakeTrainer) -> None:
    first = stopped(make_trainer, 3, optimizer=custom("SGD"))
    for other in ("NAdam", "Lion"):
        with pytest.raises(Refused):
            resumed(make_trainer, first, optimizer=custom(other))
