# ruff: noqa: RUF001  (Chinese punctuation is meant)
"""A text in another encoding is refused with a command that converts it."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from llm.data.corpus import Document, read_corpus
from llm.errors import Refused

CHINESE = "第一回　甄士隐梦幻识通灵，贾雨村风尘怀闺秀。\n此开卷第一回也。作者自云：因曾历过一番\n"
LATIN = "What say you, my lord?\nNothing.\n"


@pytest.mark.parametrize(
    ("encoding", "text", "named"),
    [
        ("gbk", CHINESE, "GBK"), ("gb18030", CHINESE + "😀", "GBK"), ("utf-16", CHINESE, "UTF-16"),
        ("utf-16", LATIN, "UTF-16"), ("utf-32", LATIN, "UTF-32"),
    ],
)  # fmt: skip
def test_the_command_is_one_line_and_converts_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, text: str, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("the novel.txt").write_bytes(text.encode(encoding))
    with pytest.raises(Refused) as refusal:
        read_corpus("text", "the novel.txt")
    said, _, command = str(refusal.value).partition(f"; if it is {named}, convert it: ")
    assert said.startswith("the novel.txt is not ") and "\n" not in command
    assert shlex.split(command)[-3:] == ["the novel.txt", ">", "the novel.utf8.txt"]
    if shutil.which("iconv"):
        subprocess.run(command, shell=True, check=True)
        (converted,) = read_corpus("text", "the novel.utf8.txt").load()
        assert "".join(converted.pieces()) == text


def test_there_is_no_command_for_binary_files() -> None:
    with pytest.raises(Refused, match=r"as in archives, UTF-16 and other binary files$"):
        list(Document("a.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\0").pieces())
