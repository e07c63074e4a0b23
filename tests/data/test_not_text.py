"""Archives, other encodings, pipes and devices are refused at once, whatever their size."""

import gzip
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from llm.data.corpus import PIECE, Document, read_corpus
from llm.errors import Refused


@pytest.mark.parametrize("offset", [0, 5, PIECE - 1, PIECE, 2 * PIECE + 3])
def test_a_nul_byte_is_named_with_its_offset_wherever_it_lies(offset: int) -> None:
    raw = "é".encode() * (offset // 2) + b"a" * (offset % 2) + b"\0" + b"after"
    with pytest.raises(Refused, match=rf"^notes\.txt is not text: .*offset {offset}, as in arch"):
        list(Document("notes.txt", raw).pieces())


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_text_in_another_unicode_encoding_is_refused(encoding: str) -> None:
    with pytest.raises(Refused, match=r"^notes\.txt is not (text|UTF-8)"):
        list(Document("notes.txt", "What say you?\n".encode(encoding)).pieces())


def test_an_archive_is_refused(tmp_path: Path) -> None:
    member = tmp_path / "play.txt"
    member.write_text("What say you, my lord?\n" * 9, encoding="utf-8")
    with (
        tarfile.open(tmp_path / "a.tar", "w") as tar,
        zipfile.ZipFile(tmp_path / "a.zip", "w") as z,
    ):
        tar.add(member, "play.txt")
        z.write(member, "play.txt")
    (tmp_path / "a.gz").write_bytes(gzip.compress(member.read_bytes()))
    for name in ("a.tar", "a.zip", "a.gz"):
        with pytest.raises(Refused, match=rf"{name} is not (text|UTF-8)"):
            read_corpus("text", str(tmp_path / name))


def tar_header(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, size
    return member.tobuf(tarfile.GNU_FORMAT)


MEMBERS = {
    "above": tar_header("../escaped.txt"),
    "absolute": tar_header("/escaped.txt"),
    "link": tar_header("link", tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": tar_header("link", tarfile.LNKTYPE, "/etc/passwd"),
    "device": tar_header("device", tarfile.CHRTYPE),
    "sparse": tar_header("sparse", tarfile.GNUTYPE_SPARSE, size=10 << 30),
}


@pytest.mark.parametrize("member", MEMBERS.values(), ids=list(MEMBERS))
def test_an_archive_of_any_kind_of_member_is_refused_and_never_unpacked(
    member: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "archive"
    path.write_bytes(member + bytes(1024))
    with pytest.raises(Refused, match="archive is not text: a NUL byte"):
        read_corpus("text", str(path))
    assert list(tmp_path.iterdir()) == [path]


def test_ten_gigabytes_that_are_no_text_are_refused_before_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("What say you?\n")
    for path in (tmp_path / "huge", tmp_path / "folder" / "huge"):
        with path.open("wb") as file:
            file.write(MEMBERS["sparse"])
            file.truncate(10 << 30)  # a hole: it takes no room on the disk
    before = bytes_read()
    for path in (tmp_path / "huge", tmp_path / "folder"):
        with pytest.raises(Refused, match="huge is not text: a NUL byte"):
            read_corpus("text", str(path))
    with pytest.raises(Refused, match="huge is not tiny Shakespeare"):
        read_corpus("tinyshakespeare", str(tmp_path / "huge"))
    assert bytes_read() - before < 256 << 20


def bytes_read() -> int:
    """By this process so far, by Linux's count; 0 elsewhere."""
    counts = Path("/proc/self/io")
    return int(counts.read_text(encoding="ascii").split()[1]) if counts.exists() else 0


def test_pipes_and_devices_are_never_opened(tmp_path: Path) -> None:
    pipe, device = tmp_path / "pipe", tmp_path / "device"
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    for path in (pipe, device):  # opening the pipe would wait for ever, reading zeros not end
        for name in ("text", "tinyshakespeare"):
            with pytest.raises(Refused, match=rf"^data\.path={path} is not a file$"):
                read_corpus(name, str(path))
    (tmp_path / "play.txt").write_text("What say you?\n")
    with pytest.raises(Refused, match=rf"^{tmp_path}/(pipe|device) is not a file: remove it"):
        read_corpus("text", str(tmp_path))
