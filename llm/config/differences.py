"""Whether a run folder holds the run that is asked for, or another one."""

from pathlib import Path

from llm.config.schema import TrainSettings
from llm.config.settings import identity, load_plain, resolve, to_plain
from llm.errors import Refused
from llm.sealed import Plain

# May differ from the folder's on an explicit resume=: to go on further, or after a divergence.
EXTENDABLE = {"trainer.max_steps", "trainer.skip_spikes", "trainer.rollbacks"}


def refuse_differences(
    folder: Path, mine: Plain, theirs: Plain, resumed: bool, init_from: tuple[object, object]
) -> None:
    """Raise :class:`llm.errors.Refused` naming what differs between two :func:`identity`.

    ``init_from`` are the paths in the folder and in the settings, for the message: the same weights
    may have two paths.
    """
    allowed = EXTENDABLE if resumed else set()
    keys = [
        key for key in {**theirs, **mine} if theirs.get(key) != mine.get(key) and key not in allowed
    ]
    if keys:
        said = {key: f"{key} was {theirs.get(key)}, now {mine.get(key)}" for key in keys}
        if "data_digest" in said:  # two digests tell nobody anything
            said["data_digest"] = "the text of its data, or the tokens made of it, are not the same"
        if "init_from" in said:
            was, now = init_from
            said["init_from"] = f"init_from was {was}, now {now}, and its weights are not the same"
        listed = ", ".join(said.values())
        raise Refused(
            f"{folder} holds another run ({listed}): take another run.name, the same settings, or "
            f"go on with more steps by resume={folder} trainer.max_steps=MORE"
        )


def refuse_plan_of_another_run(settings: TrainSettings, vocab_size: int) -> None:
    """Refuse what ``run_train.py`` would refuse to continue from ``settings.resume``.

    This is done without torch, so the text and the weights of ``init_from`` are not compared.
    """
    folder = Path(str(settings.resume))
    saved = load_plain(folder)
    precision = settings.precision.name
    if precision == "auto":
        precision = str((saved.get("precision") or {}).get("name"))
    same = {"init_from": None}
    mine = identity(to_plain(resolve(settings, vocab_size, precision)) | same, "")
    refuse_differences(folder, mine, identity(saved | same, ""), True, (None, None))
