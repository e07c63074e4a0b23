"""The house keeps its floors: a room imports only lower ones, and only one room knows Hydra."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = [
    {"errors"},
    {"model", "data"},
    {"checkpoint"},
    {"sampling", "evaluation", "memory", "interchange"},
    {"training"},
    {"experiment"},
    {"config"},
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


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def room(path: Path) -> str:
    return path.relative_to(ROOT / "llm").parts[0].removesuffix(".py")


def test_every_room_has_a_floor() -> None:
    assert {room(path) for path in MODULES} - {"__init__"} <= set(FLOOR_OF)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_its_own_room_and_lower_floors(path: Path) -> None:
    own = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "llm" and len(parts) > 1 and parts[1] in FLOOR_OF and parts[1] != own:
            assert FLOOR_OF[parts[1]] < FLOOR_OF[own], f"{path} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_config_room_knows_hydra(path: Path) -> None:
    if room(path) != "config":
        known = {name.split(".")[0] for name in imports(path)}
        assert not known & {"hydra", "omegaconf", "hydra_plugins", "yaml"}


def test_the_shape_of_a_model_can_be_planned_without_torch() -> None:
    for name in (
        "model/config.py",
        "data/config.py",
        "training/options.py",
        "training/schedule.py",
    ):
        assert not {
            n for n in imports(ROOT / "llm" / name) if n.split(".")[0] in ("torch", "numpy")
        }


def test_what_a_newcomer_reads_to_understand_training_is_under_900_lines() -> None:
    path = [
        ROOT / "run_train.py",
        ROOT / "llm/training/trainer.py",
        *(ROOT / "llm/model").glob("*.py"),
    ]
    assert sum(len(p.read_text(encoding="utf-8").splitlines()) for p in path) < 900


def test_no_file_is_longer_than_one_sitting() -> None:
    long = {
        p.name: n for p in MODULES if (n := len(p.read_text(encoding="utf-8").splitlines())) > 330
    }
    assert not long
