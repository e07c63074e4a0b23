"""The networks that ``run_eval.py`` evaluates: one network, or all finished runs of a folder."""

import os
from contextlib import suppress
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

from llm.checkpoint.checkpoint import Checkpoint
from llm.checkpoint.find import FOLDER, MANIFEST, WEIGHTS, without_link
from llm.data.config import DataConfig
from llm.data.corpus import expanded
from llm.data.dataset import Dataset
from llm.data.meta import META, read_meta
from llm.device import select_device
from llm.errors import Refused, require
from llm.experiment.console import count_progress
from llm.experiment.rundir import CONFIG
from llm.interchange import peft
from llm.interchange.files import FileSource
from llm.interchange.source import FORMATS, CheckpointSource, Source, load_model, open_source
from llm.model.gpt import GPT
from llm.options import from_plain
from llm.report.runs import find_runs
from llm.report.testing import open_prepared
from llm.sealed import Plain
from llm.settings.saved import load_plain


@dataclass
class Subject:
    """A network to evaluate, and its results so far, by the names of their tasks."""

    place: str
    source: Source
    run: Path | None = None  # the folder of its run, if there is one
    checkpoint: str = ""  # in that folder: checkpoints/best-00000400
    results: Plain = field(default_factory=dict)
    reason: str | None = None  # why it has no results

    def as_plain(self) -> Plain:
        """The answer for ``json=true``."""
        return {
            "place": self.place, "folder": self.run, "checkpoint": self.checkpoint or None,
            "reason": self.reason, "tasks": self.results,
        }  # fmt: skip

    def load(self, device_name: str) -> GPT:
        """The network in evaluation mode."""
        return load_model(self.source, select_device(device_name, key="device"))

    def bytes_on_disk(self) -> int:
        """The size of the files with the weights; adapters count together with their base."""
        return sum(path.stat().st_size for path in _weight_files(self.source))

    def dataset(self) -> Dataset:
        """The data that the run was trained on; :class:`llm.errors.Refused` if it has changed."""
        require(
            self.run is not None,
            f"{self.place} is not a run of this program, so its data is unknown: give "
            "data_path=FILE.txt",
            key="data_path",
        )
        assert self.run is not None
        plain, where = load_plain(self.run), f"{self.run / CONFIG}: data."
        config = from_plain(DataConfig, plain.get("data"), where)
        expected = Checkpoint.open(self.run / self.checkpoint).identity.get("data_digest")
        try:
            dataset = open_prepared(*astuple(replace(config, overwrite=False)))
            why = f"{dataset.folder} has changed since {self.run} was trained on it"
        except Refused as refusal:
            dataset, why = None, str(refusal)
        if dataset is None or dataset.digest != expected:
            raise self._without_data(config, expected, why)
        return dataset

    def _without_data(self, config: DataConfig, digest: object, why: str) -> Refused:
        """The error for data that is not at hand, with the folder that still has it, if any."""
        assert self.run is not None
        data, above = expanded(config.dir), self.run.resolve().parents[:3]
        for folder in dict.fromkeys([data, *(above_it / data for above_it in above)]):
            for meta in sorted(folder.glob(f"*/{META}")):
                with suppress(Refused, OSError):
                    if read_meta(meta.parent).digest() == digest:
                        return Refused(
                            f"{why}, and {meta.parent} still has the data that {self.run} was "
                            f"trained on: give data_path={meta.parent}",
                            key="data_path", suggestions=[f"data_path={meta.parent}"],
                        )  # fmt: skip
        if config.path is not None:
            why += f" (data.path is in {self.run / CONFIG})"
        typed = (expanded(path) for path in (config.path, config.dir) if path)
        if all(path.is_absolute() or path.exists() for path in typed):
            why += "; to evaluate on other data, give"
        else:
            why += ": start the command in the folder where the run was started, or give"
        return Refused(f"{why} data_path=FOLDER_OR_FILE.txt", key="data_path")


def find_subjects(ckpt: str) -> list[Subject]:
    """The network that ``ckpt`` names, or the networks of all finished runs in a folder of runs.

    Raises :class:`llm.errors.Refused` if ``ckpt`` has no network.
    """
    path = Path(ckpt)
    below = ("", FOLDER, f"{FOLDER}/best", f"{FOLDER}/last", "best", "last")
    is_one = not path.is_dir() or any(
        os.path.exists(path / place / name) for place in below for name in (MANIFEST, *FORMATS)
    )
    if is_one or not any(one.is_dir() for one in path.iterdir()):
        return [_subject(ckpt)]
    with count_progress("reading runs") as on_progress:
        records = find_runs([path], on_progress)
    finished = [record for record in records if record.is_finished and record.best_checkpoint]
    require(finished, f"ckpt={ckpt} has no finished run with a checkpoint", key="ckpt")
    return [_subject(record.folder) for record in finished]


def _weight_files(source: Source) -> list[Path]:
    if isinstance(source, FileSource):
        return list(source.files)
    if isinstance(source, peft.PeftSource):
        return [source.path / peft.WEIGHTS, *_weight_files(source.base)]
    assert isinstance(source, CheckpointSource)
    base = source.manifest.base
    below = [] if base is None else _weight_files(open_source("ckpt", base.init_from))
    return [source.path / WEIGHTS, *below]


def _subject(place: str) -> Subject:
    source = open_source("ckpt", place)
    if source.kind != "checkpoint":
        return Subject(place, source)
    path = without_link(source.path)  # `best` is a link
    run = path.parent.parent
    if path.parent.name != FOLDER or not (run / CONFIG).is_file():
        return Subject(place, source)
    return Subject(place, source, run, f"{FOLDER}/{path.name}")
