"""Every file of conf/ composes, fits its schema, explains its knobs and builds what it names."""

import functools
import inspect
import math
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_object
from omegaconf import OmegaConf

from llm.config.compose import read_settings
from llm.config.questions import question_of
from llm.model.gpt import GPT
from llm.options import validate
from llm.planning.points import plan_points
from llm.settings.build import build
from llm.settings.schema import (
    NO_KEY,
    SETTINGS,
    PrepareSettings,
    RunSection,
    TrainSettings,
)
from llm.training.options import TrainerOptions
from llm.training.schedule import Schedule
from tests.command_line import composed
from tests.config.test_planner import points
from tests.conftest import ROOT

CONF = ROOT / "conf"
FILES = sorted(CONF.rglob("*.yaml"))
# Keys that users and scripts rely on
CONTRACT = {
    "model": "n_layer n_embed n_head head_size n_kv_head block_size vocab_size dropout bias norm "
    "mlp position qk_norm tie_embeddings",
    "data": "name dir path tokenizer vocab_size val_fraction",
    "optimizer": "name lr weight_decay betas",
    "schedule": "name warmup_steps min_lr_ratio cooldown_fraction",
    "precision": "name",
    "memory": "budget_gib reserve_mib fit",
    "trainer": "max_steps max_minutes batch_size micro_batch_size grad_clip eval_interval "
    "eval_batches eval_only log_interval checkpoint_interval keep_last patience compile device "
    "sample_interval overfit_batches",
    "logger": "mode project entity name tags notes",
    "run": "name",
}
# The files that state all keys of their group; the others start from them.
FULL = [
    CONF / f"{name}.yaml"
    for name in (
        "model/nano", "data/shakespeare_char", "optimizer/adamw", "optimizer/muon",
        "schedule/cosine", "precision/auto", "trainer/default", "memory/default", "logger/wandb",
    )
]  # fmt: skip
SAMPLE = "ckpt prompt prompt_file num_samples max_new_tokens temperature top_k top_p min_p "
SAMPLE += "repetition_penalty frequency_penalty presence_penalty no_repeat_ngram stop seed device "
SAMPLE += "stream logprobs echo verify_cache benchmark"


def options(group: str) -> list[str]:
    found = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    assert found, group
    return found


def keys(path: Path) -> dict[str, Any]:
    found = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


@functools.cache
def settings_of(*overrides: str) -> TrainSettings:
    own = any(f"data={name}" in overrides for name in ("text", "chat", "instruct"))
    text = ["data.path=x.txt"] if own else []
    return read_settings(composed("train", *overrides, *text), TrainSettings)


def knobs(path: Path) -> list[str]:
    """The lines that give a key a value, except in the sections of Hydra itself."""
    found, skipping = [], False
    for line in path.read_text(encoding="utf-8").splitlines():
        if re.match(r"\S", line):
            skipping = line.startswith(("defaults:", "hydra:"))
        if not skipping and re.match(r" *\w+: [^|&#]", line):
            found.append(line)
    return found


@pytest.mark.parametrize("name", options("model"))
def test_every_model_is_built(name: str) -> None:
    settings = settings_of(f"model={name}").resolve(77, "fp32")
    with torch.device("meta"):
        model = build(settings.model)
    assert type(model) is GPT
    assert model.config.n_embed == keys(CONF / f"model/{name}.yaml")["n_embed"]
    if name == "gpt2":
        assert model.n_parameters() == 124_439_808  # Radford et al. 2019's smallest, as published


@pytest.mark.parametrize("name", options("optimizer"))
def test_every_optimizer_is_built_and_takes_a_step(name: str) -> None:
    settings = settings_of(f"optimizer={name}")
    assert settings.optimizer.name == name
    model = GPT(n_layer=1, n_embed=16, head_size=8, block_size=8, vocab_size=11)
    before = model.embed.weight.detach().clone()
    optimizer = build(settings.optimizer, model=model)
    tokens = torch.arange(8)[None]
    model(tokens, tokens).backward()
    optimizer.step()
    assert not torch.equal(before, model.embed.weight)
    assert optimizer.param_groups[0]["base_lr"] == settings.optimizer.lr  # what is logged as lr


