"""Writes the files of a dataset of conversations.

Beside ``train.bin`` there are ``train.answers.bin`` (uint8: 1 for each token of an answer) and
``train.starts.bin`` (uint64: where each conversation starts), and the same for the other splits.

The file is read twice: first to check each row and to divide the conversations, then to tokenize
them. A hash of its messages assigns a conversation to a split: equal conversations stay together.
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llm.data.config import TOKENIZERS, DataConfig
from llm.data.conversations import Conversation, read_conversations
from llm.data.corpus import Corpus, expanded, read_corpus
from llm.data.dialogues import dialogues
from llm.data.meta import META, SPLITS, ConversationMeta, Counts, Digests
from llm.data.template import Template, read_template
from llm.data.tokenizer import Tokenizer, build_tokenizer
from llm.data.writing import Progress, TokenWriter, describe
from llm.disk import write_durably
from llm.errors import Refused, require
from llm.sealed import sealed
from llm.units import plural

ANSWERS, STARTS, MIX = "{}.answers.bin", "{}.starts.bin", "mix.bin"


class ConversationWriter(TokenWriter):
    """Writes the three files of a split. ``bytes``: the bytes of text of all tokens."""

    def __init__(self, opened: Callable[[str], BinaryIO], split: str, tokenizer: Tokenizer) -> None:
        super().__init__(opened(f"{split}.bin"), tokenizer)
        self.others = {name: opened(name.format(split)) for name in (ANSWERS, STARTS)}
        self.digests = {name: hashlib.sha256() for name in self.others}
        self.count = self.answer_tokens = self.answer_bytes = 0

    def add(self, ids: np.ndarray, is_answer: np.ndarray) -> None:
        """Append a conversation."""
        self._write(STARTS, np.array([self.tokens], "<u8"))
        self._append(ids)
        self._write(ANSWERS, is_answer.astype(np.uint8))
        lengths = self.tokenizer.byte_lengths[ids.astype(np.int64)]
        self.bytes += int(lengths.sum())
        self.answer_bytes += int(lengths[is_answer].sum())
        self.answer_tokens += int(is_answer.sum())
        self.count += 1

    def finish(self) -> None:
        """Write the end of the last conversation, and wait until all files are on the disk."""
        self._write(STARTS, np.array([self.tokens], "<u8"))
        for file in self.others.values():
            file.flush()
            os.fsync(file.fileno())
        super().finish()

    def _write(self, name: str, values: np.ndarray) -> None:
        self.others[name].write(values.tobytes())
        self.digests[name].update(values.tobytes())


def write_conversations(
    folder: Path, config: DataConfig, corpus: Corpus, made_from: dict[str, Any], progress: Progress
) -> None:
    """Write the files of the conversations in ``config.path`` into ``folder``.

    Raises :class:`llm.errors.Refused` for a file or a template that cannot be used.
    """
    path, template = _file_of(folder, config, corpus), read_template(str(config.template))
    tokenizer = build_tokenizer(str(config.tokenizer), "\n")
    template.check(tokenizer, is_trained=config.tokenizer not in TOKENIZERS)
    size = path.stat().st_size
    keys = np.array(
        [_key(one) for one in read_conversations(path, lambda done: progress(done, 2 * size))],
        dtype=np.uint64,
    )
    borders = _borders(keys, config)
    with ExitStack() as files:

        def opened(name: str) -> BinaryIO:
            return files.enter_context((folder / name).open("wb"))

        writers = {
            split: ConversationWriter(opened, split, tokenizer)
            for split in SPLITS
            if split != "test" or config.test_fraction is not None
        }
        for one in read_conversations(path, lambda done: progress(size + done, 2 * size)):
            try:
                ids, is_answer = template.encode(tokenizer, one.messages)
            except Refused as refusal:  # such as a character that is not in the vocabulary
                raise Refused(f"{path}, line {one.line}: {refusal}") from None
            key = _key(one)
            writers[next(split for split, border in borders if key <= border)].add(ids, is_answer)
        for split, writer in writers.items():
            writer.finish()
            require(
                writer.count,
                "data.val_fraction and data.test_fraction leave no conversation for the split "
                f"{split}: change them",
            )
        mix = None if config.mix_path is None else TokenWriter(opened(MIX), tokenizer)
        if mix is not None:
            _write_text(mix, str(config.mix_path))
    meta = describe(corpus, config, made_from, tokenizer, writers)
    meta = meta.with_conversations(_described(template, writers, mix))
    write_durably(folder / META, sealed(meta.plain()).encode())


def _file_of(folder: Path, config: DataConfig, corpus: Corpus) -> Path:
    """The file of the conversations. Dialogues of plays are written to such a file first."""
    if config.corpus != "dialogues":
        return expanded(str(config.path))
    path = folder / "conversations.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for play in corpus.load():
            for messages in dialogues("".join(play.pieces())):
                file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return path


def _key(conversation: Conversation) -> int:
    digest = hashlib.blake2b(conversation.identity(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _borders(keys: np.ndarray, config: DataConfig) -> list[tuple[str, int]]:
    """Each split with the largest key that it takes.

    Raises :class:`llm.errors.Refused` for fewer conversations than splits.
    """
    count = len(keys)
    wanted = {"val": config.val_fraction or 0.0, "test": config.test_fraction or 0.0}
    ordered, taken, borders = np.sort(keys), 0, list[tuple[str, int]]()
    least = 3 if config.test_fraction else 2
    different = len(np.unique(keys))
    require(
        different >= least,
        f"data.path={config.path} has only {plural(different, 'different conversation')}: each "
        f"of the {least} splits needs one",
    )
    for split, share in wanted.items():
        if share:
            taken = min(count - 1, taken + max(1, round(share * count)))
            borders.append((split, int(ordered[taken - 1])))
    return [*borders, ("train", 2**64 - 1)]


def _write_text(writer: TokenWriter, path: str) -> None:
    """Tokenize the general text; each of its documents ends with the end-of-text token."""
    try:
        for document in read_corpus("text", path).load():
            for piece in document.pieces():
                writer.write(piece)
            writer.end_document()
    except Refused as refusal:
        raise Refused(str(refusal).replace("data.path=", "data.mix_path=")) from None
    writer.finish()


def _described(
    template: Template, writers: dict[str, ConversationWriter], mix: TokenWriter | None
) -> ConversationMeta:
    def counts(key: str) -> Counts:
        return Counts(**{split: getattr(writer, key) for split, writer in writers.items()})

    def digests(name: str) -> Digests:
        return Digests(**{
            split: writer.digests[name].hexdigest() for split, writer in writers.items()
        })  # fmt: skip

    return ConversationMeta(
        template=template.plain(),
        count=counts("count"),
        answer_tokens=counts("answer_tokens"),
        answer_bytes=counts("answer_bytes"),
        answers=digests(ANSWERS),
        starts=digests(STARTS),
        mix_tokens=None if mix is None else mix.tokens,
        mix_sha256=None if mix is None else mix.sha256.hexdigest(),
    )
