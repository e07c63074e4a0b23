"""``run_plan.py`` as typed: its output, exit status, files and imports."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import here, listing
from tests.conftest import HANGS, ROOT, TINY_RUN

SMALL = ["model=small", "data=shakespeare", "precision=fp16", "trainer.device=cuda"]


def test_a_single_plan_shows_the_parts_and_writes_nothing(tmp_path: Path) -> None:
    done = here("plan", *SMALL, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for words in (
        "planned for  cuda, fp16", "109,428,480 parameters", "weights", "optimizer state",
        "reserve (assumed)", "600.0", "total", "training step", "evaluation", "checkpoint",
        "fits memory.budget_gib=4, with",
    ):  # fmt: skip
        assert words in done.stdout
    assert not list(tmp_path.iterdir())


def test_lora_is_planned_and_trained_only_from_weights(tmp_path: Path) -> None:
    done = here("plan", *SMALL, "finetune=lora", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "583,680 parameters are trained, of rank 4" in done.stdout
    assert "adapters" in done.stdout
    trained = here("train", "finetune=lora", cwd=tmp_path)
    assert (trained.returncode, trained.stdout) == (2, "")
    assert "finetune=lora needs trained weights: add init_from=FOLDER" in trained.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_of_custom_options_leaves_a_grid_a_grid(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    pairs = ["model.n_layer=2,8", "model.n_embed=256,128", "zip=model.n_layer,model.n_embed"]
    command = [sys.executable, str(ROOT / "run_plan.py"), "--config-dir", "mine", *pairs]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANGS)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("│ model.n_layer=") == 2


def test_the_device_chosen_by_auto_is_named(tmp_path: Path) -> None:
    done = here("plan", cwd=tmp_path)
    assert "planned for  cpu, fp32 (trainer.device=auto: no NVIDIA driver here)" in done.stdout


def test_a_run_that_does_not_fit_is_refused_only_with_fit_check(tmp_path: Path) -> None:
    large = ["model=medium", "trainer.batch_size=64", "memory.budget_gib=2"]
    done = here("plan", *large, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "does not fit memory.budget_gib=2: it takes" in done.stdout
    checked = here("plan", *large, "memory.fit=check", cwd=tmp_path)
    assert checked.returncode == 2
    assert checked.stderr.startswith("run_plan.py: the run would take 30.54 GiB (training step), ")
    assert checked.stderr.count("\n") == 1
    assert checked.stdout == done.stdout
    impossible = [*large, "memory.fit=auto", "model.n_layer=512", "model.n_embed=8192"]
    done = here("plan", *impossible, cwd=tmp_path)
    assert done.returncode == 2
    assert "memory.fit=auto finds nothing that fits" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_grid_makes_one_table_one_picture_and_no_other_folder(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    grid = ["model=small", "model.n_layer=4,8", "model.n_embed=384,768,1024"]
    done = here("plan", *grid, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("model.n_layer=8 model.n_embed=") == 3
    assert "model.n_layer \\ model.n_embed" in done.stdout
    files = {path for path in listing(tmp_path) if (tmp_path / path).is_file()}
    assert {Path(path).suffix for path in files} == {".png", ".csv"}
    assert listing(tmp_path) == {"outputs", "outputs/plans", *files}
    assert all(path in done.stdout for path in files)
    with next(tmp_path.rglob("*.csv")).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model.n_layer"], row["model.n_embed"]) for row in rows] == [
        (layers, width) for layers in ("4", "8") for width in ("384", "768", "1024")
    ]
    again = here("plan", "-m", *grid, "picture=it's (a) plan.png", cwd=tmp_path)
    assert again.returncode == 0
    assert (tmp_path / "it's (a) plan.png").exists() and (tmp_path / "it's (a) plan.csv").exists()
    assert again.stdout.partition("GiB at the peak")[0] == done.stdout.partition("GiB at the")[0]


def test_a_single_plan_has_a_picture_where_one_is_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert here("plan", "picture=a.png", cwd=tmp_path).returncode == 0
    assert listing(tmp_path) == {"a.png"}


def test_without_matplotlib_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = here("plan", "model.n_layer=1,2", "picture=a.png", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.count("no picture: pip install -c constraints.txt matplotlib\n") == 1
    assert listing(tmp_path) == {"a.csv"}


def test_a_named_sweep_is_planned_for_the_keys_that_change_memory(tmp_path: Path) -> None:
    done = here("plan", "sweep=learning_rate", "experiment=fast", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    words = "30 points, 3 different ones: memory depends only on model.n_embed"
    assert words in done.stdout
    assert done.stdout.count("│ model.n_embed=") == 3
    assert "optimizer.lr=" not in done.stdout


def test_keys_that_advance_together_are_both_shown_and_drawn_without_a_map(tmp_path: Path) -> None:
    pairs = ["model.n_layer=2,4", "model.n_embed=64,32", "zip=model.n_layer,model.n_embed"]
    done = here("plan", *pairs, "seed=1,2", "picture=a.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    words = "4 points, 2 different ones: memory depends only on model.n_layer and model.n_embed"
    assert words in done.stdout
    for pair in ("model.n_layer=2 model.n_embed=64", "model.n_layer=4 model.n_embed=32"):
        assert f"│ {pair} │" in done.stdout
    assert listing(tmp_path) == {"a.png", "a.csv"}


def test_a_grid_in_which_nothing_fits_is_refused_after_its_table(tmp_path: Path) -> None:
    grid = ["model.n_layer=256,512", "model.n_embed=4096", "model.head_size=64"]
    done = here("plan", *grid, "memory.fit=auto", "picture=a.png", cwd=tmp_path)
    assert done.returncode == 2
    assert "│ model.n_layer=256 │" in done.stdout
    said = (
        "run_plan.py: none of 2 points fits memory.budget_gib=4: the smallest, model.n_layer=256,"
    )
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
    some = here("plan", *grid, "memory.budget_gib=4,4000", "picture=a.png", cwd=tmp_path)
    assert (some.returncode, some.stderr) == (0, "")


@pytest.mark.parametrize("key", ["n_layer", "n_embed", "block_size", "trainer.micro_batch_size"])
def test_the_largest_value_that_fits_fits_and_the_next_does_not(key: str, tmp_path: Path) -> None:
    done = here("plan", "model=tiny", f"memory.largest={key}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sentence = done.stdout.splitlines()[-1]
    size = re.match(rf"largest {key} that fits: ([\d,]+) ", sentence)
    assert size, sentence
    two = here("plan", "model=tiny", f"memory.largest={key}", "seed=1,2", cwd=tmp_path)
    assert sentence in two.stdout
    larger = re.search(r"; ([\d,]+) takes", sentence)
    full = key if "." in key else f"model.{key}"
    for found, verdict in ((size, "fits memory.budget_gib=4"), (larger, "does not fit memory.bud")):
        if found:
            number = found[1].replace(",", "")
            one = here("plan", "model=tiny", f"{full}={number}", cwd=tmp_path)
            assert any(line.startswith(verdict) for line in one.stdout.splitlines()), one.stdout
    assert larger or key == "trainer.micro_batch_size"  # the whole batch may fit


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["model.n_layer=4,x"], "job model.n_layer=x cannot run: model.n_layer=x: Value 'x' of"),
        (["model.n_layer=x"], "model.n_layer=x: Value 'x' of type 'str' could not be converted"),
        (
            ["modl.n_layer=4,8"],
            "job modl.n_layer=4 cannot run: modl.n_layer is unknown: there is no",
        ),
        (["model=smal", "seed=1,2"], "model=smal is unknown: take one of"),
        (["memory.largest=n_head"], "memory.largest=n_head must be one of n_layer, n_em"),
        (["memory.budget_gib=-1"], "memory.budget_gib=-1.0 must be more than 0"),
        (["memory.budget_gib=0.5"], "memory.budget_gib=0.5 leaves nothing beside the reserve of"),
        (["trainer.device=gpu"], "trainer.device=gpu is unknown: take auto, cuda, mps or cpu"),
        (["resume=outputs/none"], "resume=outputs/none does not exist"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    typed: list[str], said: str, tmp_path: Path
) -> None:
    done = here("plan", *typed, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("run_plan.py: ") and said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_is_planned_with_its_settings(tmp_path: Path, text_file: Path) -> None:
    text = ["data=text", f"data.path={text_file}", "data.tokenizer=char"]
    unknown = here("plan", *text, cwd=tmp_path)
    assert "data.vocab_size is unknown before the text is read" in unknown.stderr
    trained = here("train", *text, *TINY_RUN, "run.name=a", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    prepared = here("plan", *text, cwd=tmp_path)
    assert (prepared.returncode, prepared.stderr) == (0, ""), "meta.json has it now"
    before = listing(tmp_path)
    done = here("plan", "resume=outputs/a", "trainer.micro_batch_size=2", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 layer, width 32, 2 heads of 16" in done.stdout
    assert "4 sequences of 16 in 2 micro-batches" in done.stdout
    plain = here("plan", "hydra.mode=RUN", cwd=tmp_path)
    assert "planned for" in plain.stdout, "also as a single run of Hydra's"
    assert listing(tmp_path) == before


def imported(cwd: Path, *typed: str) -> set[str]:
    """The modules that the command imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "run_plan.py"), *typed],
        cwd=cwd, capture_output=True, text=True, timeout=HANGS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.splitlines()[-1]
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def test_one_plan_needs_no_torch(tmp_path: Path) -> None:
    loaded = imported(tmp_path, *SMALL, "trainer.device=cpu")  # no GPU is asked for it
    assert "llm.memory.predict" in loaded
    assert not {"torch", "wandb", "numpy", "tiktoken", "matplotlib"} & loaded


def test_a_grid_with_its_picture_needs_no_torch(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    grid = ["model.n_layer=1,2", "model.n_embed=128,256"]
    loaded = imported(tmp_path, *SMALL, "trainer.device=cpu", *grid, "picture=a.png")
    assert "matplotlib" in loaded
    assert not {"torch", "wandb"} & loaded
