"""A prepared folder is whole or absent, never mistaken for another, and prepared once."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from llm.data.config import DataConfig
from llm.data.dataset import Dataset
from llm.data.prepare import folder_of, prepare
from llm.errors import DiskError, Refused
from tests.conftest import HANGS
from tests.data.meta_file import edit_meta

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def config(tmp_path: Path, text_file: Path) -> DataConfig:
    """A text by characters, in a folder that does not exist yet."""
    return DataConfig(
        name="play", corpus="text", dir=str(tmp_path / "new" / "data"), path=str(text_file),
        tokenizer="char", val_fraction=0.1,
    )  # fmt: skip


def state_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    files = sorted(folder.iterdir())
    return {f.name: (f.stat().st_ino, f.stat().st_mtime_ns, f.read_bytes()) for f in files}


def test_a_prepared_folder_is_used_again_untouched(config: DataConfig) -> None:
    folder = prepare(config)
    before, calls = state_of(folder), list[int]()
    vocab_size = Dataset.open(folder).tokenizer.vocab_size
    for again in (
        config, replace(config, overwrite=True), replace(config, vocab_size=vocab_size)
    ):  # fmt: skip
        assert prepare(again, lambda done, total: calls.append(done)) == folder
    assert (state_of(folder), calls) == (before, [])


@pytest.mark.parametrize(
    ("change", "was", "want"),
    [
        ({"tokenizer": "byte"}, "tokenizer=char", "tokenizer=byte"),
        ({"val_fraction": 0.25}, "val_fraction=null", "val_fraction=0.25"),
        ({"allow_special": True}, "allow_special=False", "allow_special=True"),
        ({"vocab_size": 99}, "vocab_size=20", "vocab_size=99"),
    ],
    ids=str,
)
def test_a_folder_prepared_from_something_else_is_refused_naming_both(
    plays: DataConfig, change: dict[str, object], was: str, want: str
) -> None:
    folder = prepare(plays)
    before = state_of(folder)
    with pytest.raises(Refused) as refusal:
        prepare(replace(plays, **change))
    assert str(refusal.value).startswith(
        f"{folder} was prepared with {was}, but the config says {want}: "
    )
    assert "data.overwrite=true" in str(refusal.value)
    assert state_of(folder) == before


def test_a_folder_prepared_from_something_else_is_replaced_if_asked(plays: DataConfig) -> None:
    prepare(plays)
    other = replace(plays, tokenizer="byte", overwrite=True)
    folder = prepare(other)
    assert Dataset.open(folder).tokenizer.kind == "byte"
    assert [f.name for f in folder.parent.iterdir()] == ["plays"]
    assert prepare(replace(other, overwrite=False)) == folder  # it is the folder of that config now


def test_a_replacement_that_is_refused_leaves_the_folder_as_it_was(plays: DataConfig) -> None:
    folder = prepare(plays)
    before = state_of(folder)
    with pytest.raises(Refused, match=r"data\.vocab_size=99, but the text has 20 different"):
        prepare(replace(plays, vocab_size=99, overwrite=True))
    assert state_of(folder) == before
    assert [f.name for f in folder.parent.iterdir()] == ["plays"]


@pytest.mark.parametrize("meta", [None, "", "{", "[]", "\udcff"], ids=ascii)
def test_a_folder_without_a_readable_meta_json_is_refused_and_can_be_replaced(
    plays: DataConfig, meta: str | None
) -> None:
    folder = Path(plays.dir) / plays.name
    folder.mkdir(parents=True)
    if meta is not None:
        (folder / "meta.json").write_text(meta, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(Refused, match=rf"^{folder}.* .*data\.overwrite=true$"):
        prepare(plays)
    assert len(Dataset.open(prepare(replace(plays, overwrite=True))).train) > 0


def remove(folder: Path) -> None:
    (folder / "val.bin").unlink()


def flip(folder: Path) -> None:
    raw = (folder / "val.bin").read_bytes()
    (folder / "val.bin").write_bytes(bytes([raw[0] ^ 1]) + raw[1:])


def change_the_version(folder: Path) -> None:
    edit_meta(folder, lambda meta: meta.update(format_version=99))


@pytest.mark.parametrize("damage", [remove, flip, change_the_version])
def test_a_damaged_folder_is_repaired_if_it_may_be_replaced(
    config: DataConfig, damage: Callable[[Path], None]
) -> None:
    folder = prepare(config)
    before = {name: raw for name, (_, _, raw) in state_of(folder).items()}
    damage(folder)
    assert prepare(replace(config, overwrite=True)) == folder
    assert {name: raw for name, (_, _, raw) in state_of(folder).items()} == before


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no names of open files")
def test_a_folder_is_synced_before_it_is_renamed_and_its_parent_afterwards(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, fsync, synced = folder_of(config), os.fsync, list[tuple[str, bool]]()

    def recorded(handle: int) -> None:
        synced.append((Path(f"/proc/self/fd/{handle}").readlink().name, folder.exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", recorded)
    prepare(config)
    new = f".{folder.name}.tmp"
    before = [(name, False) for name in ("train.bin", "val.bin", "meta.json", new)]
    assert synced == [*before, (folder.parent.name, True)]


def test_a_refused_preparation_leaves_nothing_behind(config: DataConfig, tmp_path: Path) -> None:
    bad, blank = tmp_path / "bad.txt", tmp_path / "blank.txt"
    bad.write_bytes(b"good for a while" * 100 + b"\xff")
    blank.write_bytes(b"\xef\xbb\xbf")
    before = sorted(tmp_path.iterdir())
    for wrong, reason in (
        (replace(config, path=str(bad)), r"byte 0xff at offset 1600;"),
        (replace(config, path=str(blank)), "holds no text"),
        (replace(config, path=str(tmp_path / "none")), "does not exist"),
        (replace(config, vocab_size=9), r"data\.vocab_size=9, but the text has"),
    ):
        with pytest.raises(Refused, match=reason):
            prepare(wrong)
        assert sorted(tmp_path.iterdir()) == before


def test_a_place_that_cannot_be_written_is_refused_by_name(
    config: DataConfig, text_file: Path
) -> None:
    with pytest.raises(Refused, match=rf"{text_file}/.* cannot be written: {text_file} is not a"):
        prepare(replace(config, dir=str(text_file)))


def test_a_full_disk_is_a_disk_error_and_leaves_nothing_behind(
    config: DataConfig, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # bytes of a file
    try:
        with pytest.raises(DiskError, match=r"data/play-\w+ cannot be written: File too large"):
            prepare(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_the_temporary_folders_of_a_dead_process_are_removed(config: DataConfig) -> None:
    folder = folder_of(config)
    for part in ("tmp", "replaced"):
        (folder.parent / f".{folder.name}.{part}").mkdir(parents=True)
        (folder.parent / f".{folder.name}.{part}" / "train.bin").write_bytes(b"half")
    assert prepare(config) == folder
    assert [f.name for f in folder.parent.iterdir()] == [folder.name]


PROCESS = """
import json, sys
from llm.data.config import DataConfig
from llm.data.prepare import prepare
config, calls = DataConfig(**json.loads(sys.argv[1])), []
print("ready", flush=True)
sys.stdin.readline()
print(prepare(config, lambda done, total: calls.append(done)), "wrote" if calls else "waited")
"""


def test_of_four_processes_at_once_one_writes_and_all_get_the_folder(config: DataConfig) -> None:
    command = [sys.executable, "-W", "error", "-c", PROCESS, json.dumps(asdict(config))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=HANGS)[0].split() for process in processes]
    folder = folder_of(config)
    assert [process.returncode for process in processes] == [0] * 4
    assert sorted(said) == [[str(folder), "waited"]] * 3 + [[str(folder), "wrote"]]
    assert [f.name for f in folder.parent.iterdir()] == [folder.name]
    assert len(Dataset.open(folder).train) > 0


def test_the_folder_of_a_text_is_named_by_what_it_is_made_from(
    config: DataConfig, tmp_path: Path
) -> None:
    copy, other = tmp_path / "copy.txt", tmp_path / "other.txt"
    copy.write_bytes(Path(str(config.path)).read_bytes())
    other.write_bytes(copy.read_bytes() + b"\n")
    assert folder_of(replace(config, path=str(copy), overwrite=True)) == folder_of(config)
    changes = [
        {}, {"path": str(other)}, {"tokenizer": "gpt2"}, {"val_fraction": 0.2},
        {"allow_special": True}, {"name": "novel"}, {"dir": str(tmp_path)},
    ]  # fmt: skip
    folders = [folder_of(replace(config, **change)) for change in changes]
    assert len(set(folders)) == len(changes)
    assert folder_of(config).name.startswith("play-")
    assert folder_of(DataConfig()) == Path("data/shakespeare_char")  # built in: the plain name
