"""Exported GGUF files: the same weights by this reader and by the library gguf, the same ids."""

import json
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import pytest
import torch

from llm.data.bpe import BPETokenizer
from llm.data.tokenizer import ByteTokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer
from llm.errors import Refused
from llm.interchange.families import choose_family
from llm.interchange.gguf_file import read_header
from llm.interchange.gguf_tokenizer import tokenizer_of_keys
from llm.interchange.gguf_vocabulary import OWN_KEY, own_tokenizer, vocabulary
from llm.interchange.gguf_writing import gguf_family
from llm.interchange.hf_writing import their_tensors
from llm.interchange.sentencepiece import definition_of_pieces
from llm.interchange.source import load_model, open_source
from llm.interchange.writing import export_gguf, uses_of_gguf
from llm.model.gpt import GPT
from tests.interchange.test_hf_writing import (
    COMMON_CASES,
    GPT2_STYLE,
    LLAMA3_ROPE,
    SHAPE,
    TEXT,
    YARN,
    own_bpe,
    saved,
)

STANDARD_ROPE: dict[str, Any] = LLAMA3_ROPE | {"rope_original_size": 8192}
CASES = [
    *COMMON_CASES,
    pytest.param("llama", STANDARD_ROPE, id="llama3 rope"),
    pytest.param("qwen3", {"qk_norm": True} | YARN, id="yarn"),
    pytest.param("gpt2", GPT2_STYLE | {"bias": False, "tie_embeddings": False}, id="no biases"),
]  # fmt: skip


def exported(folder: Path, tokenizer: Tokenizer, dtype: str = "fp32", **options: Any) -> Path:
    """A GGUF file of a small random network."""
    padding = options.pop("padding", 0)
    place = saved(folder / "run", tokenizer, padding, **options)
    export_gguf(open_source("ckpt", place), folder / "a.gguf", dtype, True)
    return folder / "a.gguf"


