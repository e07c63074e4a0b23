"""Speed of decoding: python -m benchmarks.decoding [--only ID[,ID]] [--json FILE]

Greedy decoding with a key/value cache, in float32, with random weights. It is compared with
transformers' generate on the same weights, also with a cache, and with the speed at which this
machine's memory can be read, since each weight is read once per token. nanoGPT's generate is
measured here for :mod:`benchmarks.vs_nanogpt`. Both sides run in this process in turn, because
other work on the machine slows down both.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.nanogpt import network
from benchmarks.rows import Parser, Row, alternate, report, row
from llm.device import tune_allocator
from llm.functional.linear import linear
from llm.model.gpt import GPT
from llm.sampling.cache import KVCache
from llm.sampling.generate import generate_batch
from llm.sampling.layout import lay_out_for_decoding
from llm.sampling.options import SamplingOptions

GPT2: dict[str, Any] = {"norm": "layernorm", "mlp": "gelu", "position": "learned", "bias": True}
LARGE = GPT2 | {"n_layer": 12, "n_embed": 768, "n_head": 12, "head_size": 64,
                "block_size": 1024, "vocab_size": 50_257}  # fmt: skip
SMALL = GPT2 | {"n_layer": 6, "n_embed": 384, "n_head": 6, "head_size": 64,
                "block_size": 256, "vocab_size": 65}  # fmt: skip
ONE = [[0]]
BATCH = [[(7 * i + n) % 65 for i in range(n)] for n in (1, 4, 8, 12, 20, 32, 48, 64)]
ROWS = {  # the network and its prompts
    "decode_10.7M_transformers": (SMALL, ONE),
    "decode_batch8": (SMALL, BATCH),
    "decode_124M_transformers": (LARGE, ONE),
    "decode_124M_bandwidth": (LARGE, ONE),
}
NEW_TOKENS = 512
Generate = Callable[[int], None]  # takes the number of new tokens


def ours(shape: dict[str, Any], prompts: list[list[int]]) -> tuple[GPT, Generate]:
    """Our network, and a function that generates with it."""
    torch.manual_seed(0)
    model = GPT(**shape).eval()
    lay_out_for_decoding(model)
    return model, writing(model, prompts)


def writing(model: GPT, prompts: list[list[int]]) -> Generate:
    """A function that continues all prompts at once with the most likely tokens."""
    seeds, n_tokens = range(len(prompts)), model.embed.num_embeddings

    def run(new_tokens: int) -> None:
        options = SamplingOptions(max_new_tokens=new_tokens, temperature=0)
        for _ in generate_batch(KVCache(model), prompts, options, seeds, n_tokens):
            pass

    return run


def transformers(model: GPT, shape: dict[str, Any], prompts: list[list[int]]) -> Generate:
    """The same weights in GPT2LMHeadModel; shorter prompts are padded on the left."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=shape["vocab_size"], n_positions=shape["block_size"], n_embd=shape["n_embed"],
        n_layer=shape["n_layer"], n_head=shape["n_head"], bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    theirs = GPT2LMHeadModel(config).eval()
    state = model.state_dict()
    names = {"embed": "wte", "position": "wpe", "norm": "ln_f"}
    blocks = {"attention_norm": "ln_1", "attention.o": "attn.c_proj", "mlp_norm": "ln_2",
              "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}  # fmt: skip
    weights: dict[str, Tensor] = {}
    for kind in ("weight", "bias"):
        for mine, name in names.items():
            if f"{mine}.{kind}" in state:
                weights[f"transformer.{name}.{kind}"] = state[f"{mine}.{kind}"]
        for i in range(shape["n_layer"]):
            block, place = f"blocks.{i}", f"transformer.h.{i}"
            for mine, name in blocks.items():  # their matrices are transposed
                weights[f"{place}.{name}.{kind}"] = state[f"{block}.{mine}.{kind}"].t()
            joined = torch.cat([state[f"{block}.attention.{n}.{kind}"] for n in "qkv"])
            weights[f"{place}.attn.c_attn.{kind}"] = joined.t()
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    longest = max(map(len, prompts))
    tokens = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    seen = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])

    def run(new_tokens: int) -> None:
        theirs.generate(
            tokens, attention_mask=seen, do_sample=False, use_cache=True, pad_token_id=0,
            min_new_tokens=new_tokens, max_new_tokens=new_tokens,
        )  # fmt: skip

    return run


