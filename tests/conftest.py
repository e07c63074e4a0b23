"""Shared by most tests: a small text, a dataset of it, a small network, a way to run commands."""

import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

os.environ["WANDB_ERROR_REPORTING"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the networks here are too small for more
# If a test starts threads nevertheless, they sleep while they wait: other tests need the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from hypothesis import HealthCheck, settings
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader

from llm.data.config import DataConfig
from llm.data.dataset import Dataset
from llm.data.prepare import prepare
from llm.model.gpt import GPT
from llm.training import throughput

# Seconds to wait for something before it counts as hung: no test depends on the speed of a machine.
HANGS = 1800
needs_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="needs Linux: /proc, or limits of a process"
)
ROOT = Path(__file__).resolve().parent.parent
PLAY = "".join(
    f"SPEAKER {n % 7}:\nWhat say you to line {n}? The {n % 13}th of our words, my lord.\n\n"
    for n in range(300)
)
TINY_MODEL = {"n_layer": 2, "n_embed": 32, "head_size": 16, "block_size": 16}
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")
# Overrides that make a run take seconds. Commands run in a folder of their own, without W&B.
TINY_RUN = [
    "model.n_layer=1", "model.n_embed=32", "model.head_size=16", "model.block_size=16",
    "trainer.max_steps=6", "trainer.batch_size=4", "trainer.eval_interval=3",
    "trainer.eval_batches=2", "trainer.log_interval=1", "trainer.checkpoint_interval=2",
    "trainer.device=cpu", "logger=none",
]  # fmt: skip


def entered(folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of ``folder`` below ``place``, which is the current folder until the test ends."""
    copy = Path(shutil.copytree(folder, place / "copy", symlinks=True))
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with some 18,000 characters of a made-up play."""
    path = tmp_path_factory.mktemp("text") / "play.txt"
    path.write_text(PLAY, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def dataset(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """:func:`text_file` by characters, its last tenth for validation."""
    config = DataConfig(
        name="play", corpus="text", dir=str(tmp_path_factory.mktemp("data")), path=str(text_file),
        tokenizer="char", val_fraction=0.1,
    )  # fmt: skip
    return Dataset.open(prepare(config))


@pytest.fixture
def tiny_model(dataset: Dataset) -> GPT:
    """Two layers of width 32 over the characters of :func:`dataset`."""
    import torch

    torch.manual_seed(0)
    return GPT(**TINY_MODEL, vocab_size=dataset.tokenizer.vocab_size)


@pytest.fixture
def run(tmp_path: Path, text_file: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command as a user would, in an empty folder: ``run("train", *TINY_RUN)``.

    ``train`` and ``prepare`` get :func:`text_file` as their data unless some is given.
    """

    def inner(
        command: str,
        *typed: str,
        cwd: Path = tmp_path,
        timeout: float = HANGS,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        given = any(argument.partition("=")[0] in ("data", "resume") for argument in typed)
        data = ["data=text", f"data.path={text_file}", "data.tokenizer=char"]
        data = [] if given or command == "sample" else data
        return subprocess.run(
            [sys.executable, str(ROOT / f"run_{command}.py"), *data, *typed],
            cwd=cwd, timeout=timeout, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"} | environment,
        )  # fmt: skip

    return inner


@pytest.fixture(scope="session", autouse=True)
def hangup_ends() -> Iterator[None]:
    """SIGHUP ends a process as usual, even if nohup started the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


measured_once = functools.cache(throughput.measured_matmul_flops)


@pytest.fixture(scope="session", autouse=True)
def known_cpu() -> Iterator[None]:
    """Each trainer asks how fast the CPU is, which takes longer than most trainings here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput, "measured_matmul_flops", measured_once)
        yield


@pytest.fixture(scope="session", autouse=True)
def parsed_once() -> Iterator[None]:
    """Each command reads the files of ``conf/``: equal texts are parsed once."""
    load = OmegaConf.load
    parsed = functools.cache(partial(yaml.load, Loader=get_yaml_loader()))

    def inner(file: Any) -> Any:
        try:
            values = parsed(file.read())
            return OmegaConf.create({} if values is None else values)
        except (AttributeError, ValueError, yaml.YAMLError):  # the real one names the file
            if hasattr(file, "seek"):
                file.seek(0)
            return load(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", inner)
        yield


LINE = "line to print"


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print a line at the end of the test run."""
    return lambda text: request.node.user_properties.append((LINE, text))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # This gets the lines from the workers of pytest-xdist too.
    for kind in ("passed", "failed"):
        for done in terminalreporter.stats.get(kind, []):
            for name, text in getattr(done, "user_properties", []):
                if name == LINE and done.when == "call":
                    terminalreporter.write_line(text)
