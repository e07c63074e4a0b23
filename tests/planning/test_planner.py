"""A grid becomes the settings that Hydra would have composed one by one, with few compositions."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf

from llm.config.compose import read_settings
from llm.config.planner import Planner, as_points
from llm.errors import Refused
from llm.memory.fit import Fitted
from llm.memory.lora import LoRA
from llm.memory.predict import predict
from llm.options import validate
from llm.planning import setup as plan
from llm.planning.plan import refusal
from llm.planning.points import Point, plan_all
from llm.settings.saved import to_yaml
from llm.settings.schema import PlanSettings, TrainSettings
from tests.command_line import composed
from tests.conftest import HANGS, ROOT


@pytest.fixture(autouse=True)
def own_hydra_config() -> Iterator[None]:
    """What a single plan tells Hydra is forgotten again."""
    before = HydraConfig.instance().cfg
    yield
    HydraConfig.instance().cfg = before


@pytest.fixture(autouse=True)
def no_gpu_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers on every machine."""
    plan.ask_gpu.cache_clear()
    monkeypatch.setattr(plan, "DRIVERS", ())


def points(*typed: str) -> list[Point[PlanSettings]]:
    """What ``python run_plan.py *typed`` hands to its main function."""
    return counted(*typed)[0]


def counted(*typed: str) -> tuple[list[Point[PlanSettings]], int]:
    """The same, and how often Hydra has composed something for it."""
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        loader = hydra.config_loader
        config = loader.load_configuration("plan", list(typed), RunMode.MULTIRUN)
        made: list[Point[PlanSettings]] = []
        found = Plugins.instance().instantiate_sweeper(
            hydra_context=HydraContext(loader, Callbacks()),
            task_function=as_points(made.extend),
            config=config,
        )
        assert isinstance(found, Planner)
        with patch.object(loader, "load_sweep_config", wraps=loader.load_sweep_config) as compose:
            arguments = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
            found.sweep(cast(list[str], arguments))
        return made, compose.call_count


def alone(*typed: str) -> PlanSettings:
    """The settings of one point, all by Hydra."""
    return read_settings(composed("plan", *typed), PlanSettings)


GRIDS = [
    (["model=small", "model.n_layer=4,8", "model.n_embed=384,768"], 4, 1),
    (["model=small,medium", "trainer.batch_size=4,8,16", "precision=fp16"], 6, 2),
    (["optimizer=adamw,muon", "optimizer.betas=[0.9,0.95],[0.8,0.9]", "seed=1,2"], 8, 2),
    (["trainer.micro_batch_size=null,2", "memory.budget_gib=1,2.5", "seed=1,2"], 8, 1),
    (["model.n_layer=range(4,17,4)", "optimizer.lr=choice(1e-3,2e-3)"], 8, 1),
    (["model.n_head=2,4", "model.intermediate_size=${model.n_embed}"], 2, 2),
    (["model.n_layer=2,3", "model.intermediate_size=64,${model.n_embed}"], 4, 3),
    (["model={n_layer:2},{n_head:2}", "seed=3"], 2, 2),
    (["sweep=depth"], 4, 1),
    (["sweep=depth", "model.n_layer=3,5"], 2, 1),
    (["sweep=transfer_depth", "optimizer.lr=1e-2", "seed=4"], 2, 1),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "count", "compositions"), GRIDS, ids=[g[0][0] for g in GRIDS])
def test_each_point_is_what_hydra_would_have_composed(
    typed: list[str], count: int, compositions: int
) -> None:
    found, composed_times = counted(*typed)
    assert (len(found), composed_times) == (count, compositions)
    assert len({point.label for point in found}) == count
    given = [word for word in typed if word.partition("=")[0] not in found[0].values]
    for point in found:
        assert point.settings == alone(*given, *point.label.split(" "))


def test_a_glob_is_all_options_of_a_group() -> None:
    found, composed_times = counted("model=glob([n*,s*])", "model.n_layer=1,2")
    labels = [point.label for point in found]
    assert labels[::2] == ["model=nano model.n_layer=1", "model=small model.n_layer=1"]
    assert composed_times == 2


def test_one_plan_is_a_list_of_one_and_nothing_more_is_composed() -> None:
    found, composed_times = counted("model=small")
    assert found == [Point(alone("model=small"), {})]
    assert composed_times == 0


