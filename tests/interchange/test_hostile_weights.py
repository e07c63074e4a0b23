"""Files of other programs that are damaged, contradictory or for another network are refused in one
line, before much is read.
"""

import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm.errors import Refused
from llm.interchange.source import load_model, open_source
from tests.interchange.changes import Change, changed_json, changed_tensors
from tests.interchange.theirs import VARIANTS, YARN, save_consolidated, save_nanogpt

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
config, tensors = partial(changed_json, CONFIG), partial(changed_tensors, WEIGHTS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny network in each format."""
    path = tmp_path_factory.mktemp("theirs")
    for kind in ("Llama", "Qwen3", "Qwen2", "GPT-2", "Llama, tied, 3 files"):
        VARIANTS[kind].save(path / kind)
    (path / "meta").mkdir()
    save_consolidated(path / "meta")
    (path / "nanogpt").mkdir()
    save_nanogpt(path / "nanogpt")
    return path


def refusal(folder: Path) -> str:
    """Why the weights in ``folder`` are refused, if they are."""
    with pytest.raises(Refused) as refused:
        load_model(open_source("ckpt", str(folder)), torch.device("cpu"))
    said = str(refused.value)
    assert "\n" not in said and len(said) < 600
    return said


def text(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content)


def raw(content: bytes) -> Change:
    return lambda folder: (folder / WEIGHTS).write_bytes(content)


def index(edit: Callable[[dict[str, Any]], Any]) -> Change:
    def change(folder: Path) -> None:
        values = json.loads((folder / INDEX).read_text())
        edit(values["weight_map"])
        (folder / INDEX).write_text(json.dumps(values))

    return change


def sparse(folder: Path) -> None:
    with (folder / WEIGHTS).open("wb") as file:
        file.truncate(1 << 42)


def without_key_tensor(loaded: dict[str, Tensor]) -> None:
    del loaded["model.layers.1.self_attn.k_proj.weight"]


def with_nan(loaded: dict[str, Tensor]) -> None:
    loaded["model.norm.weight"][3] = torch.nan


SHARDS = "Llama, tied, 3 files"
SECOND = "model-00002-of-00003.safetensors"
CASES: dict[str, tuple[str, Change, str]] = {
    "a cut file": ("Llama", lambda f: os.truncate(f / WEIGHTS, 20_000), "cannot be read"),
    "an empty file": ("Llama", raw(b""), "cannot be read"),
    "a huge header": ("Llama", raw((1 << 40).to_bytes(8, "little") + b"{}"), "not safetensors"),
    "a file larger than memory": ("Llama", sparse, "of memory"),
    "a Git LFS pointer": ("Llama", raw(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs"),
    "a pipe": ("Llama", lambda f: ((f / WEIGHTS).unlink(), os.mkfifo(f / WEIGHTS)), "regular"),
    "a device": (
        "Llama", lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).symlink_to("/dev/zero")),
        "not a regular file"),
    "a file that fails": (
        "Llama", lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).symlink_to("/proc/self/mem")),
        "cannot be read"),
    "no weights": ("Llama", lambda f: (f / WEIGHTS).unlink(), "model.safetensors is missing"),
    "only a pickle": (
        "Llama", lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"), "save_pretrained"),
    "a missing tensor": ("Llama", tensors(without_key_tensor), "has no tensor .*k_proj.weight"),
    "an unknown tensor": (
        "Llama", tensors(lambda t: t.update({"model.layers.0.extra": torch.ones(2)})),
        "a tensor model.layers.0.extra that such a model lacks"),
    "another shape": (
        "Llama", tensors(lambda t: t.update({EMBED: torch.ones(61, 47)})),
        r"embed_tokens.weight has shape \(61, 47\), the config needs \(61, 48\)"),
    "NaN": ("Llama", tensors(with_nan), "model.norm.weight has values that are not finite"),
    "weights of 8 bits": (
        "Llama", tensors(lambda t: t.update({HEAD: torch.ones(61, 48, dtype=torch.int8)})),
        "lm_head.weight is I8, and only F32, F16, BF16 are read"),
    "tied, with a head of its own": (
        "Llama", config(tie_word_embeddings=True), "lm_head.weight that is not the embedding"),
    "untied, without a head": (
        "Llama", tensors(lambda t: t.pop(HEAD)), "has no tensor lm_head.weight"),
    "more layers than weights": (
        "Llama", config(num_hidden_layers=3), "has no tensor model.layers.2"),
    "fewer layers than weights": (
        "Llama", config(num_hidden_layers=1), "model.layers.1.* that such a model lacks"),
    "biases without weights": (
        "Llama", config(attention_bias=True), "has no tensor .*q_proj.bias"),
    "a missing file": (
        SHARDS, lambda f: (f / SECOND).unlink(), f"names {SECOND}, which is missing"),
    "a file of the system": (
        SHARDS, index(lambda m: m.update({EMBED: "../../etc/passwd"})), "'../../etc/passwd': not"),
    "a file that is a number": (SHARDS, index(lambda m: m.update({EMBED: 3})), "names 3: not"),
    "an index without files": (SHARDS, text(INDEX, '{"weight_map": {}}'), "has no weight_map"),
    "an index that is a list": (SHARDS, text(INDEX, "[]"), "is not a JSON object"),
    "a tensor in two files": (
        SHARDS, lambda f: shutil.copy(f / "model-00001-of-00003.safetensors", f / SECOND),
        "that another file has too"),
    "a config that is a list": ("Llama", text(CONFIG, "[1]"), "is not a JSON object"),
    "a config deeper than Python": ("Llama", text(CONFIG, "[" * 200_000), "cannot be read"),
    "no shape": ("Llama", text(CONFIG, '{"model_type": "llama"}'), "vocab_size is missing"),
    "a billion layers": ("Llama", config(num_hidden_layers=10**9), "n_layer=1000000000 must be"),
    "a width that is text": ("Llama", config(hidden_size="48"), "hidden_size=48 must be a whole"),
    "no heads": ("Llama", config(num_attention_heads=0), "config.json: model.n_head"),
    "heads that do not divide": ("Llama", config(num_attention_heads=5), "config.json: model."),
    "a Gemma": (
        "Llama", config(model_type="gemma3_text", architectures=["Gemma3ForCausalLM"]),
        "is of the architecture Gemma3ForCausalLM .model_type gemma3_text.*reads GPT2LMHeadModel"),
    "an LFM2": ("Llama", config(model_type="lfm2", architectures=["Lfm2ForCausalLM"]), "Lfm2"),
    "a Qwen3.5": ("Llama", config(model_type="qwen3_5", architectures=None), "qwen3_5"),
    "a Mistral": (
        "Llama", config(model_type="mistral", architectures=["MistralForCausalLM"]), "Mistral"),
    "a classifier": ("Llama", config(architectures=["LlamaForTokenClassification"]), "TokenClass"),
    "code of its own": ("Llama", config(auto_map={"AutoModel": "m.M"}), "auto_map=.* may change"),
    "experts": ("Qwen3", config(num_experts=8), "num_experts=8 may change"),
    "a sliding window": ("Qwen2", config(use_sliding_window=True), "use_sliding_window=True may"),
    "a window in Llama": ("Llama", config(sliding_window=64), "sliding_window=64 may change"),
    "layers with a window": (
        "Qwen3", config(layer_types=["full_attention", "sliding_attention"]), "layer_types="),
    "endless layers": ("Qwen2", config(num_hidden_layers=2**62), "each of the 46116860184273"),
    "a softcap": ("Llama", config(final_logit_softcapping=30.0), "final_logit_softcapping=30.0"),
    "multipliers": ("Llama", config(attention_multiplier=0.1), "attention_multiplier=0.1"),
    "part of the rotation": ("Llama", config(partial_rotary_factor=0.5), "partial_rotary_factor"),
    "no rotation in some layers": ("Llama", config(no_rope_layers=[1, 0]), "no_rope_layers"),
    "another activation": ("Llama", config(hidden_act="gelu"), "hidden_act=gelu must be one of"),
    "quantised": ("Llama", config(quantization_config={"bits": 4}), "quantization_config="),
    "a scale of each layer": (
        "GPT-2", config(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx"),
    "no scale": ("GPT-2", config(scale_attn_weights=False), "scale_attn_weights=False may change"),
    "a number for a switch": ("GPT-2", config(scale_attn_weights=1.0), "scale_attn_weights=1.0"),
    "two bases": ("Llama", config(rope_theta=5e5), "rope_theta is 500000.0, and 10000.0 in"),
    "dynamic": (
        "Llama", config(rope_parameters={"rope_type": "dynamic", "factor": 2.0}), "=dynamic must"),
    "two scalings": (
        "Llama", config(rope_scaling={"type": "linear", "factor": 2.0}), "rope_type.* elsewhere"),
    "a factor without a type": (
        "Llama", config(rope_parameters={"factor": 2.0}), "factor does not go with rope_type=def"),
    "yarn with another attention": (
        "Llama", config(rope_parameters=YARN | {"attention_factor": 1.0}), "attention_factor=1.0"),
    "yarn with endless turns": (
        "Llama", config(rope_parameters=YARN | {"beta_fast": 1e308}), "rope_high=1e.308 must be"),
    "yarn with almost no turns": (
        "Llama", config(rope_parameters=YARN | {"beta_slow": 1e-310}), "rope_low=1e-310 must be"),
    "yarn in the wrong order": (
        "Llama", config(rope_parameters=YARN | {"beta_fast": 1, "beta_slow": 32}), "rope_low=32"),
    "rope that is a list": ("Llama", config(rope_parameters=[1]), "must be a section of keys"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_files_that_cannot_work_are_refused_by_name(name: str, saved: Path, tmp_path: Path) -> None:
    kind, change, words = CASES[name]
    folder = tmp_path / "theirs"
    shutil.copytree(saved / kind, folder)
    change(folder)
    said = refusal(folder)
    assert str(folder) in said
    assert re.search(words, said), said


def test_an_untouched_folder_is_read_through_links(saved: Path, tmp_path: Path) -> None:
    for path in (saved / "Llama").iterdir():  # as in the cache of Hugging Face
        (tmp_path / path.name).symlink_to(path)
    load_model(open_source("ckpt", str(tmp_path)), torch.device("cpu"))


PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 70), st.integers(), st.floats(), st.text(max_size=8),
    st.lists(st.integers(0, 3), max_size=3), st.dictionaries(st.sampled_from(["factor", "type"]),
    st.integers(0, 9)),
)  # fmt: skip


@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "GPT-2"])
def test_any_config_is_refused_or_gives_the_shape_of_the_weights(kind: str, saved: Path) -> None:
    path = saved / kind / CONFIG
    before = path.read_text()
    keys = st.one_of(st.sampled_from(sorted(json.loads(before))), st.text(max_size=8))

    @settings(max_examples=60)
    @given(st.dictionaries(keys, PLAIN, min_size=1, max_size=2))
    def check(changes: dict[str, Any]) -> None:
        path.write_text(json.dumps(json.loads(before) | changes))
        try:
            model = load_model(open_source("ckpt", str(path.parent)), torch.device("cpu"))
        except Refused:
            return
        assert model(torch.tensor([[1, 2]])).isfinite().all()

    try:
        check()
    finally:
        path.write_text(before)


class Harmful:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch executed",)


def saved_by_torch(values: Any, **options: Any) -> Change:
    return lambda folder: torch.save(values, folder / "ckpt.pt", **options)


def compressed(folder: Path) -> None:
    path = folder / "ckpt.pt"
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def nanogpt(**args: Any) -> Change:
    shape = {"n_layer": 2, "n_head": 4, "n_embd": 48, "block_size": 128, "bias": True,
             "vocab_size": 61}  # fmt: skip
    return nanogpt_args(shape | args)


def nanogpt_args(args: dict[Any, Any]) -> Change:
    return lambda folder: save_nanogpt(folder, model_args=args)


def newer_archive(folder: Path) -> None:
    raw = bytearray((folder / "ckpt.pt").read_bytes())
    entry = raw.rindex(b"PK\x01\x02")  # of the directory at the end
    raw[entry + 6] = 255  # the version of zip that is needed to read it
    (folder / "ckpt.pt").write_bytes(raw)


def params(**values: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "params.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


WIDE = torch.ones(1).expand(61, 48)
PICKLED: dict[str, tuple[str, Change, str]] = {
    "code": ("nanogpt", saved_by_torch({"model": Harmful()}), "more than tensors and plain"),
    "code in the old format": (
        "nanogpt", saved_by_torch(Harmful(), _use_new_zipfile_serialization=False), "torch.save"),
    "a plain pickle": (
        "nanogpt", lambda f: (f / "ckpt.pt").write_bytes(pickle.dumps(Harmful())), "torch.save"),
    "a compressed archive": ("nanogpt", compressed, "is compressed, which torch.save never does"),
    "a cut archive": ("nanogpt", lambda f: os.truncate(f / "ckpt.pt", 5000), "not a file of torch"),
    "a list": ("nanogpt", saved_by_torch([1]), "has no model_args"),
    "no shape": ("nanogpt", saved_by_torch({"model": {}}), "has no model_args"),
    "an unknown argument": ("nanogpt", nanogpt(n_experts=8), "model_args.n_experts is an unknown"),
    "another shape": ("nanogpt", nanogpt(n_embd=64), r"has shape \(61, 48\), the config needs"),
    "a billion layers": ("nanogpt", nanogpt(n_layer=10**9), "n_layer=1000000000 must be"),
    "one number as a matrix": (
        "nanogpt", lambda f: save_nanogpt(f, model={"transformer.wte.weight": WIDE}),
        "transformer.wte.weight is not a plain tensor"),
    "text as a tensor": (
        "nanogpt", lambda f: save_nanogpt(f, model={"transformer.wte.weight": "x"}),
        "is not a plain tensor"),
    "Llama without its params": (
        "meta", lambda f: (f / "params.json").unlink(), "needs params.json beside it"),
    "Llama in two files": (
        "meta", lambda f: (f / "consolidated.01.pth").touch(), "splits each tensor over several"),
    "an unknown parameter": ("meta", params(moe_args={}), "moe_args is an unknown key"),
    "a scaling without its factor": ("meta", params(use_scaled_rope=True), "8 for Llama 3.1"),
    "another width": ("meta", params(multiple_of=96), r"w1.weight has shape \(128, 48\)"),
    "an endless width": ("meta", params(ffn_dim_multiplier=1e308), "multiplier=1e.308 must be"),
    "a width beyond the bounds": ("meta", params(multiple_of=2**40), "intermediate_size=1099511"),
    "a key that is a number": ("nanogpt", nanogpt_args({1: 2}), "has the key 1, which is not text"),
    "a newer archive": ("nanogpt", newer_archive, "is not a file of torch.save .* version 25.5"),
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLED)
def test_a_pickle_yields_nothing_but_the_weights_of_its_shape(
    name: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, change, words = PICKLED[name]
    folder = tmp_path / "theirs"
    shutil.copytree(saved / kind, folder)
    change(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    said = refusal(folder)
    assert re.search(words, said), said
    assert not (tmp_path / "executed").exists()
