"""Exported folders load in transformers without warnings: same logits, ids and text."""

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from llm.checkpoint.folder import CheckpointFolder
from llm.data.bpe import BPETokenizer
from llm.data.tokenizer import ByteTokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer
from llm.errors import Refused
from llm.interchange.families import choose_family
from llm.interchange.source import load_model, open_source
from llm.interchange.writing import export_gguf, export_hf, uses_of_hf
from llm.model.gpt import GPT
from tests.model.test_reference import randomised

SHAPE: dict[str, Any] = {
    "n_layer": 2, "n_embed": 48, "n_head": 4, "head_size": 12, "block_size": 96,
}  # fmt: skip
GPT2_STYLE: dict[str, Any] = {
    "norm": "layernorm", "mlp": "gelu", "position": "learned", "bias": True,
}  # fmt: skip
LLAMA3_ROPE: dict[str, Any] = {
    "rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_size": 32, "rope_base": 500.0,
}  # fmt: skip
YARN: dict[str, Any] = {
    "rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_size": 24, "rope_high": 32.0,
}  # fmt: skip
COMMON_CASES = [
    pytest.param("llama", {}, id="llama"),
    pytest.param("llama", {"tie_embeddings": False, "n_kv_head": 2, "bias": True}, id="biased"),
    pytest.param("llama", {"head_size": 32, "norm_eps": 1e-5}, id="wide heads"),
    pytest.param("llama", {"rope_scaling": "linear", "rope_factor": 3.0}, id="linear rope"),
    pytest.param("qwen3", {"qk_norm": True, "n_kv_head": 2, "rope_base": 100.0}, id="qwen3"),
    pytest.param("qwen2", {"qkv_bias": True, "n_kv_head": 1}, id="qwen2"),
    pytest.param("gpt2", GPT2_STYLE, id="gpt2"),
]
CASES = [
    *COMMON_CASES,
    pytest.param("llama", LLAMA3_ROPE, id="llama3 rope"),
    pytest.param("llama", YARN, id="yarn rope"),
    pytest.param("qwen3", {"qk_norm": True, "tie_embeddings": False}, id="untied qwen3"),
    pytest.param("gpt2", GPT2_STYLE | {"mlp": "gelu_exact", "tie_embeddings": False}, id="untied"),
    pytest.param("gpt2", GPT2_STYLE | {"bias": False, "intermediate_size": 64}, id="no biases"),
]  # fmt: skip
TEXT = "First Citizen:\nBefore we proceed, hear 3 me — 你好 <|endoftext|>\t\n\n  x"


def saved(folder: Path, tokenizer: Tokenizer, padding: int = 0, **options: Any) -> str:
    """A checkpoint with random weights, as a place to open."""
    model = randomised(GPT(**SHAPE | {"vocab_size": tokenizer.vocab_size + padding} | options))
    identity = {"config_digest": "c", "data_digest": "d"}
    folder.mkdir(exist_ok=True)
    checkpoints = CheckpointFolder(folder, 1, model.config, tokenizer, identity)
    return str(checkpoints.save_best(1, model.state_dict(), {}))


def loaded(folder: Path) -> Any:
    """The network that transformers makes of ``folder``, which must fit exactly."""
    from transformers import AutoModelForCausalLM

    with no_warnings():
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, local_files_only=True
        )
    assert not any(info.values()), info
    return model.eval()


