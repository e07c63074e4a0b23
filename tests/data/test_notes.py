"""A warning says that GPT-2's tokenizer does not suit a text."""

from pathlib import Path

import pytest

from llm.data.config import DataConfig
from llm.data.dataset import Dataset
from llm.data.prepare import prepare
from tests.command_line import here
from tests.conftest import TINY_RUN

CHINESE = "他说：“你好，世界。”于是大家都笑了。\n"  # noqa: RUF001
RUSSIAN = "Все счастливые семьи похожи друг на друга.\n"  # noqa: RUF001
GERMAN = "Als Gregor Samsa eines Morgens aus unruhigen Träumen erwachte.\n"
ENGLISH = "What say you, my lord?\n"
CODE = "def prepare(config: DataConfig) -> Path:\n    folder = folder_of(config)\n"


@pytest.mark.parametrize(
    ("text", "tokenizer", "warned"),
    [
        (CHINESE, "gpt2", "GPT-2's tokenizer has 1.5 bytes a token in this text"),
        (RUSSIAN, "gpt2", "GPT-2's tokenizer has 1.6 bytes a token in this text"),
        (CHINESE, "byte", None),
        (GERMAN, "gpt2", None), (ENGLISH, "gpt2", None), (CODE, "gpt2", None),
    ],
    ids=["chinese", "russian", "bytes", "german", "english", "code"],
)  # fmt: skip
def test_only_texts_with_few_bytes_a_token_get_a_warning(
    tmp_path: Path, text: str, tokenizer: str, warned: str | None
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(text * 50, encoding="utf-8")
    data = str(tmp_path / "data")
    made = prepare(DataConfig("t", "text", data, str(path), tokenizer, val_fraction=0.1))
    notes = Dataset.open(made).notes
    assert len(notes) == (warned is not None)
    for note in notes:
        assert note.startswith(str(warned)) and "data.tokenizer=char or byte" in note


def test_preparing_and_training_show_the_warning(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(CHINESE * 50, encoding="utf-8")
    typed = ["data=text", "data.path=text.txt", "data.tokenizer=gpt2"]
    steps = [*TINY_RUN, "trainer.max_steps=1", "run.name=a"]
    for done in (
        here("prepare", *typed, cwd=tmp_path),
        here("train", *typed, *steps, cwd=tmp_path),
    ):
        assert done.returncode == 0
        said = " ".join((done.stdout + done.stderr).split())
        assert "warning: GPT-2's tokenizer has 1.5 bytes a token" in said
    assert "bytes a token" in (tmp_path / "outputs/a/run_train.log").read_text(encoding="utf-8")