def test_a_point_shares_nothing_with_another_that_could_change_it() -> None:
    first, second = points("optimizer.betas=[0.9,0.95],[0.8,0.9]")
    assert first.settings.optimizer is not second.settings.optimizer
    assert first.settings.optimizer.betas == [0.9, 0.95]


MISTAKES = [
    (["model.n_layer=4,abc"], "job model.n_layer=abc cannot run: model.n_layer=abc: Value 'abc'"),
    (["model.n_layers=4,8"], "job model.n_layers=4 cannot run: model.n_layers is unknown"),
    (["+model.x=4,8"], "job +model.x=4 cannot run: model.x is unknown"),
    (["model=small,smal"], "job model=smal cannot run: model=smal is unknown: take one of"),
    (["model.n_embed=128,100", "seed=1"], "job model.n_embed=100 cannot run: model.n_embed=100 is"),
    (["trainer.batch_size=8,9", "trainer.micro_batch_size=4"], "batch_size=9 cannot run: trainer"),
    (["model.n_layer=range(4,4)"], "n_layer=range(4,4) has no values, so there is nothing"),
    (["model=glob(zz*)"], "model=glob(zz*) has no values, so there is nothing to run"),
    (["sweep=depth,width"], "sweep= says what to sweep over, so it cannot vary"),
    (["model.n_layer=interval(1,4)"], "is a continuous range: take range(...) or choice(...)"),
    (["seed=range(0,200)", "model.n_layer=range(1,200)"], "these are 39,800 combinations"),
    (["seed=range(0,100000000000)"], "range(0,100000000000) has more than 20,000 values: take"),
    (["memory.budget_gib=0.1,4"], "job memory.budget_gib=0.1 cannot run: memory.budget_gib=0.1 le"),
    (["memory.largest=n_layer,seed"], "memory.largest=seed must be one of n_layer, n_em"),
    (["resume=outputs/a", "seed=1,2"], "resume= continues one run"),
    (["finetune.rank=4,0"], "job finetune.rank=0 cannot run: finetune.rank=0 must be at least 1"),
    (["finetune.targets=[q,x]"], "finetune.targets=x must be some of"),
    (["picture=plan.jpg"], "picture=plan.jpg must be the name of a PNG"),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "words"), MISTAKES, ids=[words for _, words in MISTAKES])
def test_a_mistake_is_told_with_the_job_it_is_in(typed: list[str], words: str) -> None:
    with pytest.raises(Refused) as refusal:
        plan_all(points(*typed))
    assert words in str(refusal.value)


# From settings to what memory depends on.


def test_the_setup_is_resolved_as_a_run_resolves_it() -> None:
    settings = alone("model=small", "data=shakespeare", "trainer.batch_size=12", "optimizer=adamw")
    found = plan.setup_of(settings, "cuda")
    assert (found.model.vocab_size, found.model.n_head) == (50_304, 6), "padded to a multiple of 64"
    assert (found.optimizer, found.state_bits, found.precision) == ("adamw", 32, "bf16")
    assert (found.batch_size, found.micro_batch, found.device) == (12, 12, "cuda")
    assert (found.samples, found.compile) == (False, False)
    other = ["trainer.sample_interval=5", "trainer.micro_batch_size=2"]
    overflowing = plan.setup_of(alone("precision=fp16", *other), "cpu")
    assert overflowing.precision == "fp16"
    found = plan.setup_of(alone("precision=bf16", *other), "cpu")
    assert (found.precision, found.micro_batch) == ("bf16", 2)
    assert (found.model.vocab_size, found.samples) == (77, True)
    assert plan.setup_of(alone(), "mps").device == plan.setup_of(alone(), "cpu").device == "cpu"
    assert plan.setup_of(alone(), "cpu").precision == "fp32"


def test_lora_is_planned_where_a_rank_is_given() -> None:
    plain, low = plan_all(points("model=small", "finetune.rank=null,8", "finetune.targets=[q,v]"))
    assert (plain.setup.lora, low.setup.lora) == (None, LoRA(8, ("q", "v")))
    assert low.prediction.total < plain.prediction.total
    (every,) = plan_all(points("model=small", "finetune.rank=8"))
    assert every.setup.lora == LoRA(8)
    gate = ["model.mlp=swiglu,gelu", "finetune.rank=8", "finetune.targets=[gate]"]
    with pytest.raises(Refused, match=r"job model.mlp=gelu cannot run: finetune.targets=gate: the"):
        plan_all(points(*gate))