def their_tokenizer(folder: Path) -> Any:
    """The tokenizer that transformers makes of ``folder``."""
    from transformers import AutoTokenizer

    with no_warnings():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    """Fails for a warning of Python, and for one in a log, also in transformers' own."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign]
    loggers = [logging.getLogger(), logging.getLogger("transformers")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    assert not [str(one.message) for one in caught if "SWIG" not in str(one.message)]
    assert not [record.getMessage() for record in records]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize(("family", "options"), CASES)
def test_transformers_computes_the_same_and_both_round_trips_are_bitwise(
    family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    source = open_source("ckpt", saved(tmp_path / "run", ByteTokenizer(), 63, **options))
    export_hf(source, tmp_path / "hf", "fp32", False)
    ours, theirs = load_model(source, torch.device("cpu")), loaded(tmp_path / "hf")
    assert theirs.config.model_type == family
    tokens = torch.randint(257, (2, 90), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        logits = ours(tokens)
        difference = (logits - theirs(tokens).logits).abs().max()
    assert difference < 1e-5 * max(1.0, float(logits.abs().max()))

    again = open_source("ckpt", str(tmp_path / "hf"))
    weights, back = source.weights(), again.weights()
    assert weights.keys() <= back.keys()
    assert all(torch.equal(tensor, weights.get(name, torch.zeros(()).expand(tensor.shape)))
               for name, tensor in back.items())  # fmt: skip
    export_hf(again, tmp_path / "hf again", "fp32", False)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "hf" / name).read_bytes() == (tmp_path / "hf again" / name).read_bytes()


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, GPT2_STYLE], ids=["llama", "q3", "g2"])
def test_64_greedy_tokens_are_identical(options: dict[str, Any], tmp_path: Path) -> None:
    source = open_source("ckpt", saved(tmp_path / "run", CharTokenizer("abcdefgh"), **options))
    export_hf(source, tmp_path / "hf", "fp32", False)
    ours, theirs = load_model(source, torch.device("cpu")), loaded(tmp_path / "hf")
    tokens = prompt = torch.tensor([[3, 1, 2]])
    with torch.no_grad():
        for _ in range(64):
            tokens = torch.cat([tokens, ours(tokens)[:, -1].argmax(-1, keepdim=True)], dim=1)
        mask = torch.ones_like(prompt)
        found = theirs.generate(prompt, attention_mask=mask, max_new_tokens=64, do_sample=False)
    assert torch.equal(found, tokens)


def own_bpe() -> BPETokenizer:
    """A byte-level BPE with three merges and two special tokens."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("he", "a"), ("Ġ", "w")]
    words = [*letters, *("".join(pair) for pair in merges)]
    library = Library(models.BPE({word: n for n, word in enumerate(words)}, merges))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<|end|>", "<|user|>"])
    return BPETokenizer(library.to_str(), "<|end|>")


def bpe_of_gguf() -> BPETokenizer:
    """The same with the special tokens first, and only in the list of added tokens."""
    values = json.loads(own_bpe().definition)
    for number, token in enumerate(values["added_tokens"]):
        token["id"] = number
    words = [word for word in values["model"]["vocab"] if not word.startswith("<|")]
    values["model"]["vocab"] = {word: number + 2 for number, word in enumerate(words)}
    return BPETokenizer(json.dumps(values), "<|end|>")


TOKENIZERS = [
    GPT2Tokenizer, ByteTokenizer, own_bpe, bpe_of_gguf,
    lambda: CharTokenizer("".join(sorted(set(TEXT)))),
]  # fmt: skip


@pytest.mark.parametrize("build", TOKENIZERS, ids=["gpt2", "byte", "bpe", "bpe2", "char"])
def test_ids_decoded_text_and_the_end_of_a_text_are_the_same(build: Any, tmp_path: Path) -> None:
    tokenizer: Tokenizer = build()
    place = saved(tmp_path / "run", tokenizer, n_embed=16, n_head=2, head_size=8, n_layer=1)
    export_hf(open_source("ckpt", place), tmp_path / "hf", "fp16", False)
    theirs = their_tokenizer(tmp_path / "hf")
    whole = tokenizer.encode(TEXT).tolist()
    parts = [TEXT] if tokenizer.kind == "char" else TEXT.split("<|endoftext|>")
    for part in parts:
        ids = tokenizer.encode(part).tolist()
        assert theirs(part, add_special_tokens=False)["input_ids"] == ids
        assert theirs.decode(ids) == part
    again = open_source("ckpt", str(tmp_path / "hf")).tokenizer
    assert again.kind == tokenizer.kind and again.encode(TEXT).tolist() == whole
    assert again.digest() == tokenizer.digest() or tokenizer.kind == "bpe"
    assert theirs.eos_token_id == tokenizer.end_of_text
    names = list(tokenizer.special_ids)
    assert theirs.convert_tokens_to_ids(names) == list(tokenizer.special_ids.values())
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["eos_token_id"] == tokenizer.end_of_text


