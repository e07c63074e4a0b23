"""The folder of a dataset: prepared once, published whole, and used again."""

import contextlib
import json
from pathlib import Path
from typing import Any

from llm.data.assets import sha256
from llm.data.config import WITH_TEMPLATE, DataConfig
from llm.data.conversation_writing import write_conversations
from llm.data.corpus import Corpus, expanded, read_corpus
from llm.data.dataset import Dataset
from llm.data.meta import OTHER, Meta, read_meta
from llm.data.template import read_template
from llm.data.tokenizer import name_in_meta
from llm.data.writing import Progress, write_dataset
from llm.disk import published
from llm.errors import DiskError, Refused, as_stop, reason_for, require
from llm.lock import locked
from llm.options import validate


def prepare(config: DataConfig, on_progress: Progress = lambda done, total: None) -> Path:
    """The folder of the dataset that ``config`` describes, prepared unless it exists.

    Processes that prepare the same folder wait for each other. Raises :class:`llm.errors.Refused`
    for text that cannot be used and for a folder that was prepared from something else, and leaves
    nothing behind.
    """
    validate(config, "data.")
    corpus = read_corpus(config.corpus, config.path)
    made_from = _made_from(config, corpus)
    folder, created = _folder(config, made_from), list[Path]()
    try:
        if _is_ready(folder, config, made_from):
            return folder
        created += [parent for parent in folder.parents if not parent.exists()]  # innermost first
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent, wait=True):
            # Another process may have prepared it meanwhile.
            if not _is_ready(folder, config, made_from):
                with published(folder) as temporary:
                    _write(temporary, config, corpus, made_from, on_progress)
    except OSError as error:
        stop = DiskError if isinstance(as_stop(error), DiskError) else Refused
        place, verb = Path(error.filename or folder), "used"
        if place in (folder, *folder.parents) or folder.name in place.name:
            place, verb = folder, "written"
        raise stop(f"{place} cannot be {verb}: {reason_for(place, error)}") from None
    finally:
        for parent in created:
            with contextlib.suppress(OSError):  # not empty, or already gone
                parent.rmdir()
    return folder


def prepared(config: DataConfig) -> Meta | None:
    """``meta.json`` of the dataset that ``config`` describes; None unless it is prepared.

    The text is hashed, but nothing is downloaded or written.
    """
    try:
        folder, is_ready = ready(config)
        return read_meta(folder) if is_ready else None
    except Refused:  # no such text, or other data in the folder
        return None


def ready(config: DataConfig) -> tuple[Path, bool]:
    """The folder that :func:`prepare` would return, and whether it can be used as it is.

    Writes nothing. Raises :class:`llm.errors.Refused` as :func:`prepare` does before it writes.
    """
    made_from = _made_from(config, read_corpus(config.corpus, config.path))
    folder = _folder(config, made_from)
    return folder, _is_ready(folder, config, made_from)


def folder_of(config: DataConfig) -> Path:
    """``dir/name``; for ``text``, ``dir/name-DIGEST`` of the text and its options."""
    return _folder(config, _made_from(config, read_corpus(config.corpus, config.path)))


def _folder(config: DataConfig, made_from: dict[str, Any]) -> Path:
    if config.corpus not in ("text", *WITH_TEMPLATE):
        return expanded(config.dir) / config.name
    digest = sha256(json.dumps(made_from, sort_keys=True).encode())
    return expanded(config.dir) / f"{config.name}-{digest[:12]}"


def _made_from(config: DataConfig, corpus: Corpus) -> dict[str, Any]:
    """Everything that decides the contents of the folder, for ``meta.json``."""
    made_from = {
        "corpus": config.corpus,
        "source_sha256": corpus.sha256,
        "tokenizer": name_in_meta(str(config.tokenizer)),
        "val_fraction": config.val_fraction,
        "allow_special": config.allow_special,
    }
    if config.test_fraction is not None:  # folders without a test split keep their names
        made_from["test_fraction"] = config.test_fraction
    if config.template is not None:
        template = json.dumps(read_template(config.template).plain(), sort_keys=True)
        made_from["template"] = sha256(template.encode())
    if config.mix_path is not None:
        try:
            made_from["mix_sha256"] = read_corpus("text", config.mix_path).sha256
        except Refused as refusal:
            raise Refused(str(refusal).replace("data.path=", "data.mix_path=")) from None
    return made_from


def _is_ready(folder: Path, config: DataConfig, made_from: dict[str, Any]) -> bool:
    """Whether the folder can be used as it is; False: it must be written.

    Raises :class:`llm.errors.Refused` for another dataset unless ``config.overwrite``.
    """
    if not folder.exists():
        return False
    try:
        _require_made_from(folder, made_from, config.vocab_size)
        if config.overwrite:  # also replaces a damaged folder
            Dataset.open(folder).verify()
    except Refused:
        if config.overwrite:
            return False
        raise
    return True


def _require_made_from(folder: Path, made_from: dict[str, Any], vocab_size: int | None) -> None:
    meta = read_meta(folder)
    saved = meta.made_from | {"vocab_size": meta.vocab_size}
    wanted = {"test_fraction": None} | made_from | {"vocab_size": vocab_size or meta.vocab_size}
    differing = [key for key in wanted if saved.get(key) != wanted[key]]
    was = ", ".join(_typed(key, saved.get(key)) for key in differing)
    asked = ", ".join(_typed(key, wanted[key]) for key in differing)
    require(
        not differing,
        f"{folder} was prepared with {was}, but the config says {asked}: {OTHER}",
    )


def _typed(key: str, value: object) -> str:
    return f"{key}={'null' if value is None else value}"


def _write(
    folder: Path, config: DataConfig, corpus: Corpus, made_from: dict[str, Any],
    on_progress: Progress,
) -> None:  # fmt: skip
    try:
        write = write_conversations if config.corpus in WITH_TEMPLATE else write_dataset
        write(folder, config, corpus, made_from, on_progress)
    except Refused:
        _require_unchanged(config, corpus)  # the change may be the cause
        raise
    _require_unchanged(config, corpus)


def _require_unchanged(config: DataConfig, corpus: Corpus) -> None:
    try:
        same = read_corpus(config.corpus, config.path).sha256 == corpus.sha256
    except Refused:  # deleted, or no longer text
        same = False
    require(
        same,
        f"data.path={config.path} changed while it was read: try again once nothing writes to it",
    )
