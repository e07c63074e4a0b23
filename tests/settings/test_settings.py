"""From what Hydra composed to the numbers a run uses, and to config.yaml and back."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from llm.config.compose import read_settings
from llm.errors import Refused
from llm.settings.identity import LATER, config_digest, identity
from llm.settings.sample import SampleSettings
from llm.settings.saved import load_plain, saved_groups, to_plain, to_yaml
from llm.settings.schema import DataConfig, Trainer, TrainSettings
from tests.command_line import composed, here

TUNED: dict[str, Any] = {
    "finetune.name": "lora", "finetune.rank": 2, "finetune.alpha": 6.0, "finetune.rslora": True,
    "finetune.dropout": 0.1, "finetune.targets": ["q"], "finetune.bits": 8,
    "finetune.freeze": ["embed"],
}  # fmt: skip
# A value other than the default for every key that identifies a result, and for all other keys.
IDENTITY: dict[str, Any] = {
    "model.n_layer": 5, "model.n_embed": 256, "model.n_head": 8, "model.head_size": 16,
    "model.n_kv_head": 1, "model.block_size": 64, "model.vocab_size": 99, "model.dropout": 0.1,
    "model.bias": True, "model.norm": "layernorm", "model.mlp": "gelu", "model.position": "learned",
    "model.qk_norm": True, "model.tie_embeddings": False,
    "model.qkv_bias": True, "model.norm_eps": 1e-3, "model.rope_base": 5e5,
    "model.rope_scaling": "linear", "model.rope_factor": 2.0, "model.rope_original_size": 64,
    "model.rope_low": 2.0, "model.rope_high": 8.0,
    "data.name": "other", "data.corpus": "text", "data.tokenizer": "byte", "data.vocab_size": 257,
    "data.val_fraction": 0.2, "data.test_fraction": 0.2, "data.allow_special": True,
    "data.mix": 0.2,
    "optimizer.name": "adamw", "optimizer.state_bits": 8, "optimizer.lr": 0.5,
    "optimizer.weight_decay": 0.2,
    "optimizer.momentum": 0.5, "optimizer.ns_steps": 3, "optimizer.embed_lr_ratio": 1.0,
    "optimizer.head_lr_ratio": 1.0, "optimizer.vector_lr_ratio": 1.0,
    "model.intermediate_size": 300, "model.residual_scalars": True, "model.smear": 2,
    "optimizer.betas": [0.9, 0.99],
    "schedule.name": "cosine", "schedule.warmup_steps": 7, "schedule.min_lr_ratio": 0.5,
    "schedule.cooldown_fraction": 0.5, "precision.name": "bf16",
    "trainer.max_steps": 7, "trainer.batch_size": 7, "trainer.grad_clip": 0.5,
    "trainer.overfit_batches": 1, "trainer.skip_spikes": True, "trainer.rollbacks": 1,
    "seed": 1, "init_from": "outputs/other", **TUNED,
}  # fmt: skip
WATCHED: dict[str, Any] = {
    "data.dir": "elsewhere", "data.path": "copy.txt", "data.overwrite": True,
    "data.template": "alpaca", "data.mix_path": "general.txt",  # they are part of data_digest
    "memory.budget_gib": 2.0, "memory.reserve_mib": 100, "memory.fit": "auto",
    "memory.enforce": True, "trainer.step_in_backward": True,
    "trainer.max_minutes": 5.0, "trainer.micro_batch_size": 1, "trainer.eval_interval": 9,
    "trainer.eval_batches": 9, "trainer.eval_only": True, "trainer.log_interval": 9,
    "trainer.checkpoint_interval": 9, "trainer.keep_last": 9, "trainer.patience": 9,
    "model.loss": "full", "trainer.activation_checkpointing": "full",
    "trainer.compile": True, "trainer.profile": True, "trainer.device": "cpu",
    "trainer.sample_interval": 9, "trainer.max_skipped": 9, "trainer.deterministic": True,
    "logger.mode": "disabled", "logger.project": "other", "logger.entity": "me",
    "logger.name": "n", "logger.tags": ["a"], "logger.notes": "n",
    "run.name": "n", "run.dir": "d", "run.sweep": "s", "run.note": "n",
}  # fmt: skip
REFUSED = [
    ("data.tokenizer=byte", "data.vocab_size=77, but the byte tokenizer has 257", []),
    ("model.vocab_size=50", "model.vocab_size=50 is smaller than data.vocab_size=77", []),
    (
        "trainer.micro_batch_size=5",
        "does not divide trainer.batch_size=9",
        ["trainer.batch_size=9"],
    ),
    (
        "schedule.warmup_steps=9",
        "warmup_steps=9 must be less than",
        ["trainer.max_steps=9"],
    ),
    ("model.n_kv_head=3", "model.n_kv_head=3 does not divide the 4 query heads", []),
    ("model.head_size=48", "model.n_embed=128 is not divisible by model.head_size=48", []),
    ("optimizer.betas=[0.9]", "optimizer.betas=[0.9] must be two numbers", []),
    ("precision.name=fp8", "precision.name=fp8 must be one of auto, fp32, bf16, fp16", []),
    ("run.name=a/b", "run.name=a/b must be letters, digits", []),
    ("run.name=..", "run.name=.. must be letters, digits", []),
    ("run.sweep=a b", "run.sweep=a b must be letters, digits", []),
    ("run.dir=x", "run.name and run.dir are both given", ["run.name=y"]),
    ("run.dir=''", "run.dir is empty", []),
    ("init_from=''", "init_from is empty", []),
    ("resume=''", "resume is empty", []),
    ("data.corpus=text", "data.path is missing", ["data.val_fraction=0.1"]),
]


NAMES = "optimizer: {name: muon}\nschedule: {name: wsd}"


@pytest.fixture(scope="module")
def base() -> DictConfig:
    """``conf/train.yaml`` as it stands."""
    return composed("train")


@pytest.fixture(scope="module")
def plain(base: DictConfig) -> dict[str, Any]:
    """The values of its ``config.yaml``."""
    return to_plain(read_settings(base, TrainSettings))


def changed(settings: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(settings))
    section, _, name = key.rpartition(".")
    target = copy[section] if section else copy
    assert target[name] != value, f"{key} is {value} already"
    target[name] = value
    return copy


def test_the_digest_covers_what_decides_a_result_and_nothing_else(plain: dict[str, Any]) -> None:
    digest = config_digest(plain, "d" * 64)
    assert len(digest) == 64
    assert config_digest(plain, "e" * 64) != digest
    for key, value in IDENTITY.items():
        is_counted = key not in TUNED or key == "finetune.name"  # without adapters no rank counts
        assert (config_digest(changed(plain, key, value), "d" * 64) != digest) == is_counted, key
    tuned = changed(plain, "finetune.name", "dora")
    digest_of_tuned = config_digest(tuned, "d" * 64)
    for key, value in TUNED.items():
        assert config_digest(changed(tuned, key, value), "d" * 64) != digest_of_tuned, key
    for key, value in WATCHED.items():
        assert config_digest(changed(plain, key, value), "d" * 64) == digest, key


def test_the_lists_above_name_every_key(plain: dict[str, Any]) -> None:
    found = {
        f"{section}.{key}" if isinstance(values, dict) else section
        for section, values in plain.items()
        for key in (values if isinstance(values, dict) else [section])
    }
    assert found == IDENTITY.keys() | WATCHED.keys()
    later = {"data.test_fraction", "data.mix", *TUNED, *(f"model.{key}" for key in LATER)}
    always = IDENTITY.keys() - later
    assert identity(plain, "d").keys() == always | {"data_digest"}


def test_the_minutes_identify_a_result_only_if_they_decide_the_steps(plain: dict[str, Any]) -> None:
    timed = changed(changed(plain, "trainer.max_steps", None), "trainer.max_minutes", 5.0)
    longer = changed(timed, "trainer.max_minutes", 6.0)
    assert len({config_digest(values, "d") for values in (plain, timed, longer)}) == 3
    assert identity(timed, "d")["trainer.max_minutes"] == 5.0


def test_config_yaml_is_plain_reloadable_and_names_no_code(tmp_path: Path) -> None:
    settings = read_settings(composed("train", "optimizer.betas=[0.8,0.9]"), TrainSettings)
    settings = settings.resolve(77, "fp32")
    text = to_yaml(settings)
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    loaded = load_plain(tmp_path)
    assert loaded == to_plain(settings)
    assert config_digest(loaded, "d") == config_digest(to_plain(settings), "d")
    assert "_target_" not in text
    assert "resume" not in loaded
    assert loaded["optimizer"]["betas"] == [0.8, 0.9]
    assert saved_groups(tmp_path) == ["optimizer=muon", "schedule=wsd"]


@given(
    st.text(st.characters(), max_size=20) | st.text(st.sampled_from("\x85\u2028\ufeff\udcff: '"))
)
@examples(max_examples=30, deadline=None, database=None)
def test_any_text_survives_config_yaml(text: str) -> None:
    settings = TrainSettings(resume=None, init_from=text)
    settings.logger.notes, settings.logger.tags = text, [text]
    loaded = yaml.safe_load(to_yaml(settings).encode("utf-8"))
    assert loaded == to_plain(settings)


@pytest.mark.parametrize(
    ("tokenizer", "vocab_size", "resolved"),
    [("gpt2", 50_257, 50_304), ("gpt2", 128, 128), ("char", 77, 77), ("byte", 257, 257)],
)
def test_only_the_vocabulary_of_bpe_is_padded(
    tokenizer: str, vocab_size: int, resolved: int
) -> None:
    settings = TrainSettings(data=DataConfig(tokenizer=tokenizer))
    assert settings.resolve(vocab_size, "fp32").model.vocab_size == resolved


def test_resolve_fills_in_each_null_and_changes_nothing_else() -> None:
    settings = TrainSettings(trainer=Trainer(batch_size=6))
    full = settings.resolve(77, "bf16")
    assert (full.model.n_head, full.model.n_kv_head, full.model.head_size) == (4, 4, 32)
    assert full.model.vocab_size == 77
    assert full.model._target_ == settings.model._target_
    assert full.trainer.micro_batch_size == 6
    assert full.precision.name == "bf16"
    assert full.resolve(77, "bf16") == full
    assert settings == TrainSettings(trainer=Trainer(batch_size=6)), "the original is untouched"
    given = replace(settings, trainer=Trainer(batch_size=6, micro_batch_size=2))
    given.model.vocab_size = 100
    assert given.resolve(77, "fp32").trainer.micro_batch_size == 2
    assert given.resolve(77, "fp32").model.vocab_size == 100


@pytest.mark.parametrize(("wrong", "message", "more"), REFUSED, ids=[case[0] for case in REFUSED])
def test_values_that_contradict_each_other_are_refused_by_name(
    wrong: str, message: str, more: list[str], base: DictConfig
) -> None:
    cfg = OmegaConf.merge(base, OmegaConf.from_dotlist([wrong, *more]))
    assert isinstance(cfg, DictConfig)
    with pytest.raises(Refused) as refusal:
        read_settings(cfg, TrainSettings)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_sample_needs_a_checkpoint_one_prompt_and_stops_that_are_text() -> None:
    for overrides, message in (
        ([], "ckpt is missing"),
        (["ckpt=x", "stop="], "stop is empty: give some text"),
        (["ckpt=x", "stop=[1]"], "stop=1 must be text"),
        (["ckpt=x", "prompt=a", "prompt_file=b"], "prompt and prompt_file are both given"),
    ):
        with pytest.raises(Refused, match=message):
            read_settings(composed("sample", *overrides), SampleSettings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{NAMES}\nmodel: {{shell: x}}", "config.yaml: Key 'shell' not in 'Model'"),
        (f"{NAMES}\nmodel: {{n_layer: {{a: 1}}}}", "could not be converted to Integer"),
        (f"{NAMES}\nlogger: x", "config.yaml: "),
        ("optimizer: {_target_: os.system}", "line 1 has the key '_target_'"),
        (None, "is not a run folder: it has no config.yaml"),
        ("model: [", "cannot be read"),
        ("[1]", "holds no settings"),
        ("optimizer: [1]", "optimizer is [1], not a section"),
        ("optimizer: {name: ../x}\nschedule: {name: wsd}", "optimizer.name='../x' is not the name"),
    ],
)
def test_a_config_yaml_that_cannot_be_continued_is_refused_in_one_line(
    text: str | None, message: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    done = here("train", f"resume={tmp_path}", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "x${oc.env:HOME}", "${a.${b}}", "\\${a}"])
def test_an_interpolation_other_than_a_plain_reference_is_refused_unresolved(
    value: str, base: DictConfig
) -> None:
    for key in ("logger.project", "run.name", "optimizer.name", "resume"):
        cfg = OmegaConf.merge(base, {})
        OmegaConf.update(cfg, key, value)
        with pytest.raises(Refused, match=f"^{key} holds an interpolation") as refusal:
            read_settings(cast(DictConfig, cfg), TrainSettings)
        assert "HOME" not in str(refusal.value)


def test_a_plain_reference_stands_for_the_value_of_another_key(base: DictConfig) -> None:
    cfg = OmegaConf.merge(base, {"logger": {"project": "${data.name}-${model.n_layer}"}})
    settings = read_settings(cast(DictConfig, cfg), TrainSettings)
    assert settings.logger.project == "shakespeare_char-4"
