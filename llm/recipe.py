"""One training run, from its settings to its last panel. Read it after ``run_train.py``.

The loop is in :mod:`llm.training.trainer`. ``run_train.py`` and :mod:`llm.api` call :func:`train`.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from llm.answer import answer
from llm.checkpoint.checkpoint import Checkpoint, without_memory
from llm.checkpoint.find import Base
from llm.checkpoint.folder import CheckpointFolder
from llm.data.dataset import LARGE, Dataset
from llm.data.prepare import prepare
from llm.device import restored_limit, select_device, set_deterministic, tune_allocator
from llm.experiment.console import byte_progress, status, warn
from llm.experiment.ledger import show_already_run
from llm.experiment.loggers import open_logger
from llm.experiment.panels import show_already_finished, show_end, show_start
from llm.experiment.rundir import read_summary, recording
from llm.interchange.adapters import base_of
from llm.interchange.source import CheckpointSource, Source, introduction, open_source, start_from
from llm.model.config import GPTConfig
from llm.model.gpt import GPT
from llm.model.lora import adapt
from llm.planning.fitting import fit_memory, retry_with_smaller_micro_batch
from llm.planning.plan import Plan
from llm.planning.setup import saves_memory, vocabulary
from llm.settings.build import build, custom_logger, logger_options
from llm.settings.identity import longer
from llm.settings.run import Run, open_run
from llm.settings.saved import to_plain
from llm.settings.schema import TrainSettings
from llm.training.precision import Precision, resolve_precision, slow_products, to_precision
from llm.training.random_state import seed_everything


@restored_limit()
def train(settings: TrainSettings) -> Path:
    """Train one run, or continue it; returns its folder, which then holds ``summary.json``.

    Raises :class:`llm.errors.Refused` before anything is written, and another
    :class:`llm.errors.Stop` if the run ends early.
    """
    tune_allocator(settings.model.n_embed, saves_memory(settings), settings.finetune.has_adapters)
    device = select_device(settings.trainer.device, compiles=settings.trainer.compile)
    set_deterministic(settings.trainer.deterministic)
    if vocabulary(settings) is None:  # the size follows from the characters of the user's text
        with byte_progress(f"preparing {settings.data.name}") as on_progress:
            prepare(settings.data, on_progress)
    settings, plan = fit_memory(settings, device)  # refuses a run that would not fit
    with byte_progress(f"preparing {settings.data.name}") as on_progress:
        dataset = Dataset.open(prepare(settings.data, on_progress)).mixed(settings.data.mix)
    if dataset.size <= LARGE:
        with status(f"checking {dataset.folder}"):  # run_prepare.py verifies a larger one
            dataset.verify()
    precision, why = resolve_precision(settings.precision.name, device)
    settings = settings.resolve(dataset.tokenizer.vocab_size, precision)
    dataset.check(settings.model.block_size, settings.model.vocab_size or 0)

    def attempt(settings: TrainSettings, plan: Plan) -> Path:
        with open_run(settings, dataset.digest) as run:  # from here on files are written
            try:
                if run.is_finished:
                    more = longer(settings.trainer.max_steps)
                    show_already_finished(run.folder, run.reason, more)
                else:
                    if not (settings.resume or settings.trainer.eval_only):
                        show_already_run([run.identity["config_digest"]], run.folder)
                    fit(settings, run, dataset, device, f"{precision}, {why}", plan)
            finally:
                if run.folder.exists():  # a run that was refused has deleted its folder
                    answer(folder=run.folder, **(read_summary(run.folder) or {}))
            return run.folder

    return retry_with_smaller_micro_batch(settings, plan, attempt)


def _context(model: GPTConfig, checkpoint: Checkpoint | None, origin: Source | None) -> int | None:
    """Tokens that the weights of ``init_from`` were made for, if more than the windows of this run;
    None with learned positions, which the windows determine.
    """
    known = checkpoint.context if origin is None and checkpoint else origin and origin.context
    return known if known and known > model.block_size and model.position == "rotary" else None


@dataclass(frozen=True)
class _Network:
    """The network of a run, and the places of its weights."""

    model: GPT
    origin: Source | None  # the weights of init_from; None if the run continues without them
    base: Base | None  # of a run that trains a part
    evaluated: Checkpoint | None  # the one that trainer.eval_only evaluates, if it is init_from


def _network(
    settings: TrainSettings, run: Run, dataset: Dataset, precision: Precision, device: torch.device
) -> _Network:
    """The network on ``device``: new, or with the weights of ``init_from``, and with adapters.

    The weights of ``run.checkpoint`` are loaded later, except the base of its adapters.
    """
    origin, tuned = None, settings.finetune
    if settings.init_from and run.checkpoint is None:
        origin = open_source("init_from", settings.init_from)
        for note in introduction(origin)[1:]:
            warn(note)
    elif run.checkpoint is not None and run.checkpoint.base is not None:
        origin = base_of(run.checkpoint, settings.init_from)
    evaluated: Checkpoint | None = None
    if settings.trainer.eval_only and isinstance(origin, CheckpointSource):
        evaluated = Checkpoint.open(origin.path)
    # Merging would round what is evaluated: adapters are put beside their own base instead.
    part = evaluated if evaluated and evaluated.finetune == tuned else None
    with without_memory() if origin else nullcontext():
        model = to_precision(build(settings.model), precision.weights)
    if origin is not None:
        start_from(model, base_of(part) if part else origin, dataset.tokenizer, tuned)
    model = model.to(device)
    base: Base | None = None
    if tuned.is_partial and origin is not None:
        adapt(model, tuned)
        base = Base(origin.place, origin.digest())
    if part is not None:
        part.load_into(model)
    return _Network(model, origin, base, evaluated)


def fit(
    settings: TrainSettings, run: Run, dataset: Dataset, device: torch.device, why: str, plan: Plan
) -> None:
    """Build all parts of one run, and train. ``why``: the precision and its reason."""
    alone = run.is_new and not settings.run.sweep
    facts = run.identity | run.labels | plan.facts
    with recording(run.folder, facts, run.again, alone, settings.memory.advice) as summary:
        notes = [*run.notes, *dataset.notes, *dataset.notes_on(settings.model.block_size)]
        for note in [*notes, *slow_products(settings.precision.name, device)]:
            warn(note)
        seed_everything(settings.seed)
        precision = Precision(settings.precision.name, device)
        network = _network(settings, run, dataset, precision, device)
        model, origin, base = network.model, network.origin, network.base
        finetune = settings.finetune if base else None
        sweep = run.folder.parent if settings.run.sweep else None
        own = custom_logger(settings.logger)
        options, max_steps = settings.trainer, settings.trainer.max_steps
        checkpoints = CheckpointFolder(
            run.folder, options.keep_last, model.config, dataset.tokenizer, run.identity,
            dataset.template, finetune, base, _context(model.config, run.checkpoint, origin),
        )  # fmt: skip
        with open_logger(
            run.folder, run.checkpoint, logger_options(settings), to_plain(settings), max_steps,
            sweep, own,
        ) as logger:  # fmt: skip
            trainer = build(
                options, model=model, dataset=dataset, precision=precision, logger=logger,
                optimizer=build(settings.optimizer, model=model), checkpoints=checkpoints,
                schedule=build(settings.schedule), seed=settings.seed,
                pretrained=settings.init_from is not None,
            )  # fmt: skip
            if run.checkpoint is not None:
                trainer.resume(run.checkpoint)
            elif network.evaluated is not None:
                trainer.progress.take_counts(network.evaluated)
            trainer.check_room()
            place = introduction(origin)[0] if origin else None
            show_start(run.folder, trainer, dataset, why, plan.sentence, settings.run.note, place)
            try:
                with logger:
                    trainer.fit()
            finally:
                summary |= trainer.outcome()
    show_end(run.folder, trainer.progress, summary, is_chat=bool(dataset.template))
