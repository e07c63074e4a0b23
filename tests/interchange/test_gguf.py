"""GGUF files have the tensors of gguf and the logits of transformers; hostile ones are refused."""

import hashlib
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.errors import Refused
from llm.interchange import source
from llm.interchange.gguf import open_gguf
from llm.interchange.gguf_file import read_header, read_tensor
from llm.interchange.quants import BLOCKS, dequantize
from llm.model.gpt import GPT
from tests.interchange import gguf_files
from tests.interchange.theirs import difference_of

ARCHS = ["llama", "qwen2", "qwen3", "gpt2"]


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_type_is_dequantised_to_the_same_bits_as_by_gguf(kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, (700, BLOCKS[kind][1] * 2), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
        found = dequantize(raw.reshape(-1), kind).reshape(expected.shape)
    same = (found.view(np.uint32) == expected.view(np.uint32)) | (
        np.isnan(found) & np.isnan(expected)
    )
    assert same.all() and found.dtype == np.float32


def logits(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    opened = open_gguf(str(path))
    model = GPT(**vars(opened.model))
    model.load_state_dict(opened.weights())
    tokens = torch.arange(20)[None] * 11 % gguf_files.shapes("llama")["token_embd.weight"][0]
    with torch.no_grad():
        return tokens, model.eval()(tokens)


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("arch", ARCHS)
def test_each_architecture_gives_the_logits_of_transformers(
    tmp_path: Path, arch: str, kind: str, report: Callable[[str], None]
) -> None:
    path = gguf_files.write(tmp_path / "a.gguf", arch, kind)
    tokens, ours = logits(path)
    with torch.no_grad():
        theirs = reference(path, arch)(tokens).logits
    assert difference_of(ours, theirs, report, f"GGUF: {arch} in {kind}") < 1e-4
    assert theirs.abs().max() > 0.5


@pytest.mark.parametrize(
    ("keys", "rope"),
    [
        ({"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 64, "yarn_beta_slow": 0.25,
             "yarn_beta_fast": 1.5},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
             "beta_slow": 0.25, "beta_fast": 1.5},
        ),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 1024},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
        ),
        (
            {"type": "yarn", "factor": 4.0},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
    ],
    ids=["linear", "yarn", "yarn with the usual turns", "yarn without the original context"],
)  # fmt: skip
@torch.no_grad()
def test_scaled_rotary_positions_give_the_logits_of_transformers(
    keys: dict[str, Any], rope: dict[str, Any], tmp_path: Path, report: Callable[[str], None]
) -> None:
    named = {f"qwen2.rope.scaling.{key}": value for key, value in keys.items()}
    path = gguf_files.write(tmp_path / "a.gguf", "qwen2", keys=named)
    tokens, ours = logits(path)
    model = reference(path, "qwen2", rope_parameters=rope | {"rope_theta": 10_000.0})
    assert difference_of(ours, model(tokens).logits, report, f"GGUF: qwen2, {keys}") < 1e-4


def reference(path: Path, arch: str, **options: Any) -> Any:
    """transformers' network, with the tensors that gguf reads, under its names."""
    import transformers

    shape = {"vocab_size": len(gguf_files.TOKENS) + 3}
    if arch == "gpt2":
        config: Any = transformers.GPT2Config(
            n_embd=64, n_head=4, n_layer=2, n_positions=32, n_inner=96, **shape
        )
        model: Any = transformers.GPT2LMHeadModel(config)
    else:
        classes = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
        config = getattr(transformers, f"{classes[arch]}Config")(
            hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-5, tie_word_embeddings=True,
            max_position_embeddings=32, **shape, **options,
        )  # fmt: skip
        model = getattr(transformers, f"{classes[arch]}ForCausalLM")(config)
    architecture = gguf.MODEL_ARCH[arch.upper()]
    names = gguf.get_tensor_name_map(architecture, 2)
    found = {t.name: t for t in gguf.GGUFReader(path).tensors}
    for name, parameter in model.named_parameters():
        tensor = found[names.get_name(name, try_suffixes=(".weight", ".bias"))]
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if arch == "gpt2" and values.ndim == 2 and ".h." in name:
            values = values.T
        if arch == "llama" and (".q_proj" in name or ".k_proj" in name):
            heads = 4 if ".q_proj" in name else 2  # pairs of rows are (2i, 2i + 1) there
            values = values.reshape(heads, 8, 2, -1).swapaxes(1, 2).reshape(values.shape)
        parameter.data.copy_(torch.from_numpy(np.array(values)))
    return model.eval()