@pytest.mark.parametrize("name", options("schedule"))
def test_every_schedule_is_built_and_stays_between_0_and_the_full_rate(name: str) -> None:
    settings = settings_of(f"schedule={name}")
    schedule = build(settings.schedule)
    assert isinstance(schedule, Schedule)
    assert settings.schedule.name == schedule.name == name
    shares = [schedule(step, 100) for step in range(1, 101)]
    assert max(shares) == 1
    # The end is one step after the last: the last step learns too.
    assert shares[-1] == pytest.approx(settings.schedule.min_lr_ratio, abs=1 / 60)
    assert shares[-1] > 0


@pytest.mark.parametrize("name", options("trainer"))
def test_every_trainer_is_a_set_of_valid_options(name: str) -> None:
    section = asdict(settings_of(f"trainer={name}").trainer)
    assert section.pop("_target_") == "llm.training.trainer.Trainer"
    validate(TrainerOptions(**section))


def test_every_precision_and_logger_is_valid() -> None:
    for name in options("precision"):
        assert settings_of(f"precision={name}").precision.name == name
    for name in options("logger"):
        assert settings_of(f"logger={name}").logger.mode in ("offline", "disabled")


@pytest.mark.parametrize("name", options("data"))
def test_every_dataset_has_the_name_of_its_file_and_declares_its_vocabulary(name: str) -> None:
    data = settings_of(f"data={name}").data
    assert data.name == name
    # The vocabulary of a user's text, or of the weights to start from, is unknown here.
    if data.corpus not in ("text", "conversations", "dialogues"):
        assert data.vocab_size is not None
    path = ["data.path=x.txt"] if data.path is not None else []
    prepared = read_settings(composed("prepare", f"data={name}", *path), PrepareSettings)
    assert prepared.data == data


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_composes_to_settings_that_work_together(name: str) -> None:
    settings = settings_of(f"experiment={name}")
    wanted = keys(CONF / f"experiment/{name}.yaml")
    for section in wanted.keys() - {"defaults"}:
        for key, value in wanted[section].items():
            assert getattr(getattr(settings, section), key) == value
    for default in wanted["defaults"]:
        ((group, option),) = default.items()
        assert option in options(group.removeprefix("override /"))


@pytest.mark.parametrize("name", options("sweep"))
def test_every_sweep_asks_a_question_and_all_its_jobs_work(name: str) -> None:
    path = CONF / f"sweep/{name}.yaml"
    title, question = question_of(path) or ("", "")
    assert title and question
    file = keys(path)
    assert file["run"]["sweep"] == name
    sweeper = file["hydra"]["sweeper"]
    counts = {key: values.count(",") + 1 for key, values in sweeper["params"].items()}
    for first, *others in sweeper.get("zip", []):
        assert {counts.pop(key) for key in others} == {counts[first]}
    jobs = points(f"sweep={name}")  # each is validated
    assert len(jobs) == math.prod(counts.values()) > 1
    assert jobs[0].values.keys() == sweeper["params"].keys()
    for job in jobs:
        assert job.settings.trainer.checkpoint_interval is None


def test_width_and_depth_are_compared_at_equal_parameters() -> None:
    plans = plan_points(points("sweep=width_depth"))
    sizes = {plan.label: plan.parameters for plan in plans}
    assert len(sizes) == 5
    assert max(sizes.values()) <= 1.03 * min(sizes.values()), sizes


def test_block_size_and_batch_are_compared_at_equal_tokens_per_step() -> None:
    found = [job.settings for job in points("sweep=block_size")]
    assert {one.model.block_size * one.trainer.batch_size for one in found} == {1024}
    assert len({one.model.block_size for one in found}) == 4


