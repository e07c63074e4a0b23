"""The house keeps its floors: a room imports only lower ones, and only one room knows Hydra."""

import ast
import re
import sys
from pathlib import Path
from types import FrameType
from unittest.mock import patch

import pytest

from llm.training.trainer import Trainer
from tests.command_line import here
from tests.conftest import PLAY, TINY_RUN

ROOT = Path(__file__).resolve().parent.parent
FLOORS = [
    {"errors"},
    {"units"},
    {"device", "disk", "options", "sealed", "signals", "terminal", "commands", "version"},
    {"lock", "answer", "plain_yaml"},
    {"start"},
    {"functional"},
    {"model", "data"},
    {"checkpoint"},
    {"sampling", "evaluation", "memory", "interchange"},
    {"training"},
    {"experiment"},
    {"settings"},
    {"planning", "report"},
    {"recipe", "tasks"},
    {"config"},
    {"api"},
    {"__main__", "__init__"},
]
FLOOR_OF = {room: number for number, floor in enumerate(FLOORS) for room in floor}
MODULES = sorted((ROOT / "llm").rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def packages(path: Path) -> set[str]:
    """The first parts of those names."""
    return {name.split(".")[0] for name in imports(path)}


def room(path: Path) -> str:
    return path.relative_to(ROOT / "llm").parts[0].removesuffix(".py")


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def broken_floors(path: Path) -> list[str]:
    """What a module imports from a floor that is not below its own."""
    own, broken = room(path), []
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "llm" and len(parts) > 1 and parts[1] in FLOOR_OF and parts[1] != own:
            broken += [name] if FLOOR_OF[parts[1]] >= FLOOR_OF.get(own, 0) else []
    return broken


def test_every_room_has_a_floor() -> None:
    assert {room(path) for path in MODULES} <= set(FLOOR_OF)


def test_a_module_imports_only_its_own_room_and_lower_floors() -> None:
    assert not {str(path): broken for path in MODULES if (broken := broken_floors(path))}


def test_only_the_config_room_knows_hydra() -> None:
    hydra = {"hydra", "omegaconf", "hydra_plugins"}
    known = {str(path) for path in MODULES if packages(path) & hydra}
    assert known
    assert all("/llm/config/" in path for path in known)


def test_the_plain_settings_can_be_read_without_torch() -> None:
    for name in ("model/config", "data/config", "training/options", "training/schedule"):
        assert not packages(ROOT / "llm" / f"{name}.py") & {"torch", "numpy"}


def test_what_a_newcomer_reads_to_understand_training_is_under_900_lines() -> None:
    path = [ROOT / "run_train.py", ROOT / "llm/training/trainer.py"]
    # Fine-tuning is a topic of its own: a run that trains all weights does not use these.
    network = set((ROOT / "llm/model").glob("*.py")) - {
        ROOT / "llm/model/finetune.py", ROOT / "llm/model/lora.py", ROOT / "llm/model/quantised.py",
    }  # fmt: skip
    assert sum(map(lines, [*path, *network])) <= 900


def lines_of_called(tmp_path: Path) -> int:
    """The lines of all functions of ``llm`` that the loop calls in a run of ``experiment=fast``."""
    called: set[tuple[str, int, str]] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(ROOT / "llm")):
            called.add((code.co_filename, code.co_firstlineno, code.co_name))

    def watched(trainer: Trainer) -> object:
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            return fit(trainer)
        finally:
            sys.setprofile(before)

    fit = Trainer.fit
    with patch.object(Trainer, "fit", watched):
        typed = [word for word in TINY_RUN if not word.startswith(("optimizer", "schedule"))]
        (tmp_path / "play.txt").write_text(PLAY, encoding="utf-8")
        data = ["data=text", "data.path=play.txt", "data.tokenizer=byte", "experiment=fast"]
        assert here("train", *data, *typed, "run.dir=run", cwd=tmp_path).returncode == 0
    count = 0
    for file, first, name in called:
        for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name == name and node.end_lineno:
                start = min([node.lineno, *(one.lineno for one in node.decorator_list)])
                count += (node.end_lineno - first + 1) * (start == first)
    return count


def test_the_readme_says_how_many_lines_the_loop_calls(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"the loop calls,[^.]* are about ([\d,]+) lines", readme)
    assert found is not None
    said, counted = int(found[1].replace(",", "")), lines_of_called(tmp_path)
    assert abs(counted - said) <= 100, counted


def test_no_file_is_longer_than_one_sitting() -> None:
    assert not {path.name: n for path in MODULES if (n := lines(path)) > 330}


def test_the_checks_above_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_layers.ROOT", tmp_path)
    path = tmp_path / "llm" / "model" / "wrong.py"
    path.parent.mkdir(parents=True)
    path.write_text("def f():\n    from llm.training.trainer import Trainer\n", encoding="utf-8")
    assert "llm.training.trainer" in broken_floors(path)
