"""A dataset of conversations: batches of packed rows, in which only answers are targets."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from llm.data.batches import Batch, BatchSampler, Sampler
from llm.data.conversation_writing import ANSWERS, MIX, STARTS
from llm.data.dataset import Dataset, map_file, pieces_of
from llm.data.meta import AGAIN, META, ConversationMeta, of_splits, read_meta
from llm.data.packing import Conversations, Rows, RowSampler
from llm.errors import Refused, require
from llm.units import plural

# The shares of conversations that a suggested block_size keeps whole: the first that is larger
SHARES = {0.95: "95%", 0.99: "99%", 1.0: "all"}


@dataclass(frozen=True)
class ConversationDataset(Dataset):
    """Token ids of the splits, and which of them are answers."""

    conversations: dict[str, Conversations] = field(default_factory=dict)
    facts: ConversationMeta | None = None
    general: np.ndarray | None = None  # tokens of the text that is mixed in
    mix: float = 0.0  # the share of rows that are general text
    packed: dict[tuple[str, int], Rows] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, plain: Dataset) -> "ConversationDataset":
        """The dataset in the folder of ``plain``; the sizes of its additional files are checked."""
        folder, meta = plain.folder, read_meta(plain.folder)
        facts = meta.conversations
        assert facts is not None
        conversations = {}
        for split, tokens in plain.splits.items():
            count = getattr(facts.count, split)
            is_answer = map_file(folder / ANSWERS.format(split), np.dtype("u1"), len(tokens))
            starts = map_file(folder / STARTS.format(split), np.dtype("<u8"), count + 1)
            whole = np.array(starts).astype(np.int64)
            in_order = whole[0] == 0 and whole[-1] == len(tokens) and (np.diff(whole) > 1).all()
            require(in_order, f"{folder / STARTS.format(split)} is damaged: {AGAIN}")
            conversations[split] = Conversations(tokens, is_answer, whole)
        general = None
        if facts.mix_tokens is not None:
            general = map_file(folder / MIX, plain.train.dtype, facts.mix_tokens)
        return cls(**vars(plain), conversations=conversations, facts=facts, general=general)

    @property
    def template(self) -> dict[str, Any]:
        """The values of the template of the conversations."""
        return {} if self.facts is None else self.facts.template

    def epochs(self, sequences: int, block_size: int) -> float:
        """How often training reads each conversation in ``sequences`` rows; the share ``mix`` of
        them is general text.
        """
        return sequences * (1 - self.mix) / max(1, len(self.rows("train", block_size)))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        parts = [one.is_answer.nbytes + one.starts.nbytes for one in self.conversations.values()]
        return super().size + sum(parts) + (0 if self.general is None else self.general.nbytes)

    @property
    def lengths(self) -> str:
        """The ``block_size`` in which 95% of the conversations are whole, and the one for all."""
        train = self.conversations["train"]
        most, longest = train.size_for(0.95), train.size_for(1.0)
        all_whole = f"model.block_size={longest} keeps all of them whole"
        some = f"model.block_size={most} keeps 95% of them whole, {longest} all"
        return some if most < longest else all_whole

    def mixed(self, share: float) -> "ConversationDataset":
        """The same data, with this share of general text in training batches."""
        return replace(self, mix=share)

    def rows(self, split: str, block_size: int) -> Rows:
        """The conversations of a split in rows of ``block_size``."""
        key = split, block_size
        if key not in self.packed:
            one = self.conversations[split]
            self.packed[key] = Rows(one, block_size, self.tokenizer.vocab_size)
        return self.packed[key]

    def sampler(
        self, block_size: int, batch_size: int, seed: int, overfit_batches: int = 0
    ) -> Sampler:
        """Training batches."""
        text, vocab_size = None, self.tokenizer.vocab_size
        if self.general is not None and self.mix:
            text = BatchSampler(self.general, block_size, 1, seed, vocab_size=vocab_size)
        rows = self.rows("train", block_size)
        return RowSampler(rows, batch_size, seed, overfit_batches, text, self.mix)

    def validation(
        self, block_size: int, batch_size: int, sequences: int | None, split: str = "val"
    ) -> tuple[int, Iterator[Batch]]:
        """The number of batches for evaluation, and an iterator that reads them one by one."""
        rows = self.rows(split, block_size)
        wanted = len(rows) if sequences is None else min(sequences, len(rows))
        chosen = np.arange(wanted) * len(rows) // wanted
        batches = [chosen[i : i + batch_size] for i in range(0, wanted, batch_size)]
        return len(batches), (rows.read(batch) for batch in batches)

    def protocol(
        self, block_size: int, sequences: int | None, split: str = "val"
    ) -> dict[str, Any]:
        """See :meth:`llm.data.dataset.Dataset.protocol`; a window is a row."""
        available = len(self.rows(split, block_size))
        wanted = available if sequences is None else min(sequences, available)
        return {
            "split": split, "text": self.text, "block_size": block_size, "windows": wanted,
            "stride": available * block_size / max(1, wanted),
        }  # fmt: skip

    def check(self, block_size: int, vocab_size: int) -> None:
        """Raise :class:`llm.errors.Refused` if a model of this shape cannot train on the data."""
        self.check_vocabulary(vocab_size)
        for split, one in self.conversations.items():
            if len(self.rows(split, block_size)) == 0:
                larger, advice = self._larger(split, block_size)
                raise Refused(
                    f"{self.folder}: no answer of the {len(one.lengths):,} conversations in "
                    f"{split} fits into model.block_size={block_size}: {advice}",
                    key="model.block_size",
                    suggestions=[larger],
                )
        if self.general is not None and self.mix:
            n = len(self.general)
            require(
                n > block_size,
                f"data.mix_path has {n} tokens, and model.block_size={block_size} needs "
                f"{block_size + 1}: use more text, or a smaller block_size",
            )

    def notes_on(self, block_size: int) -> list[str]:
        """Warnings about conversations that are longer than a row."""
        notes = []
        for split, one in self.conversations.items():
            rows = self.rows(split, block_size)
            if rows.cut:
                lost = f", and {rows.left_out:,} of them have no answer left and are left out"
                notes.append(
                    f"{rows.cut:,} of {len(one.lengths):,} conversations of {split} are longer "
                    f"than block_size={block_size} and are cut at their end"
                    f"{lost if rows.left_out else ''}: {self._larger(split, block_size)[1]}"
                )
        return notes

    def verify(self, on_progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Also compare the digests of the additional files."""
        super().verify(on_progress)
        facts = read_meta(self.folder).conversations
        assert facts is not None
        digests = {MIX: facts.mix_sha256} if facts.mix_sha256 else {}
        for split in self.conversations:
            digests[ANSWERS.format(split)] = getattr(facts.answers, split)
            digests[STARTS.format(split)] = getattr(facts.starts, split)
        for name, expected in digests.items():
            sha256 = hashlib.sha256()
            for raw in pieces_of(self.folder / name):
                sha256.update(raw)
            if sha256.hexdigest() != expected:
                raise Refused(
                    f"{self.folder / name} is damaged: its sha256 differs from the one in {META}: "
                    f"{AGAIN}"
                )

    def _larger(self, split: str, block_size: int) -> tuple[str, str]:
        """A larger ``block_size`` for conversations that are cut, as typed, and what it keeps."""
        sizes = {text: self.conversations[split].size_for(share) for share, text in SHARES.items()}
        text, size = next((text, size) for text, size in sizes.items() if size > block_size)
        typed = f"model.block_size={size}"
        return typed, f"{typed} keeps {text} of them whole"


def facts_of(folder: Path) -> dict[str, str]:
    """A line for each split of a prepared folder, for the screen; empty for text."""
    meta = read_meta(folder)
    facts = meta.conversations
    if facts is None:
        return {}
    lines = {}
    for split in meta.splits:
        count, answers = getattr(facts.count, split), getattr(facts.answer_tokens, split)
        tokens = getattr(meta.tokens, split)
        lines[split] = (
            f"{plural(count, 'conversation')}, {tokens:,} tokens, {answers:,} of them in answers"
        )
    if facts.mix_tokens is not None:
        lines["mixed in"] = f"{facts.mix_tokens:,} tokens of general text"
    return lines


def conversation_counts(folder: Path) -> dict[str, Any]:
    """Conversations, answer tokens and answer bytes of each split; empty for text."""
    facts = read_meta(folder).conversations
    if facts is None:
        return {}
    counts = {
        "conversations": facts.count, "answer_tokens": facts.answer_tokens,
        "answer_bytes": facts.answer_bytes,
    }  # fmt: skip
    return {key: of_splits(value) for key, value in counts.items()}