def nanogpt(clone: Path, shape: dict[str, Any], prompt: list[int]) -> Generate:
    """A fresh network of the same shape from nanoGPT's model.py."""
    model = network(
        clone, block_size=shape["block_size"], vocab_size=shape["vocab_size"],
        n_layer=shape["n_layer"], n_head=shape["n_head"], n_embd=shape["n_embed"], bias=True,
    ).eval()  # fmt: skip
    tokens = torch.tensor([prompt])
    return lambda new_tokens: model.generate(tokens, new_tokens, top_k=1)


def bandwidth(repeats: int = 4) -> float:
    """Bytes per second at which a matrix-vector product reads a large matrix."""
    matrix, vector = torch.randn(8192, 8192), torch.randn(1, 8192)
    with torch.inference_mode():
        linear(vector, matrix)  # on all cores, as in decoding; torch.mv uses one
        start = time.perf_counter()
        for _ in range(repeats):
            linear(vector, matrix)
    return repeats * 4 * matrix.numel() / (time.perf_counter() - start)


def rate(generate: Generate, new_tokens: int, rows: int = 1) -> float:
    """New tokens per second, summed over rows; the time includes reading the prompts."""
    start = time.perf_counter()
    generate(new_tokens)
    return rows * new_tokens / (time.perf_counter() - start)


def size(model: GPT, rows: int, new_tokens: int) -> str:
    """A description of the measurement."""
    return (
        f"{model.n_parameters() / 1e6:.1f} M parameters, {rows} x {new_tokens} new tokens, tokens/s"
    )


def against_transformers(
    id: str, shape: dict[str, Any], prompts: list[list[int]], new_tokens: int, repeats: int
) -> Row:
    """Tokens per second of both; ``ratio`` is ours over theirs."""
    model, mine = ours(shape, prompts)
    theirs, n = transformers(model, shape, prompts), len(prompts)
    for warm_up in (mine, theirs):
        warm_up(8)
    pairs = alternate(
        lambda _: rate(mine, new_tokens, n), lambda _: rate(theirs, new_tokens, n), repeats
    )
    return row(id, f"{size(model, n, new_tokens)}; transformers with its cache", pairs, share)


def against_bandwidth(id: str, shape: dict[str, Any], new_tokens: int, repeats: int) -> Row:
    """Tokens per second; ``ratio`` is the bytes of weights read over the speed of the memory."""
    model, mine = ours(shape, ONE)
    mine(8)
    assert model.position is not None
    read = 4 * (model.n_parameters() - model.position.weight.numel())
    pairs = alternate(lambda _: rate(mine, new_tokens), lambda _: bandwidth(), repeats)
    what = f"{size(model, 1, new_tokens)}; bytes/s of a matrix-vector product; share of it"
    return row(id, what, pairs, lambda ours, other: read * ours / other)


def against_nanogpt(id: str, clone: Path, repeats: int, new_tokens: int = NEW_TOKENS) -> Row:
    """Tokens per second of the large network and of nanoGPT's; ``ratio`` is ours over theirs."""
    model, mine = ours(LARGE, ONE)
    theirs = nanogpt(clone, LARGE, ONE[0])
    mine(8)
    theirs(2)
    pairs = alternate(lambda _: rate(mine, new_tokens), lambda _: rate(theirs, new_tokens), repeats)
    return row(id, f"{size(model, 1, new_tokens)}; nanoGPT", pairs, share)


def share(ours: float, other: float) -> float:
    """Our speed over the other one."""
    return ours / other


def measure(id: str, new_tokens: int, repeats: int) -> Row:
    """The row called ``id``; transformers cannot generate beyond ``block_size``."""
    shape, prompts = ROWS[id]
    new_tokens = min(new_tokens, shape["block_size"] - max(map(len, prompts)))
    if id == "decode_124M_bandwidth":
        return against_bandwidth(id, shape, new_tokens, repeats)
    return against_transformers(id, shape, prompts, new_tokens, repeats)


def main(arguments: list[str] | None = None) -> None:
    """Measure the selected rows and print a table."""
    parser = Parser("Speed of decoding, side by side", list(ROWS))
    parser.add_argument(
        "--tokens",
        type=int,
        default=NEW_TOKENS,
        help="new tokens, at most (512; the small model 255)",
    )
    typed = parser.parse_args(arguments)
    tune_allocator(LARGE["n_embed"])  # as run_sample.py does; it helps the other side as well
    report((measure(id, typed.tokens, typed.repeats) for id in typed.only), typed.json)


if __name__ == "__main__":
    main()