def test_the_tokenizer_splits_words_and_knows_its_special_tokens(tmp_path: Path) -> None:
    for pre in ("gpt-2", "smollm", "qwen2", "llama-bpe", "default", None):
        tokenizer = open_gguf(str(gguf_files.write(tmp_path / "a.gguf", pre=pre))).tokenizer
        assert tokenizer.special_ids == {"<|endoftext|>": 0, "<|im_end|>": 1}
        assert tokenizer.end_of_text == 1
        ids = tokenizer.encode("th the 12<|im_end|>").tolist()
        assert ids[:2] == [gguf_files.TOKENS.index(text) for text in ("th", "Ġthe")]
        assert tokenizer.decode(ids) == "th the 12<|im_end|>" and not {0, 1} & set(ids)
    with pytest.raises(Refused, match=r"tokenizer\.ggml\.pre='deepseek-llm', and this program has"):
        _ = open_gguf(str(gguf_files.write(tmp_path / "a.gguf", pre="deepseek-llm"))).tokenizer


@pytest.mark.parametrize(
    ("arch", "keys", "tensors", "message"),
    [
        ("gemma2", {}, {}, "architecture 'gemma2', and this program reads llama, qwen2"),
        ("llama", {"llama.expert_count": 8}, {}, r"llama\.expert_count=8 may change what"),
        ("qwen3", {"qwen3.attention.sliding_window": 64}, {}, "sliding_window=64 may change"),
        ("llama", {"llama.final_logit_softcapping": 30.0}, {}, r"softcapping=30\.0 may change"),
        ("llama", {"llama.rope.dimension_count": 8}, {}, "rope.dimension_count=8, and this"),
        ("llama", {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}, {},
         r"rope\.scaling\.type='longrope', and this program has linear and yarn"),
        ("llama", {}, {"blk__0__attn_sinks": np.ones(4, np.float32)}, "tensor blk.0.attn_sinks"),
        ("llama", {}, {"rope_freqs__weight": np.full(8, 2, np.float32)}, "freqs.weight scales"),
        ("llama", {}, {"output__weight": np.ones((2, 64), np.float32)}, r"output.weight has shape"),
        ("llama", {}, {"x": np.ones((2, 64), np.float64)}, "x is of type F64, and this program"),
    ],
)  # fmt: skip
def test_keys_and_tensors_that_would_change_the_logits_are_refused_by_name(
    tmp_path: Path, arch: str, keys: dict[str, Any], tensors: dict[str, Any], message: str
) -> None:
    path = tmp_path / "a.gguf"
    gguf_files.write(path, "llama" if arch == "gemma2" else arch, keys=keys, **tensors)
    if arch == "gemma2":
        path.write_bytes(
            path.read_bytes().replace(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0gemma")
        )
        message = message.replace("gemma2", "gemma")
    with pytest.raises(Refused, match=message):
        open_gguf(str(path)).weights()


def test_a_part_of_a_split_file_is_refused_saying_how_to_merge_the_parts(tmp_path: Path) -> None:
    gguf_files.write(tmp_path / "a.gguf", part=9)
    parts = sorted(tmp_path.glob("a-0000?-of-00003.gguf"))
    assert len(parts) == 3
    for path in parts:  # only the first part names the architecture
        with pytest.raises(Refused) as refused:
            source.open_source("ckpt", str(path))
        merge = "merge them first, with llama-gguf-split --merge FIRST_PART.gguf MERGED.gguf"
        assert str(refused.value) == f"{path} is one of 3 parts of a network: {merge}"
        assert refused.value.exit_status == 2


def test_llama_3s_tensor_of_frequencies_becomes_its_scaling(tmp_path: Path) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_theta": 10_000.0}  # fmt: skip
    config = LlamaConfig(head_dim=16, rope_parameters=rope, max_position_embeddings=131072)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    divisors = (10_000.0 ** -(torch.arange(8) / 8) / scaled).float().numpy()
    path = gguf_files.write(tmp_path / "a.gguf", rope_freqs__weight=divisors)
    model = open_gguf(str(path)).model
    assert (model.rope_scaling, model.rope_factor, model.rope_original_size) == ("llama3", 8, 8192)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return gguf_files.write(tmp_path_factory.mktemp("gguf") / "a.gguf", kind="Q8_0").read_bytes()


EDITS = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.one_of(
            st.binary(min_size=1, max_size=8),
            st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f", b"\0\0\0\0\0\0\0\x7f"]),
        ),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=300, deadline=None, database=None)
