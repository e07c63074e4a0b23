"""No line of the program unpickles, unpacks, evaluates, or starts a shell: ruff checks it."""

import re
import subprocess
import sys

from tests.conftest import ROOT

SCRIPTS = sorted(path.name for path in ROOT.glob("run_*.py"))


def ruff(*arguments: str, source: str | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", *arguments]
    return subprocess.run(command, input=source, cwd=ROOT, capture_output=True, text=True)


def test_ruff_finds_nothing_and_no_line_is_exempt() -> None:
    done = ruff("llm", "benchmarks", *SCRIPTS)
    assert done.returncode == 0, done.stdout
    files = [*(ROOT / "llm").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    texts = [path.read_text(encoding="utf-8") for path in [*files, *map(ROOT.joinpath, SCRIPTS)]]
    assert not re.findall(r"# noqa: (?:S\d+|TID\d+)", "".join(texts))


BAD = [
    "import pickle\npickle.load(f)", "import marshal\nmarshal.loads(x)", "import tarfile",
    "import dill\ndill.load(f)", "import shelve\nshelve.open(f)", "import joblib",
    "import torch as t\nt.load(f, weights_only=True)", "from torch import load", "eval(x)",
    "exec(x)", "import builtins", "import numpy as np\nnp.load(f)", "import os\nos.system(x)",
    "import yaml\nyaml.load(f, Loader=yaml.FullLoader)", "import yaml\nyaml.unsafe_load(f)",
    "import subprocess\nsubprocess.run(x, shell=True)", "import shutil\nshutil.unpack_archive(x)",
    "import importlib\nimportlib.import_module(x)", "from hydra.utils import instantiate",
    "import hydra\nhydra.utils.get_object(x)", "import torch\ntorch.jit.load(x)",
]  # fmt: skip


def test_ruff_finds_each_dangerous_call() -> None:
    for bad in BAD:
        done = ruff("--select", "S,TID251", "--stdin-filename", "llm/x.py", "-", source=bad)
        assert done.returncode == 1, bad
