"""The options of a dataset: text, splits and tokenizer."""

import os
from dataclasses import dataclass

from llm.disk import check_name, check_path
from llm.errors import did_you_mean, require
from llm.options import option

TOKENIZERS = {"gpt2": 50_257, "char": None, "byte": 257}  # sizes of their vocabularies, if fixed
WITH_TEMPLATE = ("conversations", "dialogues")  # corpora of messages and answers
CORPORA = ("shakespeare", "tinyshakespeare", "text", *WITH_TEMPLATE)
DOWNLOADED_NAMES = ("smollm2",)  # keys of DOWNLOADED in llm/interchange/source.py


def is_json(path: str | os.PathLike[str]) -> bool:
    """Whether the name of ``path`` is that of a JSON file, in upper or lower case."""
    return os.fspath(path).lower().endswith((".json", ".jsonl"))


def padded(vocab_size: int, tokenizer: str | None) -> int:
    """``vocab_size``, for BPE padded to a multiple of 64: matrix products are faster then (nanoGPT,
    commit 77e7e04).
    """
    is_bpe = tokenizer == "gpt2" or tokenizer not in TOKENIZERS  # other weights have BPE
    return -(-vocab_size // 64) * 64 if is_bpe else vocab_size


@dataclass
class DataConfig:
    """How a dataset is prepared. conf/data/shakespeare_char.yaml explains each key."""

    name: str = "shakespeare_char"
    corpus: str = option("shakespeare", one_of=CORPORA)
    dir: str = "data"
    path: str | None = None
    tokenizer: str | None = "char"  # or a place as for init_from; None: see data_of_origin
    vocab_size: int | None = option(None, at_least=1)
    val_fraction: float | None = option(None, more_than=0, less_than=1)
    test_fraction: float | None = option(None, more_than=0, less_than=1)
    allow_special: bool = False
    overwrite: bool = False
    template: str | None = None
    mix: float = option(0.0, at_least=0, less_than=1)
    mix_path: str | None = None

    def cross_check(self) -> None:
        """Raise :class:`llm.errors.Refused` for values that do not go together."""
        require(
            self.val_fraction is not None or self.corpus == "shakespeare",
            f"data.val_fraction must be a number for {self.corpus}",
        )
        val, test = self.val_fraction or 0.0, self.test_fraction or 0.0
        require(
            val + test < 1,
            f"data.val_fraction={val:g} and data.test_fraction={test:g} leave nothing to train on: "
            "their sum must be less than 1",
        )
        require(
            self.corpus != "text" or self.path,
            "data.path is missing: data=text needs data.path=FILE_OR_FOLDER",
        )
        self._check_conversations()
        suited = "data=chat or data=instruct" if is_json(self.path or "") else "data=text"
        require(
            self.corpus != "shakespeare" or self.path is None,
            "data=shakespeare and data=shakespeare_char have their own text: for "
            f"{self.path} use {suited}",
        )
        self.name = check_name("data.name", self.name)
        check_path("data.dir", self.dir)
        known = ", ".join(TOKENIZERS)
        require(self.tokenizer is not None, f"data.tokenizer is null: take one of {known}")
        typed = str(self.tokenizer)
        require(
            typed in TOKENIZERS or typed in DOWNLOADED_NAMES or os.path.exists(typed),
            f"data.tokenizer={typed} must be one of {known}, or an existing place as for init_from"
            f"{did_you_mean(typed, TOKENIZERS)}",
        )
        known_size, declared = TOKENIZERS.get(typed), self.vocab_size
        require(
            declared is None or known_size in (None, declared),
            f"data.vocab_size={declared}, but the {self.tokenizer} tokenizer has {known_size}: "
            "set it to null",
        )

    def _check_conversations(self) -> None:
        if self.corpus in WITH_TEMPLATE:
            require(
                self.path or self.corpus == "dialogues",
                "data.path is missing: data=chat and data=instruct need data.path=FILE",
            )
            require(
                self.path is None or self.corpus == "conversations",
                f"data=shakespeare_chat has its own conversations: for {self.path} use data=chat",
            )
            require(self.template, "data.template is null: take chatml, alpaca, llama2 or plain")
            require(not self.allow_special, "data.allow_special=true is not for conversations")
        else:
            for key in ("template", "mix", "mix_path"):
                value = getattr(self, key)
                require(
                    not value,
                    f"data.{key}={value} is for conversations: take data=chat or data=instruct",
                )
        mixed = self.mix_path or ""
        require(
            not is_json(mixed),
            f"data.mix_path={mixed} is JSON, and plain text is mixed in: give a text file or a "
            "folder of them; more conversations belong in the file of data.path",
            key="data.mix_path",
        )
        require(
            bool(self.mix) == (self.mix_path is not None),
            "data.mix and data.mix_path go together: the share of rows, and the text they are from",
        )

    def declared_vocab_size(self) -> int | None:
        """Size of the vocabulary; None: unknown before the text is read."""
        return self.vocab_size or TOKENIZERS.get(str(self.tokenizer))