@given(edits=EDITS, length=st.floats(0, 1.2), in_header=st.booleans())
def test_a_damaged_file_is_one_line_in_bounded_memory(
    tmp_path_factory: pytest.TempPathFactory, small: bytes, edits: list[tuple[float, bytes]],
    length: float, in_header: bool,
) -> None:  # fmt: skip
    raw, until = bytearray(small), 9000 if in_header else len(small)
    for share, written in edits:
        at = int(share * until)
        raw[at : at + len(written)] = written
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(raw[: int(length * len(raw))])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        opened = open_gguf(str(path))
        opened.tokenizer.encode("the")
        opened.weights()
    except Refused as refused:
        assert "\n" not in str(refused) and len(str(refused)) < 600
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 << 10, f"{grown} KiB"


def test_tensors_are_read_where_the_header_says(tmp_path: Path) -> None:
    path = gguf_files.write(tmp_path / "a.gguf", kind="Q4_0")
    header = read_header(path)
    for tensor in gguf.GGUFReader(path).tensors:
        ours = header.tensors[tensor.name]
        assert ours.kind == tensor.tensor_type.name and ours.offset == tensor.data_offset
        assert ours.shape == tuple(int(n) for n in tensor.shape[::-1])
        assert read_tensor(path, ours).tobytes() == tensor.data.tobytes()


def test_a_file_and_a_name_open_as_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = gguf_files.write(Path("net"), kind="Q8_0")
    monkeypatch.setitem(source.DOWNLOADED, "smollm2", lambda: path)
    for place in ("net", "smollm2"):
        opened = source.open_source("init_from", place)
        assert (opened.kind, opened.place, opened.model.n_layer) == ("gguf", place, 2)
        assert opened.digest() == hashlib.sha256(path.read_bytes()).hexdigest()
        model = source.load_model(opened, torch.device("cpu"))
        assert model.logits(model.hidden(torch.tensor([[1, 2]]))).isfinite().all()
    Path("net.gguf").write_text("no")
    with pytest.raises(Refused, match=r"net\.gguf is damaged, or not GGUF"):
        source.open_source("ckpt", "net.gguf")


@pytest.mark.parametrize("end", [-1, -99_999, len(gguf_files.TOKENS)])
def test_an_end_token_that_does_not_exist_is_refused(end: int, tmp_path: Path) -> None:
    path = gguf_files.write(tmp_path / "a.gguf")
    key = b"tokenizer.ggml.eos_token_id"
    before, after = path.read_bytes().split(key)
    path.write_bytes(before + key + struct.pack("<Ii", 5, end) + after[8:])  # 5: int32
    with pytest.raises(Refused, match=rf"eos_token_id={end} is not the id of one of its 261"):
        _ = open_gguf(str(path)).tokenizer