def test_what_was_changed_to_fit_is_put_into_the_settings() -> None:
    settings: TrainSettings = alone("model=small")
    setup = plan.setup_of(settings, "cpu")
    changed = dataclasses.replace(
        setup, micro_batch=2, activation_checkpointing="full", state_bits=8,
        model=dataclasses.replace(setup.model, loss="chunked"),
    )  # fmt: skip
    applied = plan.apply(settings, Fitted(changed, predict(changed, {})))
    assert plan.setup_of(applied, "cpu") == changed
    validate(applied)
    assert plan.apply(applied, Fitted(changed, predict(changed, {}))) == applied
    assert settings == alone("model=small"), "the settings themselves stay as they were"


@pytest.mark.parametrize("there", [True, False])
def test_auto_is_cuda_where_there_is_a_driver(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "DRIVERS", (ROOT / "no_such_file", *[ROOT / "llm"] * there))
    names = ("auto", "cuda", "cuda:1", "cpu", "mps")
    auto = "cuda" if there else "cpu"
    assert [plan.planned_device(name) for name in names] == [auto, "cuda", "cuda", "cpu", "cpu"]
    with pytest.raises(Refused, match=r"trainer\.device=gpu is unknown: take auto, cuda, mps"):
        plan.planned_device("gpu")


def test_only_what_changes_memory_makes_another_plan() -> None:
    found = points("model.n_layer=1,2", "seed=1,2,3", "optimizer.lr=1e-3,2e-3")
    assert len(found) == 12
    plans = plan_all(found)
    assert [one.label for one in plans] == ["model.n_layer=1", "model.n_layer=2"]
    (same,) = plan_all(points("seed=1,2"))
    assert (same.label, same.values) == ("", {})
    budgets = plan_all(points("memory.budget_gib=1,2", "seed=1,2"))
    assert [one.budget for one in budgets] == [2**30, 2**31]


def test_a_plan_knows_whether_it_fits_and_what_makes_it_fit() -> None:
    large, small = plan_all(points("model=medium", "memory.budget_gib=2,20"))
    assert (large.fits, small.fits) == (False, True)
    assert small.fitted is not None and small.fitted.changes == ()
    assert large.started is None and large.taken is large.prediction
    assert large.reserve == {"reserve (assumed)": 600 * 2**20}
    (given,) = plan_all(points("memory.reserve_mib=10"))
    assert given.prediction.reserve == {"reserve (as given)": 10 * 2**20}


GPU = (410 * 2**20, 3 * 2**30)


def test_a_plan_for_a_gpu_has_what_is_measured_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "ask_gpu", {"cuda": GPU, "cuda:1": None}.get)
    there, elsewhere, cpu = plan_all(points("trainer.device=cuda,cuda:1,cpu"))
    assert there.reserve == {"CUDA context and others (measured)": GPU[0]}
    assert there.budget == GPU[1]  # the GPU is smaller than memory.budget_gib=4
    for unknown in (elsewhere, cpu):
        assert unknown.reserve == {"reserve (assumed)": 600 * 2**20}
        assert unknown.budget == 4 * 2**30
    assert len(plan_all(points("trainer.device=cuda,cuda:1"))) == 2
    # Where less is measured than would be assumed, so much less is enough.
    (small,) = plan_all(points("trainer.device=cuda", "memory.budget_gib=0.5"))
    assert small.budget == 2**29
    with pytest.raises(Refused, match=r"0\.4 leaves nothing beside the reserve of 410 MiB: take m"):
        plan_all(points("trainer.device=cuda", "memory.budget_gib=0.4"))
    with pytest.raises(
        Refused, match=r"the GPU's 3 GiB leaves .* of 4000 MiB: take a smaller memory"
    ):
        plan_all(points("trainer.device=cuda", "memory.reserve_mib=4000", "memory.budget_gib=9"))
    large = ["trainer.device=cuda", "model=medium", "model.n_layer=99", "memory.fit=check"]
    told = refusal(plan_all(points(*large)), 1)
    assert told and "does not fit the GPU's 3 GiB: it takes" in told
    assert told.endswith("take a smaller model or batch")


