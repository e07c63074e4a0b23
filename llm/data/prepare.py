"""Text -> ``train.bin``, ``val.bin`` and ``meta.json`` in one folder, written elsewhere first and
renamed.

The text is read twice, in pieces: once to check it, count its characters and collect the
vocabulary, once to tokenize it. Memory does not grow with its size.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llm.data.assets import sha256
from llm.data.config import DataConfig
from llm.data.corpus import (
    LEAVE_ALONE,
    Corpus,
    expanded,
    read_corpus,
    source_digest,
    text_files,
)  # fmt: skip
from llm.data.dataset import Dataset
from llm.data.meta import FORMAT_VERSION, SPLITS, read_meta, write_meta
from llm.data.tokenizer import build_tokenizer
from llm.data.writing import TokenWriter, after_mark, whole_marks
from llm.disk import sync_folder
from llm.errors import DiskError, Refused, as_stop, require
from llm.options import validate

Progress = Callable[[int, int], None]  # called with (bytes done, bytes in all)


def prepare(config: DataConfig, on_progress: Progress = lambda done, total: None) -> Path:
    """The folder of the dataset that ``config`` describes, prepared now if it is not there yet.

    Processes that ask for the same folder wait for each other. Raises :class:`llm.errors.Refused`
    for text that cannot be used, and for a folder that was prepared from something else; nothing is
    left behind then.
    """
    validate(config, "data.")
    made_from = _made_from(config)
    folder, created = folder_of(config, made_from), list[Path]()
    try:
        if _is_ready(folder, config, made_from):
            return folder
        created += [parent for parent in folder.parents if not parent.exists()]  # innermost first
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.parent):
            # Another process may have done it meanwhile.
            if not _is_ready(folder, config, made_from):
                _prepare_into(folder, config, made_from, on_progress)
    except OSError as error:
        stop = DiskError if isinstance(as_stop(error), DiskError) else Refused
        where = f" ({error.filename})" if error.filename else ""
        raise stop(f"{folder} cannot be written: {error.strerror}{where}") from None
    finally:
        for parent in created:
            with contextlib.suppress(OSError):  # it is not empty, or already gone
                parent.rmdir()
    return folder


def folder_of(config: DataConfig, made_from: dict[str, Any] | None = None) -> Path:
    """``dir/name``; for text of your own with a digest of the text and of how it is tokenized."""
    if config.corpus != "text":
        return expanded(config.dir) / config.name
    digest = sha256(json.dumps(made_from or _made_from(config), sort_keys=True).encode())
    return expanded(config.dir) / f"{config.name}-{digest[:12]}"


def _made_from(config: DataConfig) -> dict[str, Any]:
    """What decides the contents of the folder; saved in ``meta.json`` and compared with it."""
    return {
        "corpus": config.corpus,
        "source_sha256": source_digest(config.corpus, config.path),
        "tokenizer": config.tokenizer,
        "val_fraction": config.val_fraction,
        "allow_special": config.allow_special,
    }


def _is_ready(folder: Path, config: DataConfig, made_from: dict[str, Any]) -> bool:
    if not folder.exists():
        return False
    try:
        meta = read_meta(folder)
    except Refused:
        if config.overwrite:
            return False
        raise
    saved = meta["made_from"] | {"vocab_size": meta["vocab_size"]}
    declared = {"vocab_size": config.vocab_size} if config.vocab_size is not None else {}
    wanted = made_from | declared
    keys = [key for key in wanted if key not in saved or saved[key] != wanted[key]]
    if config.overwrite:
        return not keys and meta["format_version"] == FORMAT_VERSION and _is_intact(folder)
    if not keys:
        return True  # Dataset.open checks whether its files are whole
    if keys == ["source_sha256"]:  # two digests would tell a person nothing
        raise Refused(
            f"{folder} was prepared from another text than data.corpus={config.corpus} is now: "
            "take another data.name, or replace it with data.overwrite=true"
        )
    keys = [key for key in keys if key != "source_sha256"]
    was = ", ".join(f"{key}={saved.get(key)}" for key in keys)
    want = ", ".join(f"{key}={wanted[key]}" for key in keys)
    raise Refused(
        f"{folder} was prepared with {was}, but the config says {want}: "
        "take another data.name, or replace it with data.overwrite=true"
    )


def _is_intact(folder: Path) -> bool:
    try:
        Dataset.open(folder).verify()
    except Refused:
        return False
    return True


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the folder against other processes; the system lets go of it when a process dies."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _prepare_into(
    folder: Path, config: DataConfig, made_from: dict[str, Any], on_progress: Progress
) -> None:
    temporary, replaced = (folder.with_name(f".{folder.name}.{part}") for part in ("new", "old"))
    for stale in (temporary, replaced):  # of a process that died; the lock keeps others out
        shutil.rmtree(stale, ignore_errors=True)
    temporary.mkdir()
    try:
        _write(temporary, config, made_from, on_progress)
        sync_folder(temporary)
        if folder.exists():
            folder.rename(replaced)
        temporary.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _write(
    folder: Path, config: DataConfig, made_from: dict[str, Any], on_progress: Progress
) -> None:
    corpus = read_corpus(config.corpus, config.path)
    require(corpus.sha256 == made_from["source_sha256"], _changed(config))
    total = 2 * corpus.size()
    done = 0

    def read(piece: str) -> None:
        nonlocal done
        done += len(piece.encode())
        on_progress(done, total)

    characters, alphabet = _survey(corpus, read)
    tokenizer = build_tokenizer(config.tokenizer, alphabet)
    require(
        config.vocab_size in (None, tokenizer.vocab_size),
        f"data.vocab_size={config.vocab_size}, but the text has {tokenizer.vocab_size} "
        "different characters",
    )
    with contextlib.ExitStack() as stack:
        writers = {
            split: stack.enter_context(
                TokenWriter(folder / f"{split}.bin", tokenizer, config.allow_special)
            )
            for split in SPLITS
        }
        special = writers["train"].special
        try:
            for split, piece in _split(corpus, characters, config.val_fraction, special):
                if piece is None:
                    writers[split].end_document()
                else:
                    writers[split].write(piece)
                    read(piece)
            _require_same_files(corpus, config)
        except Refused:
            # The text was fine in the first pass: something may be writing to it.
            require(_is_unchanged(config, made_from), _changed(config))
            raise
        for writer in writers.values():
            writer.finish()
    for split, writer in writers.items():
        holds_text = writer.bytes > 0 or writer.tokens == 0
        require(holds_text, f"data.val_fraction leaves {split} no text: take another")
    # Where a path is not Unicode, Python's name for it cannot be written as UTF-8.
    description = corpus.description.encode(errors="backslashreplace").decode()
    meta = {
        "format_version": FORMAT_VERSION,
        "name": config.name,
        "dtype": writers["train"].dtype.name,
        "byte_order": "little",
        "vocab_size": tokenizer.vocab_size,
        "max_id": max(writer.max_id for writer in writers.values()),
        "tokens": {split: writer.tokens for split, writer in writers.items()},
        "bytes": {split: writer.bytes for split, writer in writers.items()},
        "sha256": {split: writer.sha256.hexdigest() for split, writer in writers.items()},
        "source": {"description": description, "sha256": corpus.sha256},
        "made_from": made_from,
        "tokenizer": tokenizer.to_json(),
    }
    write_meta(folder, meta)


def _changed(config: DataConfig) -> str:
    return f"data.path={config.path} changed while it was read: {LEAVE_ALONE}"


def _is_unchanged(config: DataConfig, made_from: dict[str, Any]) -> bool:
    try:
        return bool(source_digest(config.corpus, config.path) == made_from["source_sha256"])
    except Refused:
        return False


def _require_same_files(corpus: Corpus, config: DataConfig) -> None:
    if config.corpus == "text":
        found = text_files(str(config.path))
        require(found == [d.source for d in corpus.documents], _changed(config))


def _survey(corpus: Corpus, read: Callable[[str], None]) -> tuple[int, str]:
    """Number of characters in all, and the distinct ones in order."""
    count, seen = 0, {"\n"} if len(corpus.documents) > 1 else set()
    for document in corpus.documents:
        for piece in document.pieces():
            count += len(piece)
            seen.update(piece)
            read(piece)
    require(count, f"{corpus.description} holds no text")
    return count, "".join(sorted(seen))


def _split(
    corpus: Corpus, characters: int, val_fraction: float | None, special: bool
) -> Iterator[tuple[str, str | None]]:
    """(split, piece of text) in order, and (split, None) where one of several documents ends.

    By characters, the first ``1 - val_fraction`` of them for training as nanoGPT splits;
    without a fraction, the documents that are held out. With ``special``, neither the border nor
    the end of a piece goes through an ``<|endoftext|>``: it stays with the text that it ends.
    """
    boundary = int(characters * (1 - val_fraction)) if val_fraction is not None else 0
    position, several, split = 0, len(corpus.documents) > 1, "train"
    for document in corpus.documents:
        if val_fraction is None:
            split = "val" if document.held_out else "train"
        for piece in whole_marks(document.pieces()) if special else document.pieces():
            if val_fraction is None:
                yield split, piece
                continue
            left = max(0, boundary - position)
            left = after_mark(piece, left) if special else left
            position += len(piece)
            split = "train" if len(piece) <= left else "val"
            if piece[:left]:
                yield "train", piece[:left]
            if piece[left:]:
                yield "val", piece[left:]
        if several:
            yield split, None