@pytest.mark.parametrize(("arch", "options"), CASES)
def test_weights_are_the_same_bits_after_a_round_trip_and_by_the_librarys_names(
    arch: str, options: dict[str, Any], tmp_path: Path
) -> None:
    path = exported(tmp_path, ByteTokenizer(), padding=63, **options)
    source, again = open_source("ckpt", str(tmp_path / "run")), open_source("ckpt", str(path))
    weights, back = source.weights(), again.weights()
    assert weights.keys() <= back.keys()
    for name, tensor in back.items():  # biases that our network lacks are zeros
        assert torch.equal(tensor, weights.get(name, torch.zeros(()).expand(tensor.shape))), name
    for key in ("rope_scaling", "rope_factor", "block_size", "n_kv_head", "qk_norm", "bias"):
        if key != "bias" or arch != "gpt2":
            assert getattr(again.model, key) == getattr(source.model, key), key

    # transformers' tensors, by the library's table of names
    model = source.model
    theirs = their_tensors(weights, model, choose_family(model), torch.float32)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], model.n_layer)
    found = {one.name: np.array(one.data) for one in gguf.GGUFReader(path).tensors}
    for name, tensor in theirs.items():
        values = tensor.T if arch == "gpt2" and tensor.dim() == 2 and ".h." in name else tensor
        if arch == "llama" and (".q_proj" in name or ".k_proj" in name):
            heads = model.n_head if ".q_proj" in name else model.n_kv_head
            assert heads
            rows = values.reshape(heads, 2, values.shape[0] // heads // 2, -1)
            values = rows.swapaxes(1, 2).reshape(values.shape)
        stored = found.pop(str(names.get_name(name, try_suffixes=(".weight", ".bias"))))
        assert np.array_equal(stored, values.numpy()), name
    assert found.keys() <= {"rope_freqs.weight"}


YARN_SHAPE: dict[str, Any] = {
    "n_kv_head": 2, "intermediate_size": 80, "norm_eps": 3e-4, "rope_base": 500.0,
} | YARN  # fmt: skip


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        pytest.param("llama", YARN_SHAPE, id="yarn"),
        pytest.param(
            "qwen3", YARN_SHAPE | {"qk_norm": True, "rope_original_size": None}, id="qwen3"
        ),
        pytest.param(
            "qwen2", {"qkv_bias": True, "rope_scaling": "linear", "rope_factor": 3.0}, id="linear"
        ),
        pytest.param("gpt2", GPT2_STYLE | {"intermediate_size": 64}, id="gpt2"),
        pytest.param("gpt2", GPT2_STYLE | {"norm_eps": 3e-4}, id="gpt2 with another eps"),
    ],
)
def test_the_file_has_each_hyperparameter_of_the_network(
    arch: str, options: dict[str, Any], tmp_path: Path
) -> None:
    path = exported(tmp_path, CharTokenizer("abc"), **options)
    network = load_model(open_source("ckpt", str(tmp_path / "run")), torch.device("cpu"))
    model, names = network.config, gguf.Keys
    eps = cast(torch.nn.RMSNorm | torch.nn.LayerNorm, network.norm).eps
    wanted: dict[str, Any] = {
        names.General.ARCHITECTURE: arch, names.LLM.VOCAB_SIZE: 3,
        names.LLM.CONTEXT_LENGTH: model.block_size, names.LLM.EMBEDDING_LENGTH: model.n_embed,
        names.LLM.BLOCK_COUNT: model.n_layer, names.Attention.HEAD_COUNT: model.n_head,
        names.LLM.FEED_FORWARD_LENGTH: model.intermediate_size,
    }  # fmt: skip
    if arch == "gpt2":
        wanted[names.Attention.LAYERNORM_EPS] = eps
    else:
        wanted |= {
            names.Attention.HEAD_COUNT_KV: model.n_kv_head, names.Attention.LAYERNORM_RMS_EPS: eps,
            names.Attention.KEY_LENGTH: model.head_size, names.Rope.FREQ_BASE: model.rope_base,
            names.Attention.VALUE_LENGTH: model.head_size,
            names.Rope.DIMENSION_COUNT: model.head_size,
        }  # fmt: skip
    if "rope_scaling" in options:
        wanted[names.Rope.SCALING_TYPE] = model.rope_scaling
        wanted[names.Rope.SCALING_FACTOR] = model.rope_factor
    if model.rope_scaling == "yarn":
        original = options["rope_original_size"] or model.block_size
        wanted |= {
            names.Rope.SCALING_ORIG_CTX_LEN: original,
            names.Rope.SCALING_YARN_BETA_SLOW: 1.0, names.Rope.SCALING_YARN_BETA_FAST: 32.0,
        }  # fmt: skip
    fields = gguf.GGUFReader(path).fields
    found = {key: field.contents() for key, field in fields.items() if key.startswith(f"{arch}.")}
    found |= {names.General.ARCHITECTURE: fields[names.General.ARCHITECTURE].contents()}
    assert found == {key.format(arch=arch): pytest.approx(value) if isinstance(value, float)
                     else value for key, value in wanted.items()}  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "kind"), [("fp16", "F16"), ("bf16", "BF16"), ("q8_0", "Q8_0")], ids=str
)
def test_matrices_are_stored_in_the_type_asked_for(dtype: str, kind: str, tmp_path: Path) -> None:
    options = {"n_embed": 64, "n_head": 4, "head_size": 16, "intermediate_size": 80}
    path = exported(tmp_path, ByteTokenizer(), dtype, **options)
    weights = open_source("ckpt", str(tmp_path / "run")).weights()
    tensors = {one.name: one for one in gguf.GGUFReader(path).tensors}
    kinds = {name: one.tensor_type.name for name, one in tensors.items()}
    assert kinds["token_embd.weight"] == kinds["blk.0.ffn_up.weight"] == kind
    assert kinds["output_norm.weight"] == kinds["blk.1.attn_norm.weight"] == "F32"
    # rows of 80 are not whole blocks of 32
    assert kinds["blk.0.ffn_down.weight"] == ("F16" if kind == "Q8_0" else kind)
    values = gguf.dequantize(tensors["token_embd.weight"].data, gguf.GGMLQuantizationType[kind])
    back = open_source("ckpt", str(path)).weights()["embed.weight"]
    assert np.array_equal(back, values)
    assert (back - weights["embed.weight"]).abs().max() < 0.02 * weights["embed.weight"].abs().max()