def test_the_printed_line_for_llama_cpp_depends_on_the_tokenizer(tmp_path: Path) -> None:
    out = tmp_path / "my model"
    typed, uses = f"'{out}'", []
    for build in (GPT2Tokenizer, ByteTokenizer):
        place = saved(tmp_path / build.__name__, build(), n_embed=16, n_head=2, head_size=8)
        uses.append(uses_of_hf(open_source("ckpt", place), out))
    gpt2, byte = uses
    assert gpt2["llama.cpp"] == f"python convert_hf_to_gguf.py {typed}"
    assert gpt2["ollama"].startswith(f"printf 'FROM %s\\n' {typed} > Modelfile && ollama create")
    assert byte.keys() == {"transformers", "llama.cpp and ollama"}
    words = byte["llama.cpp and ollama"]
    assert words == f"python run_export.py ckpt={place} format=gguf 'out={out}.gguf'"
    for use in uses:
        assert use["transformers"] == f"AutoModelForCausalLM.from_pretrained({str(out)!r})"


def test_a_character_that_the_vocabulary_lacks_is_refused_there_too(tmp_path: Path) -> None:
    export_hf(open_source("ckpt", saved(tmp_path / "run", CharTokenizer("abc"))),
              tmp_path / "hf", "fp32", False)  # fmt: skip
    with pytest.raises(Exception, match="UNK"):
        their_tokenizer(tmp_path / "hf")("abd")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"smear": 1, "residual_scalars": True, "qk_norm": True},
         ["smear=1", "residual_scalars=true"]),
        ({"mlp": "relu2", "smear": 2}, ["mlp=relu2", "smear=2"]),
        ({"position": "learned"}, ["position=learned"]),
        (GPT2_STYLE | {"n_kv_head": 2}, ["n_kv_head=2"]),
        (GPT2_STYLE | {"head_size": 8}, ["head_size=8"]),
        ({"qk_norm": True, "bias": True}, ["qk_norm=true"]),
    ],
    ids=str,
)  # fmt: skip
def test_a_network_of_no_other_architecture_is_refused_naming_all_settings(
    options: dict[str, Any], named: list[str], tmp_path: Path
) -> None:
    place = saved(tmp_path / "run", ByteTokenizer(), **options)
    with pytest.raises(Refused, match="experiment=exportable") as refused:
        export_hf(open_source("ckpt", place), tmp_path / "hf", "fp32", False)
    assert all(f"model.{one}" in str(refused.value) for one in named)
    assert not (tmp_path / "hf").exists()


def test_a_value_too_large_for_half_precision_leaves_no_folder(tmp_path: Path) -> None:
    source = open_source("ckpt", saved(tmp_path / "run", CharTokenizer("ab")))
    weights = source.weights()
    weights["norm.weight"][0] = 1e6
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(source), "weights", lambda _: weights)
        with pytest.raises(Refused, match=r"model\.norm\.weight has values too large"):
            export_hf(source, tmp_path / "hf", "fp16", False)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_weights_are_rounded_to_the_type_asked_for(dtype: str, tmp_path: Path) -> None:
    source = open_source("ckpt", saved(tmp_path / "run", CharTokenizer("ab")))
    export_hf(source, tmp_path / "hf", dtype, False)
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    stored = safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors")
    assert torch.equal(stored["model.norm.weight"], source.weights()["norm.weight"].to(kind))
    assert loaded(tmp_path / "hf").dtype == kind


def test_the_family_follows_from_the_options() -> None:
    for family, options in (one.values for one in CASES):
        config = GPT(**SHAPE | {"vocab_size": 8} | options).config  # type: ignore[operator]
        assert choose_family(config).name == family, asdict(config)


@pytest.mark.parametrize("scaling", ["none", "yarn"])
def test_an_export_has_the_whole_context_of_the_weights(scaling: str, tmp_path: Path) -> None:
    options = YARN | {"rope_original_size": 1024} if scaling == "yarn" else {}
    place = saved(tmp_path / "run", ByteTokenizer(), block_size=4096, **options)
    export_hf(open_source("ckpt", place), tmp_path / "hf", "fp32", False)
    source = open_source("ckpt", str(tmp_path / "hf"))
    assert (source.model.block_size, source.context) == (2048, 4096)
    export_hf(source, tmp_path / "again", "fp32", False)
    assert (tmp_path / "hf" / "config.json").read_text() == (
        tmp_path / "again" / "config.json"
    ).read_text()
    assert their_tokenizer(tmp_path / "again").model_max_length == 4096
    export_gguf(source, tmp_path / "a.gguf", "fp32", False)
    assert open_source("ckpt", str(tmp_path / "a.gguf")).context == 4096
