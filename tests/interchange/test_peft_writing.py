"""Exported adapters load in peft without a warning, and compute the same as our adapted network
(llm/interchange/peft_writing.py).
"""

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from llm.checkpoint.checkpoint import Checkpoint
from llm.checkpoint.find import Base
from llm.checkpoint.folder import CheckpointFolder
from llm.data.tokenizer import ByteTokenizer, CharTokenizer
from llm.interchange.peft_reading import weights_digest
from llm.interchange.source import load_model, open_source
from llm.interchange.writing import export_hf, export_peft
from llm.model.finetune import FinetuneOptions
from llm.model.gpt import GPT
from llm.model.lora import adapt, trained_weights
from llm.sealed import Plain
from tests.command_line import here, listing
from tests.interchange.test_hf_writing import GPT2_STYLE, loaded, saved
from tests.interchange.theirs import difference_of

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"n_embed": 24, "n_head": 2, "head_size": 12}


def tuned(folder: Path, base: str, options: FinetuneOptions, template: Plain | None = None) -> str:
    """A checkpoint with random adapters for the weights in ``base``, as a place to open."""
    source = open_source("ckpt", base)
    model = adapt(load_model(source, CPU), options)
    generator = torch.Generator().manual_seed(3)
    trained = trained_weights(model)
    for name, tensor in trained.items():
        if name.endswith("magnitude"):
            tensor.mul_(0.5 + torch.rand(tensor.shape, generator=generator))
        else:
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    folder.mkdir(exist_ok=True)
    identity = {"config_digest": "c", "data_digest": "d"}
    checkpoints = CheckpointFolder(
        folder, 1, source.model, source.tokenizer, identity, template, finetune=options,
        base=Base(base, source.digest()),
    )  # fmt: skip
    return str(checkpoints.save_best(1, trained, {}))


def adapted(place: str) -> GPT:
    """The network as it is trained, with its adapters beside the matrices."""
    checkpoint = Checkpoint.open(Path(place))
    assert checkpoint.base is not None and checkpoint.finetune is not None
    model = load_model(open_source("init_from", checkpoint.base.init_from), CPU)
    checkpoint.load_into(adapt(model, checkpoint.finetune))
    return model