def sentencepiece() -> BPETokenizer:
    """A vocabulary as sentencepiece trains it, with bytes to fall back to."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [2, 3, 3, *[6] * 256]
    words = ["▁t", "he", "▁the", "ea", "▁", *"theax:"]
    scores = [*[0.0] * 259, *(-float(n) for n in range(len(words)))]
    definition = definition_of_pieces(pieces + words, scores, kinds + [1] * len(words), True)
    definition["model"]["unk_token"] = "<unk>"
    return BPETokenizer(json.dumps(definition, ensure_ascii=False), "</s>")


TOKENIZERS = {
    "gpt2": GPT2Tokenizer, "byte": ByteTokenizer, "bpe": own_bpe, "pieces": sentencepiece,
    "char": lambda: CharTokenizer("".join(sorted(set(TEXT) | set("\\\r'\xad\ue000")))),
}  # fmt: skip


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_same_tokenizer_comes_back(kind: str, tmp_path: Path) -> None:
    tokenizer: Tokenizer = TOKENIZERS[kind]()  # type: ignore[operator]
    path = exported(tmp_path, tokenizer, n_embed=16, n_head=2, head_size=8, n_layer=1, padding=3)
    assert open_source("ckpt", str(path)).tokenizer.digest() == tokenizer.digest()
    header = read_header(path)
    del header.values[OWN_KEY]
    if kind == "char":
        with pytest.raises(Refused, match="a tokenizer of the kind 'rwkv'"):
            tokenizer_of_keys(header.values, path)
        return
    theirs = tokenizer_of_keys(header.values, path)  # by llama.cpp's keys alone
    assert theirs.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
    assert theirs.end_of_text == tokenizer.end_of_text


def test_our_key_does_not_count_if_the_others_disagree(tmp_path: Path) -> None:
    values = read_header(exported(tmp_path, ByteTokenizer())).values
    assert isinstance(own_tokenizer(values), ByteTokenizer)
    tokens = values["tokenizer.ggml.tokens"]
    swapped = [tokens[1], tokens[0], *tokens[2:]]
    assert own_tokenizer(values | {"tokenizer.ggml.tokens": swapped}) is None
    assert own_tokenizer(values | {"tokenizer.ggml.add_bos_token": True}) is None
    for damaged in ("", "[]", "{}", '{"kind": "bpe", "definition": "x", "end": ""}', "[" * 9999):
        assert own_tokenizer(values | {OWN_KEY: damaged}) is None


def changed(tokenizer: BPETokenizer, end: str, **keys: Any) -> BPETokenizer:
    return BPETokenizer(json.dumps(tokenizer.values | keys, ensure_ascii=False), end)


def test_a_tokenizer_that_llama_cpp_cannot_compute_is_refused() -> None:
    bpe, pieces = own_bpe(), sentencepiece()
    spaced = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    model = pieces.values["model"]
    incomplete = model | {"merges": model["merges"][:-1]}
    stripped = [token | {"special": False, "lstrip": True} for token in bpe.added]
    for wrong, size, said in [
        (changed(bpe, "<|end|>", pre_tokenizer=spaced), 300, "divides text into words in another"),
        (changed(bpe, "<|end|>", normalizer={"type": "NFKC"}), 300, "divides text into words"),
        (changed(bpe, "", added_tokens=stripped), 300, r"its token '<\|end\|>' takes the white"),
        (changed(bpe, "", added_tokens=[]), 259, "needs an id that ends a text"),
        (changed(pieces, "</s>", model=incomplete), 300, "no scores of its tokens give its order"),
        (bpe, 100, "a tokenizer of 261 ids and a network of 100"),
    ]:
        with pytest.raises(Refused, match=said):
            vocabulary(wrong, size)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (GPT2_STYLE | {"mlp": "gelu_exact"}, r"no model\.mlp=gelu_exact"),
        (LLAMA3_ROPE | {"qk_norm": True}, r"no model\.rope_scaling=llama3 for Qwen3"),
        (LLAMA3_ROPE, r"only with the values of Llama 3\.1 and 3\.2"),
        (
            YARN | {"rope_low": 2.0},
            r"rope_low=1 and model\.rope_high=32 only, and these are 2 and 32",
        ),
        (YARN | {"rope_high": 4.0}, "only, and these are 1 and 4: take format=hf"),
        ({"smear": 1}, r"model\.smear=1"),
    ],
)
def test_a_network_that_llama_cpp_cannot_compute_is_refused(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(Refused, match=said):
        gguf_family(GPT(**SHAPE | {"vocab_size": 257} | options).config)


def test_a_refused_network_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"model\.smear=1"):
        exported(tmp_path, ByteTokenizer(), smear=1)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_value_too_large_for_half_precision_leaves_no_file(tmp_path: Path) -> None:
    source = open_source("ckpt", saved(tmp_path / "run", CharTokenizer("ab")))
    weights = source.weights()
    weights["embed.weight"][0, 0] = 1e6
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(source), "weights", lambda _: weights)
        with pytest.raises(Refused, match=r"token_embd\.weight has values too large for F16"):
            export_gguf(source, tmp_path / "a.gguf", "fp16", False)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_paths_with_spaces_are_quoted_for_the_shell(tmp_path: Path) -> None:
    source = open_source("ckpt", saved(tmp_path / "run", ByteTokenizer()))
    uses = uses_of_gguf(source, tmp_path / "my model.gguf")
    assert f"-m '{tmp_path}/my model.gguf' -no-cnv" in uses["llama.cpp"]
    assert uses["ollama"].endswith("ollama create my-model -f Modelfile")
