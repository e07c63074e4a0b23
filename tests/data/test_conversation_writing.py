"""The files of conversations, read back by numpy alone."""

import hashlib
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from llm.data.conversation_writing import ANSWERS, STARTS, ConversationWriter, write_conversations
from llm.data.corpus import read_corpus
from llm.data.meta import META
from llm.data.tokenizer import ByteTokenizer
from llm.errors import Refused
from tests.data.test_conversation_dataset import config, row

WORDS = [("Hi", "Hello!"), ("你好", "¡hola!"), ("", "x")]


def test_each_conversation_starts_where_the_last_one_ends_and_its_answer_is_marked(
    tmp_path: Path,
) -> None:
    tokenizer = ByteTokenizer()
    with ExitStack() as files:
        writer = ConversationWriter(
            lambda name: files.enter_context((tmp_path / name).open("wb")), "train", tokenizer
        )
        for question, answer in WORDS:
            ids = tokenizer.encode(question + answer)
            writer.add(ids, np.arange(len(ids)) >= len(question.encode()))
        writer.finish()
    tokens = np.fromfile(tmp_path / "train.bin", "<u2")
    is_answer = np.fromfile(tmp_path / ANSWERS.format("train"), np.uint8).astype(bool)
    starts = np.fromfile(tmp_path / STARTS.format("train"), "<u8").tolist()
    lengths = [len((question + answer).encode()) for question, answer in WORDS]
    assert starts == [0, *np.cumsum(lengths)]
    assert tokenizer.decode(tokens.tolist()) == "".join(map("".join, WORDS))
    assert tokenizer.decode(tokens[is_answer].tolist()) == "".join(answer for _, answer in WORDS)
    n_bytes = len("".join(answer for _, answer in WORDS).encode())
    assert (writer.count, writer.answer_tokens, writer.answer_bytes) == (3, n_bytes, n_bytes)
    assert set(writer.digests) == {ANSWERS, STARTS}
    for name, digest in writer.digests.items():
        content = (tmp_path / name.format("train")).read_bytes()
        assert digest.hexdigest() == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("different", "options", "said"),
    [
        (1, {}, "has only 1 different conversation: each of the 2 splits needs one"),
        (2, {"test_fraction": 0.1}, "has only 2 different conversations: each of the 3 splits"),
        (2, {"val_fraction": 0.99}, "leave no conversation for the split train"),
    ],
    ids=str,
)
def test_each_split_needs_a_conversation(
    different: int, options: dict[str, float], said: str, tmp_path: Path
) -> None:
    made = config(tmp_path, [row(n % different) for n in range(6)], **options)
    corpus = read_corpus(made.corpus, made.path)
    (tmp_path / "out").mkdir()
    with pytest.raises(Refused, match=said):
        write_conversations(tmp_path / "out", made, corpus, {}, lambda done, total: None)
    assert not (tmp_path / "out" / META).exists()
