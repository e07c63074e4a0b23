"""What is known about the jobs of a sweep before they start, without torch."""

from collections.abc import Iterable

from llm.experiment.watch import Forecast
from llm.memory.weights import flops_per_token, n_parameters
from llm.planning.plan import Plan
from llm.planning.reserve import planned_device, unchecked_limits
from llm.planning.setup import setup_of, vocabulary
from llm.settings.schema import TrainSettings


def forecast(settings: TrainSettings) -> Forecast | None:
    """The forecast of one run; None if its vocabulary is unknown before its text is read."""
    return forecasts([settings])[0]


def forecasts(runs: Iterable[TrainSettings]) -> list[Forecast | None]:
    """The forecast of each run. Runs with the same network and memory share one prediction.

    On a CPU the reserve is assumed, so whether a run fits is a guess; under ``memory.fit=check``
    and ``auto`` the run measures it and decides. Imports torch only for a custom optimizer.
    """
    known: dict[str, Forecast | None] = {}
    found = []
    for settings in runs:
        key = repr(_inputs(settings))
        if key not in known:
            known[key] = _forecast(settings)
        found.append(known[key])
    return found


def _inputs(settings: TrainSettings) -> tuple[object, ...]:
    """All settings that a forecast depends on: not the seed or the learning rate."""
    trainer, optimizer = settings.trainer, settings.optimizer
    return (
        settings.model, settings.data, settings.finetune, settings.init_from,
        getattr(optimizer, "state_bits", optimizer),
        getattr(optimizer, "name", ""), settings.precision, settings.memory,
        trainer.max_steps, trainer.max_minutes, trainer.batch_size, trainer.micro_batch_size,
        trainer.activation_checkpointing, trainer.step_in_backward, trainer.compile,
        trainer.device, trainer.eval_only, trainer.sample_interval is None,
    )  # fmt: skip


def _forecast(settings: TrainSettings) -> Forecast | None:
    if vocabulary(settings) is None:
        return None
    plan, trainer = plan_of(settings), settings.trainer
    model, steps = plan.setup.model, 0 if trainer.eval_only else trainer.max_steps
    return Forecast(
        parameters=n_parameters(model),
        max_steps=steps,
        tokens=None if steps is None else steps * trainer.batch_size * model.block_size,
        minutes=trainer.max_minutes,
        flops_per_token=flops_per_token(model, plan.setup.finetune),
        peak=plan.taken.total,
        budget=plan.budget,
        fits=plan.started is not None,
    )


def plan_of(settings: TrainSettings) -> Plan:
    """The plan of a run that is not resumed; the reserve may take the whole budget."""
    device = settings.trainer.device
    reserve, budget = unchecked_limits(settings.memory, device)
    setup = setup_of(settings, planned_device(device))
    return Plan(setup, reserve, budget, settings.memory, device=device)