def test_a_process_of_its_own_is_asked_about_the_gpu_and_only_where_there_is_a_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[Any] = []
    ask = plan.ask_gpu.__wrapped__
    monkeypatch.chdir(tmp_path)  # wherever one stands

    def watched(*command: Any, **options: Any) -> Any:
        try:
            ended.append(run(*command, **options))
        except subprocess.TimeoutExpired as error:
            ended.append(error)
            raise
        return ended[-1]

    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", watched)
    monkeypatch.setattr(plan, "PATIENCE", HANGS)
    monkeypatch.setattr(plan, "DRIVERS", (tmp_path / "no_such_file",))
    assert ask("cuda") is None and not ended
    monkeypatch.setattr(plan, "DRIVERS", (tmp_path,))
    assert ask("cuda:99") is None and "trainer.device=cuda:99" in ended[-1].stderr
    assert ask("cpu") is None
    kind, held, total = json.loads(ended[-1].stdout)
    assert (kind, total) == ("cpu", None) and held > 0, "it has answered, and is no GPU"
    monkeypatch.setattr(plan, "PATIENCE", 0.01)
    assert ask("cpu") is None and isinstance(ended[-1], subprocess.TimeoutExpired)
    assert "cpu has not answered for 0.01 s" in capsys.readouterr().out
    answer = subprocess.CompletedProcess("", 0, 'a word before it\n["cuda", 5, 7]\n', "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    assert ask("cuda") == (5, 7)


WITH_TORCH = """
import json, torch
from llm.device import process_memory
print(json.dumps(["cpu", process_memory(torch.device("cpu")), None]))
"""


def test_the_process_that_is_asked_measures_what_one_with_torch_holds() -> None:
    told = []
    for code in (["-m", "llm.device", "cpu"], ["-c", WITH_TORCH]):
        command = [sys.executable, *code]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        told.append(json.loads(found.stdout))
    (kind, held, _), (_, held_with_torch, _) = told
    assert told[0] == [kind, held, None] and kind == "cpu"
    assert held == pytest.approx(held_with_torch, rel=0.1)
    assert list(plan.measured(kind, held)) == ["process (measured)", "libraries", "W&B"]
    assert list(plan.measured(kind, held, wandb=False)) == ["process (measured)", "libraries"]


def test_only_a_run_needs_the_library_of_8_bit_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    typed = ["optimizer.state_bits=8", "optimizer=adamw"]
    (planned,) = plan_all(points(*typed))
    assert planned.setup.state_bits == 8
    with pytest.raises(Refused, match=r"state_bits=8 needs bitsandbytes: pip install -c constr"):
        read_settings(composed("train", *typed), TrainSettings)
    settings = read_settings(composed("train", "optimizer=adamw"), TrainSettings)
    eight = dataclasses.replace(settings.optimizer, state_bits=8)
    only_compared = {"optimizer": eight, "resume": "a", "verify": True}
    validate(dataclasses.replace(settings, **only_compared))


def test_what_continues_a_run_keeps_the_bits_of_its_state(tmp_path: Path) -> None:
    one = points("model=medium", "data=shakespeare", "optimizer=adamw")[0]
    new = plan_all([one])[0]
    saved = to_yaml(one.settings.resolve(plan.vocabulary(one.settings) or 0, "fp32"))
    (tmp_path / "config.yaml").write_text(saved, encoding="utf-8")
    begun = plan_all([Point(dataclasses.replace(one.settings, resume=str(tmp_path)), {})])[0]
    assert any(way.setup.state_bits == 8 for way in new.ways)
    assert not any(way.setup.state_bits == 8 for way in begun.ways)
    assert begun.fitted is None or begun.fitted.setup.state_bits == 32


def test_words_of_a_vocabulary_that_is_not_known_yet() -> None:
    text = ["data=text", "data.path=no_such_file", "data.tokenizer=char"]
    with pytest.raises(
        Refused, match=r"not known before the text is read: give data\.vocab_size=N"
    ):
        plan_all(points(*text))
    assert plan.vocabulary(alone(*text)) is None
    (found,) = plan_all(points(*text, "data.vocab_size=65"))
    assert found.setup.model.vocab_size == 65
