"""``run.dry_run=true`` of a single run: its plan, its data and its folder; nothing is written."""

from pathlib import Path

from llm.answer import answer
from llm.commands import typed_command
from llm.data.conversation_dataset import ConversationDataset
from llm.data.dataset import Dataset
from llm.data.prepare import ready
from llm.data.tokenizer import Tokenizer
from llm.experiment.console import duration, panel, say, status
from llm.experiment.ledger import show_already_run
from llm.experiment.rundir import CONFIG, require_run_files
from llm.experiment.tail import number
from llm.experiment.watch import Forecast, Rates
from llm.interchange.source import open_source, require_tokenizer
from llm.planning.custom_optimizer import try_custom_classes
from llm.planning.forecast import forecast, plan_of
from llm.planning.guess import guessed_seconds
from llm.planning.plain import plain_plan
from llm.planning.plan import Plan
from llm.planning.reserve import planned_device
from llm.planning.setup import vocabulary
from llm.planning.tables import optimizer_in_words, show_plan
from llm.settings.earlier import (
    FINISHED,
    NEW,
    UNFINISHED,
    UNVERIFIED,
    Earlier,
    earlier_run,
    named_folder,
    newest_manifest,
    possible_digests,
    prepared_data,
    refuse_failed,
)
from llm.settings.saved import load_plain
from llm.settings.schema import TrainSettings
from llm.signals import delayed
from llm.units import minutes, plural

FINDINGS = {
    NEW: "new",
    FINISHED: "finished already: nothing would be trained",
    UNVERIFIED: "finished, perhaps on other data: the run would compare it",
}


def show_dry_run(settings: TrainSettings) -> None:
    """Show what a run would do.

    Raises :class:`llm.errors.Refused` with the message of the run itself where that is refused
    before it trains. Torch is imported only where the message depends on this machine.
    """
    plan = _plan(settings)  # in the order of the run, so that the first mistake is the same
    dataset, (data, is_ready) = None, ready(settings.data)
    if is_ready and plan is not None:
        model, dataset = plan.setup.model, Dataset.open(data)
        dataset.check(model.block_size, model.vocab_size or 0)
    folder, earlier = _earlier(settings, dataset.tokenizer if dataset else None)
    if plan is not None:
        show_plan(plan, optimizer_in_words(settings))
    facts = _facts(settings, earlier)
    facts["data"] = f"{data}" if is_ready else f"would be prepared in {data}"
    if isinstance(dataset, ConversationDataset):
        facts["conversations"] = dataset.lengths
    if not (settings.resume or settings.trainer.eval_only or earlier.is_finished):
        show_already_run([*possible_digests(settings, prepared_data(settings))], folder)
    facts["run folder"] = "outputs/<date>/<time>: new"
    if folder is not None:
        newest = newest_manifest(folder)
        continues = f"would continue at step {newest.step if newest else 0:,}"
        is_replaced = settings.run.retry == "all" and earlier.state != NEW
        finding = "would be replaced" if is_replaced else FINDINGS.get(earlier.state, continues)
        facts["run folder"] = f"{folder}: {finding}"
    panel("dry run", facts)
    answer(
        plan=None if plan is None else plain_plan(plan),
        data=data if is_ready else None,
        folder=folder,
        state="anew" if settings.run.retry == "all" and earlier.state != NEW else earlier.state,
    )
    say(f"nothing was started; to run it: {typed_command(without=['run.dry_run='])}")


def _plan(settings: TrainSettings) -> Plan | None:
    """The plan of the run; None if its vocabulary is unknown before its text is read."""
    if vocabulary(settings) is None:
        return None
    trainer, memory = settings.trainer, settings.memory
    if not (memory.is_enforced or trainer.compile or trainer.device not in ("auto", "cpu")):
        try_custom_classes([settings])
        return plan_of(settings)
    with status("loading torch"), delayed():  # to measure the reserve, and to find the device
        from llm.device import select_device
        from llm.planning.fitting import fit_memory
    return fit_memory(settings, select_device(trainer.device, compiles=trainer.compile))[1]


def _earlier(settings: TrainSettings, tokenizer: Tokenizer | None) -> tuple[Path | None, Earlier]:
    """The run's folder, if it is named, and what it holds. ``tokenizer``: of the prepared data."""
    folder, retry = named_folder(settings), settings.run.retry
    is_new = folder is None or not (folder / CONFIG).exists()
    if settings.init_from is not None and (is_new or retry == "all"):
        source = open_source("init_from", settings.init_from)  # refuses missing weights
        if tokenizer is not None:
            require_tokenizer(source.place, source.tokenizer, tokenizer.kind, tokenizer)
    if folder is None:
        return None, Earlier(NEW)
    if retry == "all" and not is_new:
        load_plain(folder)
        require_run_files(folder)
        return folder, Earlier(UNFINISHED)
    earlier = earlier_run(settings, folder, prepared_data(settings))
    if retry == "none" and not settings.resume and not earlier.is_finished:
        refuse_failed(folder)
    return folder, earlier


def _facts(settings: TrainSettings, earlier: Earlier) -> dict[str, str]:
    known = forecast(settings)
    if known is None:
        return {"plan": "the vocabulary is unknown before the text is read"}
    facts = {}
    answer(tokens=known.tokens, max_steps=known.max_steps, max_minutes=known.minutes)
    if known.tokens is not None:
        facts["training"] = f"{known.tokens:,} tokens in {plural(known.max_steps or 0, 'step')}"
    if known.minutes is not None:
        limit = minutes(known.minutes)
        facts["training"] = f"{facts['training']}, at most {limit}" if facts else limit
    if not earlier.is_finished:
        speed = number(earlier.summary, "tokens_per_second")
        rates = Rates([(known.flops_per_token, known.flops_per_token * speed)] if speed else ())
        seconds = rates.train_seconds(known, number(earlier.summary, "tokens") or 0)
        answer(seconds=seconds)
        facts["time"] = _guess(settings, known) if seconds is None else duration(seconds)
    return facts


def _guess(settings: TrainSettings, known: Forecast) -> str:
    guess, is_fp32 = None, settings.precision.name in ("auto", "fp32")
    if is_fp32 and planned_device(settings.trainer.device) == "cpu":
        guess = guessed_seconds(known)
    if guess is None:
        return "known after the first steps"
    least, most = map(duration, guess)
    return f"a guess: {least} to {most}; known after the first steps"
