"""What no line of this program does: run what is in a file, unpack archives, call a shell."""

import ast
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT

FILES = sorted([*(ROOT / "llm").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])
FILES += sorted(ROOT.glob("run_*.py"))
BUILDS = "llm/settings/build.py"  # the only place where a name becomes a class
UNPICKLE = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
MODULES = UNPICKLE | {"tarfile", "pickletools", "jsonpickle", "yaml.cyaml"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
    "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "yaml.unsafe_load_all",
    "shutil.unpack_archive", "torch.jit.load", "torch.export.load", "torch.hub.load",
    "torch.package.PackageImporter",
}  # fmt: skip
METHODS = {"extract", "extractall", "add_safe_globals"}
ONLY_BUILDS = {"instantiate", "get_object", "get_class", "get_method", "call"}
MODULES_OF_NAMES = {"importlib.import_module", "importlib.__import__"}  # likewise
SAFE_LOADER = "_PlainLoader"  # of llm/settings/plain_yaml.py
NEEDED = {"torch.load": ("weights_only", True), "numpy.load": ("allow_pickle", False)}


def names_of(tree: ast.AST) -> dict[str, str]:
    """What each imported name stands for: ``np`` -> ``numpy``, ``load`` -> ``torch.load``."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom):
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return found


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """``torch.load`` for the expression that calls it; "" for what has no name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, names)}.{node.attr}"
    return ""


def faults(source: str, path: str = "llm/x.py") -> list[str]:
    """What is wrong in a piece of Python, a line each."""
    tree = ast.parse(source)
    names = names_of(tree)
    found = []
    for name in imported(tree):
        if name.split(".")[0] in MODULES or name in MODULES:
            found.append(f"imports {name}")
        if name.startswith("hydra.") and name.rpartition(".")[2] in ONLY_BUILDS and path != BUILDS:
            found.append(f"imports {name}")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, options = dotted(node.func, names), {k.arg: k.value for k in node.keywords}
        last = name.rpartition(".")[2] or getattr(node.func, "attr", "")
        wrong = [
            name in BUILTINS or name.removeprefix("builtins.") in BUILTINS,
            name in CALLS or name.split(".")[0] in MODULES,
            last in METHODS,
            name.startswith("hydra.") and last in ONLY_BUILDS and path != BUILDS,
            name in MODULES_OF_NAMES and path != BUILDS,
            name == "yaml.load" and not _loads_safely(node, options, names),
            name in NEEDED and not _is_constant(options.get(NEEDED[name][0]), NEEDED[name][1]),
            "shell" in options and not _is_constant(options["shell"], False),
            "trust_remote_code" in options,
            "allow_pickle" in options and not _is_constant(options["allow_pickle"], False),
            "weights_only" in options and not _is_constant(options["weights_only"], True),
        ]
        found += [f"line {node.lineno} calls {name or last}"] if any(wrong) else []
    return found


def _is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _loads_safely(
    node: ast.Call, options: dict[str | None, ast.expr], names: dict[str, str]
) -> bool:
    loader = options.get("Loader", node.args[1] if len(node.args) > 1 else None)
    return loader is not None and dotted(loader, names).rpartition(".")[2] == SAFE_LOADER


def test_nothing_is_unpickled_unpacked_evaluated_or_given_to_a_shell() -> None:
    assert len(FILES) > 60
    found = {}
    for path in FILES:
        name = str(path.relative_to(ROOT))
        found[name] = faults(path.read_text(encoding="utf-8"), name)
    assert not {name: wrong for name, wrong in found.items() if wrong}


def test_only_one_place_makes_objects_of_names() -> None:
    source = (ROOT / BUILDS).read_text(encoding="utf-8")
    assert faults(source, "llm/other.py")
    assert not faults(source, BUILDS)


def test_the_loader_that_is_trusted_is_a_safe_one() -> None:
    import yaml

    from llm.settings.plain_yaml import _PlainLoader

    assert issubclass(_PlainLoader, yaml.SafeLoader)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "def f():\n    import marshal",
        "import dill as d", "import joblib", "import tarfile", "from cloudpickle import load",
        "import torch\ntorch.load(f)", "import torch as t\nt.load(f, weights_only=False)",
        "from torch import load\nload(f)", "from torch import load as l\nl(f, weights_only=safe)",
        "import numpy as np\nnp.load(f)", "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import yaml\nyaml.load(f)", "import yaml\nyaml.load(f, yaml.Loader)",
        "import yaml\nyaml.load(f, yaml.UnsafeLoader)",
        "import yaml\nyaml.load(f, Loader=yaml.FullLoader)", "from yaml import load\nload(f)",
        "import yaml\nyaml.unsafe_load(f)", "eval(x)", "exec(x)", "compile(x, 'f', 'exec')",
        "import builtins\nbuiltins.eval(x)", "__import__(x)",
        "import os\nos.system(x)", "from os import system\nsystem(x)",
        "import subprocess\nsubprocess.run(x, shell=True)", "run(x, shell=how)",
        "archive.extractall(x)", "open_archive(x).extract(name)",
        "import shutil\nshutil.unpack_archive(x)",
        "import torch\ntorch.serialization.add_safe_globals([x])",
        "import importlib\nimportlib.import_module(x)",
        "import hydra\nhydra.utils.instantiate(x)", "from hydra.utils import get_object",
        "from hydra.utils import instantiate as make\nmake(x)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)", "import torch\ntorch.jit.load(x)",
        "np.load(f, mmap_mode='r', allow_pickle=allowed)",
    ],
)  # fmt: skip
def test_the_check_finds(source: str) -> None:
    assert faults(source)


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(f, weights_only=True)\ntorch.compile(model)\nmodel.eval()",
        "import numpy as np\nnp.load(f, allow_pickle=False)",
        "import yaml\nyaml.safe_load(f)\nyaml.load(f, Loader=_PlainLoader)",
        "import re\nre.compile(x)\njson.load(f)", "import subprocess\nsubprocess.run([x])",
        "'import pickle; eval(x)'",
    ],
)  # fmt: skip
def test_the_check_lets_pass(source: str) -> None:
    assert not faults(source)
