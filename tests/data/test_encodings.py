# ruff: noqa: RUF001  (Chinese punctuation is meant)
"""A text in another encoding is refused with the command that converts it, which does."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from llm.data.corpus import read_corpus
from llm.data.encodings import guess_encoding
from llm.errors import Refused

CHINESE = (
    "第一回　甄士隐梦幻识通灵，贾雨村风尘怀闺秀。\n此开卷第一回也。作者自云：因曾历过一番梦幻之后\n"
    * 9
)
LATIN = "What say you, my lord?\nNothing.\n" * 9


@pytest.mark.parametrize(
    ("encoding", "text", "named"),
    [
        ("gbk", CHINESE, "GBK"), ("gb2312", CHINESE, "GBK"), ("gb18030", CHINESE + "😀", "GBK"),
        ("utf-16", CHINESE, "UTF-16"), ("utf-16", LATIN, "UTF-16"), ("utf-32", LATIN, "UTF-32"),
    ],
)  # fmt: skip
def test_the_command_is_one_line_and_converts_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, text: str, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("the novel.txt").write_bytes(text.encode(encoding))
    with pytest.raises(Refused) as refusal:
        read_corpus("text", "the novel.txt")
    said, _, command = str(refusal.value).partition(f"; it looks like {named}, so convert it: ")
    assert said.startswith("the novel.txt is not ") and "\n" not in command
    words = shlex.split(command)
    assert words[:2] + words[3:] == [
        "iconv", "-f", "-t", "UTF-8", "the novel.txt", ">", "the novel.utf8.txt"
    ]  # fmt: skip
    assert text.encode(words[2].lower())  # Python knows it by the same name
    if shutil.which("iconv"):
        subprocess.run(command, shell=True, check=True)
        (found,) = read_corpus("text", "the novel.utf8.txt").load()
        assert "".join(found.pieces()) == text


@pytest.mark.parametrize(
    "raw",
    [
        "Où est le café? Là-bas, près de la forêt.\n".encode("latin-1"),
        "Größe, Übermut, naïve Façade\n".encode("latin-1"),
        CHINESE.encode()[:500] + b"\xff" + CHINESE.encode(),  # UTF-8 with an error
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\0",
        b"PK\3\4\x14\0\0\0\x08\0" + bytes(range(256)),
        b"\xff\xfe\0\xd8\0\0\0\xd8",  # no text in UTF-16 either
        b"",
    ],
    ids=["french", "german", "damaged", "png", "zip", "marked", "empty"],
)
def test_no_command_is_given_where_the_encoding_is_not_clear(raw: bytes) -> None:
    assert guess_encoding(raw) is None
