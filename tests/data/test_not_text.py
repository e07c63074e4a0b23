"""Binary files, pipes and devices of any size are refused at once."""

import os
from pathlib import Path

import pytest

from llm.data.corpus import PIECE, Document, read_corpus
from llm.errors import Refused


@pytest.mark.parametrize("offset", [0, 5, PIECE - 1, PIECE, 2 * PIECE + 3])
def test_a_nul_byte_is_named_with_its_offset_wherever_it_lies(offset: int) -> None:
    raw = "é".encode() * (offset // 2) + b"a" * (offset % 2) + b"\0" + b"after"
    with pytest.raises(Refused, match=rf"^notes\.txt is not text: .*offset {offset}, as in arch"):
        list(Document("notes.txt", raw).pieces())


def test_a_binary_file_of_ten_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("What say you?\n")
    for path in (tmp_path / "huge", tmp_path / "folder" / "huge"):
        with path.open("wb") as file:
            file.write(bytes(512))
            file.truncate(10 << 30)  # a sparse file, without blocks on the disk
    before = bytes_read()
    for path in (tmp_path / "huge", tmp_path / "folder"):
        with pytest.raises(Refused, match="huge is not text: a NUL byte"):
            read_corpus("text", str(path))
    with pytest.raises(Refused, match="huge is not tiny Shakespeare"):
        read_corpus("tinyshakespeare", str(tmp_path / "huge"))
    assert bytes_read() - before < 256 << 20


def bytes_read() -> int:
    """Bytes that this process has read, from Linux; 0 on other systems."""
    counts = Path("/proc/self/io")
    return int(counts.read_text(encoding="ascii").split()[1]) if counts.exists() else 0


def test_pipes_and_devices_are_never_opened(tmp_path: Path) -> None:
    pipe, device = tmp_path / "pipe", tmp_path / "device"
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    for path in (pipe, device):  # opening the pipe or reading zeros would never end
        for name in ("text", "tinyshakespeare"):
            with pytest.raises(Refused, match=rf"^data\.path={path} is not a file$"):
                read_corpus(name, str(path))
    (tmp_path / "play.txt").write_text("What say you?\n")
    with pytest.raises(Refused, match=rf"^{tmp_path}/(pipe|device) is not a file: remove it"):
        read_corpus("text", str(tmp_path))