def test_a_bare_command_trains_the_small_model_on_characters() -> None:
    settings = settings_of()
    assert settings.data.name == "shakespeare_char"
    assert settings == settings_of("model=nano", "data=shakespeare_char")
    assert (settings.optimizer.name, settings.schedule.name) == ("muon", "wsd")


def test_the_reference_model_has_its_documented_shape() -> None:
    model = settings_of("model=small").model
    shape = (model.block_size, model.n_layer, model.n_embed, model.head_size)
    assert shape == (128, 10, 768, 128)
    assert model.n_head is None, "so that n_embed can be swept"
    assert model.resolve(50_257).n_head == 6


@pytest.mark.parametrize("path", FULL, ids=lambda path: str(path.relative_to(CONF)))
def test_one_file_of_each_group_explains_every_key_and_has_the_defaults_of_its_class(
    path: Path,
) -> None:
    group, name = path.parent.name, path.stem
    default: Any = type(getattr(settings_of(f"{group}={name}"), group))()
    found = keys(path)
    if name == "muon":  # starts from adamw
        found = keys(CONF / "optimizer/adamw.yaml") | found
    found.pop("defaults", None)
    assert set(CONTRACT[group].split()) <= found.keys()
    assert found.keys() | {"_target_"} == {one.name for one in fields(default)} | {"_target_"}
    found.pop("_target_", None)
    different = [key for key, value in found.items() if getattr(default, key) != value]
    assert different == (["vocab_size"] if group == "data" else [])
    uncommented = [line for line in knobs(path) if not re.search(r"\S +# \S", line)]
    assert all(line.startswith(("_target_:", "name:")) for line in uncommented)


def test_other_options_state_only_what_they_change() -> None:
    for path in FILES:
        found = keys(path)
        base, *rest = found.pop("defaults", [None])
        if path in FULL or path.parent.name not in CONTRACT or base is None:
            continue
        assert rest == ["_self_"], path
        base_section = getattr(settings_of(f"{path.parent.name}={base}"), path.parent.name)
        assert not [key for key, value in found.items() if getattr(base_section, key) == value]


@pytest.mark.parametrize("command", SETTINGS)
def test_a_primary_config_states_every_key_of_its_schema(command: str) -> None:
    schema = {one.name for one in fields(SETTINGS[command]) if NO_KEY not in one.metadata}
    paths = [CONF / f"{command}.yaml"]
    paths += [CONF / "training.yaml"] if command in ("train", "plan") else []
    stated = {key for path in paths for key in keys(path)}
    for path in paths:
        stated |= {str(key) for one in keys(path)["defaults"] for key in one if key in schema}
        assert "_self_" in keys(path)["defaults"]
        assert not [line for line in knobs(path) if not re.search(r"\S +# \S", line)]
    assert stated - {"defaults", "hydra", "experiment", "sweep"} == schema
    if command == "train":
        assert set(CONTRACT) | {"seed", "init_from", "resume"} <= schema
        assert set(keys(paths[1])["run"]) == {one.name for one in fields(RunSection)}
    if command == "sample":
        assert set(SAMPLE.split()) <= schema


def test_a_plan_starts_from_the_settings_of_a_run() -> None:
    run, plan = (OmegaConf.to_container(composed(command)) for command in ("train", "plan"))
    assert isinstance(run, dict) and isinstance(plan, dict)
    assert plan["memory"].pop("largest") is plan.pop("picture") is None
    assert plan == run


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_a_target_is_code_of_this_project(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"_target_:\s*(\S+)", text):
        if "hydra" in path.parts:
            assert target.startswith("hydra_plugins.one_gpu_llm.")
            assert get_object(target).__base__.__module__.startswith("llm.config.")
        else:
            assert target.startswith("llm.")
            assert inspect.getmodule(get_object(target)).__name__.startswith("llm.")