def in_peft(base: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> Any:
    """The network that peft makes of two folders, without a warning about any key."""
    import peft
    from transformers import logging as their_logging

    network = loaded(base)
    their_logging.enable_propagation()  # otherwise caplog sees none of its warnings
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*SWIG|.*swig|.*is_gradient_checkpointing")
        model: Any = peft.PeftModel.from_pretrained(network, folder)
        result = model.load_adapter(str(folder), adapter_name="again")
    missing = [name for name in result.missing_keys if "again" in name]
    assert not result.unexpected_keys and not missing
    # bitsandbytes, which peft imports, misses a package for its own kernels.
    said = [one for one in caplog.records if not one.name.startswith("bitsandbytes")]
    assert not [one for one in said if one.levelno >= logging.WARNING]
    return model.eval()


CASES = [
    ({}, {"name": "lora"}),
    ({"n_kv_head": 1, "qk_norm": True}, {"name": "lora", "rslora": True, "targets": ["q", "down"]}),
    ({"qkv_bias": True}, {"name": "dora", "alpha": 5.5, "targets": ["k", "o", "up"]}),
    ({}, {"name": "lora", "rank": 3, "freeze": ["blocks.0.mlp", "blocks.1.attention.q"]}),
    (GPT2_STYLE, {"name": "lora", "rank": 3, "alpha": 10.0}),
    (GPT2_STYLE, {"name": "lora", "rslora": True, "targets": ["v", "o"]}),
    (GPT2_STYLE, {"name": "dora", "rank": 2, "targets": ["q", "v", "down"]}),
    (GPT2_STYLE, {"name": "lora", "targets": ["q", "k"], "freeze": ["blocks.0.attention.q"]}),
]  # fmt: skip


@pytest.mark.slow  # to import peft takes seconds
@pytest.mark.parametrize(("shape", "options"), CASES, ids=str)
def test_peft_computes_the_same(
    shape: dict[str, Any], options: dict[str, Any], tmp_path: Path,
    caplog: pytest.LogCaptureFixture, report: Callable[[str], None],
) -> None:  # fmt: skip
    base = saved(tmp_path / "run", ByteTokenizer(), 63, **SMALL | shape)
    place = tuned(tmp_path / "tuned", base, FinetuneOptions(**options))
    export_hf(open_source("ckpt", base), tmp_path / "hf", "fp32", False)
    export_peft(open_source("ckpt", place), tmp_path / "peft", "fp32", False)
    theirs = in_peft(tmp_path / "hf", tmp_path / "peft", caplog)
    tokens = torch.randint(257, (2, 32), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        logits, plain = adapted(place)(tokens), load_model(open_source("ckpt", base), CPU)(tokens)
        name = f"our adapters read by peft: {shape}, {options}"
        difference = difference_of(logits, theirs(tokens).logits, report, name)
    assert difference < 1e-5 * max(1.0, float(logits.abs().max()))
    assert (logits - plain).abs().max() > 1e-2


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base, runs that trained adapters or a part of it, and its export."""
    monkeypatch.chdir(tmp_path)
    base = saved(tmp_path / "base", CharTokenizer("abc"))
    for options in (FinetuneOptions("lora"), FinetuneOptions("qlora"), FinetuneOptions("head")):
        tuned(tmp_path / options.name, "base", options)
    export_hf(open_source("ckpt", base), tmp_path / "base_hf", "fp32", False)
    return tmp_path


def test_the_folder_says_what_it_belongs_to_and_how_to_load_it(folder: Path) -> None:
    done = here("export", "lora", "format=peft", "out=new", cwd=folder)
    assert done.returncode == 0, done.stderr
    config = json.loads((folder / "new/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"
    names = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert config["target_modules"] == names and config["rank_pattern"] == {}
    with safe_open(folder / "new/adapter_model.safetensors", "pt") as file:
        digests = file.metadata()
    assert digests["base_digest"] == open_source("ckpt", "base").digest()
    weights = open_source("ckpt", "base_hf").weights()
    assert digests["base_values_digest"] == weights_digest(weights)
    assert "ckpt=base format=hf out=BASE" in done.stdout
    loaded = f"PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained('{folder}/BASE'), "
    assert f"{loaded}'{folder}/new')" in done.stdout


def test_the_folder_has_the_options_of_the_run_and_the_dtype_of_the_export(
    tmp_path: Path,
) -> None:
    base = saved(tmp_path / "run", CharTokenizer("abc"), **SMALL | GPT2_STYLE)
    options = FinetuneOptions(
        "dora", 2, 3.0, rslora=True, dropout=0.1, targets=["q", "v", "down"],
        freeze=["blocks.0.attention", "blocks.1.mlp"],
    )  # fmt: skip
    place = tuned(tmp_path / "tuned", base, options)
    export_peft(open_source("ckpt", place), tmp_path / "peft", "bf16", False)
    config = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    joined = "transformer.h.1.attn.c_attn"  # of q and v, so its rank is 4
    assert config | {
        "r": 2, "lora_alpha": 3, "lora_dropout": 0.1, "use_rslora": True, "use_dora": True,
        "rank_pattern": {joined: 4}, "alpha_pattern": {joined: pytest.approx(3 * 2**0.5)},
        "fan_in_fan_out": True, "inference_mode": True,
        "target_modules": ["transformer.h.0.mlp.c_proj", joined],
    } == config  # fmt: skip
    tensors = load_file(tmp_path / "peft/adapter_model.safetensors").values()
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}


def test_adapters_of_a_rounded_base_come_with_a_note(folder: Path) -> None:
    done = here("export", "qlora", "format=peft", "out=new", "dtype=bf16", "json=true", cwd=folder)
    assert "load_in_4bit=True" in json.loads(done.stdout)["uses"]["note"]


def test_merged_is_the_hf_folder_of_a_run_with_a_base(folder: Path) -> None:
    done = here("export", "lora", "format=merged", "out=merged", cwd=folder)
    assert done.returncode == 0, done.stderr
    export_hf(open_source("ckpt", "lora"), folder / "hf", "fp32", False)
    for name in listing(folder / "hf"):
        assert (folder / "hf" / name).read_bytes() == (folder / "merged" / name).read_bytes()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["base", "format=peft"], "needs adapters, and base holds a whole network: take format=hf"),
        (["base_hf", "format=peft"], "and base_hf holds a whole network"),
        (["head", "format=peft"], "head was trained with finetune=head"),
        (["base", "format=merged"], "and base has none: take format=hf"),
        (["lora", "format=peft", "dtype=q8_0"], "dtype=q8_0 must be one of fp32, fp16, bf16"),
    ],
    ids=str,
)
def test_a_place_without_adapters_is_refused(typed: list[str], said: str, folder: Path) -> None:
    before = listing(folder)
    done = here("export", *typed, "out=new", cwd=folder)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
    assert listing(folder) == before
