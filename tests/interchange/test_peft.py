"""Folders of PEFT as ckpt=, init_from= and exports: the same tensors, or a refusal in one line."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm.data.tokenizer import CharTokenizer
from llm.errors import Refused
from llm.interchange.adapters import open_adapter, with_adapter
from llm.interchange.source import load_model, open_source
from llm.interchange.writing import export_hf, export_peft
from llm.model.finetune import FinetuneOptions
from llm.model.lora import merged_weight
from tests.command_line import here
from tests.conftest import TINY_RUN
from tests.interchange.changes import Change, changed_json, changed_tensors
from tests.interchange.test_hf_writing import GPT2_STYLE, saved
from tests.interchange.test_peft_writing import CASES, SMALL, tuned
from tests.interchange.theirs import VARIANTS, difference_of
from tests.test_bad_input import CHAR

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CPU = torch.device("cpu")
Q = "base_model.model.model.layers.0.self_attn.q_proj."
config, tensors = partial(changed_json, CONFIG), partial(changed_tensors, WEIGHTS)


def exported(path: Path, shape: dict[str, Any], options: dict[str, Any]) -> tuple[str, str]:
    """A run with adapters for ``path/base``, and ``path/peft``, its export."""
    base = saved(path / "base", CharTokenizer("abc"), **SMALL | shape)
    run = tuned(path / "tuned", base, FinetuneOptions(**{"rank": 8, "alpha": 16.0} | options))
    export_peft(open_source("ckpt", run), path / "peft", "fp32", False)
    return run, str(path / "peft")


@pytest.mark.parametrize(("shape", "options"), CASES, ids=str)
def test_an_export_is_read_as_the_same_tensors(
    shape: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    run, folder = exported(tmp_path, shape, options)
    ours, theirs = open_source("ckpt", run).weights(), open_source("ckpt", folder).weights()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if "norm" not in shape:
            assert torch.equal(theirs[name], tensor), name
        else:  # the products of the joined matrix have sums of more numbers, all but r of them 0
            torch.testing.assert_close(theirs[name], tensor, atol=1e-6, rtol=1e-6)


def test_ranks_and_alphas_may_differ_between_matrices_and_are_scaled_as_in_peft(
    tmp_path: Path,
) -> None:
    exported(tmp_path, {}, {"name": "lora", "targets": ["q", "up"], "rslora": True})
    path = tmp_path / "peft" / WEIGHTS
    tensors = load_file(path)
    tensors[f"{Q}lora_A.weight"] = tensors[f"{Q}lora_A.weight"][:3].clone()
    tensors[f"{Q}lora_B.weight"] = tensors[f"{Q}lora_B.weight"][:, :3].clone()
    save_file(tensors, path)
    config(
        rank_pattern={"layers.0.self_attn.q_proj": 3}, alpha_pattern={"^model.layers.0": 1, "up": 1,
        "q_proj": 7, "model.layers.1.mlp.up_proj": 5.0},
    )(tmp_path / "peft")  # fmt: skip
    merged = open_source("ckpt", str(tmp_path / "peft")).weights()
    base = open_source("ckpt", str(tmp_path / "base")).weights()
    for layer, module, scale in (
        ("blocks.0.attention.q", "0.self_attn.q_proj", 7 / 3**0.5),
        ("blocks.1.attention.q", "1.self_attn.q_proj", 7 / 8**0.5),
        ("blocks.0.mlp.up", "0.mlp.up_proj", 16 / 8**0.5),
        ("blocks.1.mlp.up", "1.mlp.up_proj", 5 / 8**0.5),
    ):
        a, b = (tensors[f"base_model.model.model.layers.{module}.lora_{n}.weight"] for n in "AB")
        expected = merged_weight(base[f"{layer}.weight"], a, b, None, scale)
        assert torch.equal(merged[f"{layer}.weight"], expected)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.slow  # to import peft takes seconds
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Llama", {"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"down_proj": 3},
                   "alpha_pattern": {"layers.1.self_attn.q_proj": 5}}),
        ("Qwen3, tied, biases", {"target_modules": "all-linear", "use_dora": True}),
        ("Qwen2", {"target_modules": r".*layers\.1\..*\.(v_proj|o_proj)", "use_rslora": True}),
        ("GPT-2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True,
                   "fan_in_fan_out": True}),
        ("GPT-2", {"target_modules": ["c_attn"], "fan_in_fan_out": True,
                   "init_lora_weights": False}),
    ],
    ids=str,
)  # fmt: skip
def test_adapters_that_peft_saved_compute_the_same_here(
    kind: str, options: dict[str, Any], tmp_path: Path, report: Callable[[str], None]
) -> None:
    import peft

    network = VARIANTS[kind].save(tmp_path / "base")
    options = {"r": 4, "task_type": "CAUSAL_LM"} | options
    theirs: Any = peft.get_peft_model(network, peft.LoraConfig(**options)).eval()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += 0.1 * noise
    theirs.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    theirs.save_pretrained(tmp_path / "peft")
    tokens = torch.randint(61, (2, 40), generator=generator)
    ours = load_model(open_source("ckpt", str(tmp_path / "peft")), CPU)
    plain = load_model(open_source("ckpt", str(tmp_path / "base")), CPU)
    with torch.no_grad():
        expected, found, before = theirs(tokens).logits, ours(tokens), plain(tokens)
    row = f"adapters of peft read here: {kind}, {options}"
    difference = difference_of(found, expected, report, row)
    assert difference < 1e-5 * max(1.0, float(expected.abs().max()))
    assert (found - before).abs().max() > 1e-2


def test_a_folder_of_peft_can_be_typed_where_weights_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exported(tmp_path, {}, {"name": "dora"})
    done = here("sample", "ckpt=peft", "prompt=ab", "max_new_tokens=3", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("ab"), done.stderr
    for kind in ("hf", "merged"):
        done = here("export", "peft", f"format={kind}", f"out={kind}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    again, merged = open_source("ckpt", "hf").weights(), open_source("ckpt", "peft").weights()
    assert all(torch.equal(again[name], tensor) for name, tensor in merged.items())
    done = here("export", "peft", "format=peft", "out=new", cwd=tmp_path)
    assert done.returncode == 2 and "peft is a folder of PEFT already" in done.stderr
    (tmp_path / "text.txt").write_text("abccba" * 200, encoding="utf-8")
    run = [*CHAR, "data.path=text.txt", *TINY_RUN[4:], "run.name=tuned", "init_from=peft"]
    done = here("train", *run, "finetune=lora", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in (["outputs/tuned"], ["peft", "tasks=text.txt"]):
        done = here("eval", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    # The digest identifies the adapters and the base, not their place.
    first = open_source("ckpt", "peft").digest()
    (tmp_path / "base").rename("elsewhere")
    folder = next((tmp_path / "elsewhere").glob("checkpoints/best-*"))
    config(base_model_name_or_path=str(folder))(tmp_path / "peft")
    assert open_source("ckpt", "peft").digest() == first != open_source("ckpt", "hf").digest()


def test_the_base_may_be_another_file_with_the_same_weights(tmp_path: Path) -> None:
    run, folder = exported(tmp_path, GPT2_STYLE | {"bias": False}, {"name": "lora"})
    export_hf(open_source("ckpt", str(tmp_path / "base")), tmp_path / "hf", "fp32", False)
    config(base_model_name_or_path=str(tmp_path / "hf"))(tmp_path / "peft")
    found = open_source("ckpt", folder).weights()
    for name, tensor in open_source("ckpt", run).weights().items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-6)


def test_an_adapter_of_another_machine_is_for_the_base_that_is_typed(tmp_path: Path) -> None:
    exported(tmp_path, {}, {"name": "lora"})
    folder, base = tmp_path / "peft", open_source("ckpt", str(tmp_path / "base"))
    expected = open_source("ckpt", str(folder)).weights()
    tensors(lambda loaded: None)(folder)  # without the digest, as peft saves it
    config(base_model_name_or_path="org/model")(folder)
    network = with_adapter(load_model(base, CPU), open_adapter("adapters", str(folder), base))
    assert all(torch.equal(network.state_dict()[name], expected[name]) for name in expected)

    config(base_model_name_or_path=str(tmp_path))(folder)  # an unrelated folder with this name
    assert open_adapter("adapters", str(folder), base).model == base.model

    other = str(tmp_path / "other")
    export_hf(base, tmp_path / "other", "bf16", False)
    config(base_model_name_or_path=other)(folder)
    with pytest.raises(Refused, match=r"an adapter for another base: it names .*other, and"):
        open_adapter("adapters", str(folder), base)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peft")
    exported(path, {}, {"name": "dora", "targets": ["q", "down"]})
    saved(path / "other", CharTokenizer("abc"), **SMALL, n_layer=1)
    return path


def base_elsewhere(folder: Path) -> None:
    base = json.loads((folder / CONFIG).read_text())["base_model_name_or_path"]
    config(base_model_name_or_path=base.replace("/base/", "/other/"))(folder)


A, B = f"{Q}lora_A.weight", f"{Q}lora_B.weight"
HEAD = "base_model.model.lm_head.lora_A.weight"
BASE = "base_model_name_or_path"
HOSTILE: dict[str, tuple[Change, str]] = {
    "another method": (config(peft_type="IA3"), "peft_type=IA3 must be one of LORA"),
    "a classifier": (config(task_type="SEQ_CLS"), "task_type=SEQ_CLS must be one of"),
    "saved modules": (config(modules_to_save=["lm_head"]), "modules_to_save=.'lm_head'. may"),
    "trained biases": (config(bias="all"), "bias=all must be one of none"),
    "some layers": (config(layers_to_transform=[0]), "layers_to_transform=.0. may change"),
    "biases of B": (config(lora_bias=True), "lora_bias=True may change"),
    "QALoRA": (config(use_qalora=True), "use_qalora=True may change"),
    "an unknown option": (config(warp=9), "warp=9 may change"),
    "a changed base": (config(init_lora_weights="pissa"), "init_lora_weights=pissa must be"),
    "transposed": (config(fan_in_fan_out=True), "fan_in_fan_out=true is for GPT-2"),
    "no rank": (config(r=0), "r=0 must be at least 1"),
    "a rank that is text": (config(r="8"), "r=8 must be a whole number"),
    "another rank": (config(r=4), r"lora_A.weight has shape \(8, \d+\), the config needs \(4,"),
    "a pattern that repeats": (
        config(alpha_pattern={"(a+)+": 2}), r"alpha_pattern has '\(a\+\)\+', and only plain"),
    "half a pattern": (config(rank_pattern={"q\\": 2}), "rank_pattern has .* only plain"),
    "too many patterns": (
        config(rank_pattern={str(n): 8 for n in range(5000)}), "rank_pattern has 5,000 names, and"),
    "a rank of 0": (config(rank_pattern={"q": 0}), "rank_pattern.q=0 must be at least 1"),
    "a huge alpha": (config(lora_alpha=1e308), r"lora_alpha=1e\+308 must be more than 0"),
    "a negative alpha": (config(alpha_pattern={"q": -1}), "alpha_pattern.q=-1 must be more than"),
    "no targets": (config(target_modules=None), "target_modules=None must be a list"),
    "targets that are numbers": (config(target_modules=[1]), r"target_modules=\[1\] must be"),
    "a missing adapter": (
        config(target_modules=["q_proj", "down_proj", "k_proj"]), "no tensor .*0.*k_proj"),
    "an unexpected adapter": (
        config(target_modules=["q_proj"]), "down_proj.*, and target_modules does not name"),
    "no base": (config(**{BASE: None}), f"{BASE} is missing"),
    "a base without a name": (config(**{BASE: ""}), "is '', which is not on this machine"),
    "a base elsewhere": (
        config(**{BASE: "org/model"}),
        "is 'org/model', which is not on this machine: put the path .* ckpt=BASE adapters="),
    "itself as base": (lambda f: config(**{BASE: str(f)})(f), "adapter itself"),
    "an empty base": (lambda f: config(**{BASE: str(f.parent)})(f), "cannot be opened: "),
    "another base": (base_elsewhere, "is an adapter for another base"),
    "a list": (lambda f: (f / CONFIG).write_text("[]"), "is not a JSON object"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "adapter_model.safetensors cannot be read"),
    "a pickle": (lambda f: (f / WEIGHTS).rename(f / "adapter_model.bin"), "a pickle, .* save the"),
    "an empty file": (lambda f: (f / WEIGHTS).write_bytes(b""), "cannot be read"),
    "no B": (tensors(lambda t: t.pop(B)), "no tensor .*lora_B.weight"),
    "no magnitude": (
        tensors(lambda t: t.pop(f"{Q}lora_magnitude_vector")), "no tensor .*lora_magnitude_vector"),
    "magnitudes of LoRA": (config(use_dora=False), "has a tensor .*lora_magnitude_vector, and"),
    "an adapted head": (tensors(lambda t: t.update({HEAD: torch.ones(8, 24)})), f"{HEAD}, and"),
    "another start": (
        tensors(lambda t: t.update({A.removeprefix("base_model.model."): t.pop(A)})),
        "has a tensor model.layers.0"),
    "another shape": (
        tensors(lambda t: t.update({B: torch.ones(8, 24)})),
        r"lora_B.weight has shape \(8, 24\), the config needs \(24, 8\)"),
    "products beyond float32": (
        tensors(lambda t: t.update({B: t[B] * 1e38, A: t[A] * 1e38})),
        "q_proj with its adapter has values that are not finite"),
    "NaN": (tensors(lambda t: t[A].fill_(torch.nan)), "lora_A.*not finite"),
    "whole numbers": (
        tensors(lambda t: t.update({A: t[A].to(torch.int8)})), "lora_A.weight is I8"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_folder_that_cannot_be_merged_exactly_is_refused(
    name: str, folders: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders / "peft", tmp_path / "peft"))
    change, said = HOSTILE[name]
    change(folder)
    with pytest.raises(Refused, match=said) as refused:
        load_model(open_source("ckpt", str(folder)), CPU)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600


def test_adapters_of_changed_weights_are_refused(tmp_path: Path) -> None:
    exported(tmp_path, {}, {"name": "lora"})
    export_hf(open_source("ckpt", str(tmp_path / "base")), tmp_path / "hf", "bf16", False)
    config(base_model_name_or_path=str(tmp_path / "hf"))(tmp_path / "peft")
    with pytest.raises(Refused, match="an adapter for another base: it was trained on other"):
        open_source("ckpt", str(tmp_path / "peft")).weights()
