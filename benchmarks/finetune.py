"""What fits in 4 GiB when a network is fine-tuned: rows ``finetune_*`` of :mod:`benchmarks.memory`.

Predictions of llm/memory for one sequence per step, AdamW, on a GPU with the assumed reserve. Other
people's networks have the shapes of their ``config.json``. ``--only finetune`` also prints the
table of docs/memory.md.
"""

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.rows import Row, row
from llm.config.inside import compose_training
from llm.memory.fit import fit
from llm.memory.options import ASSUMED_RESERVE_MIB
from llm.memory.predict import Setup, predict
from llm.memory.weights import for_memory, n_parameters
from llm.model.config import GPTConfig
from llm.model.finetune import FinetuneOptions

RESERVE = {"reserve": ASSUMED_RESERVE_MIB * 2**20}
GIB, BUDGET = 2**30, 4 * 2**30
CONTEXTS = (256, 512, 1024, 2048)
OURS = ("small", "medium")  # with GPT-2's vocabulary
THEIRS = {
    "SmolLM2-135M": GPTConfig(
        n_layer=30, n_embed=576, n_head=9, n_kv_head=3, head_size=64, intermediate_size=1536,
        vocab_size=49_152,
    ),
    "Qwen3-0.6B": GPTConfig(
        n_layer=28, n_embed=1024, n_head=16, n_kv_head=8, head_size=128, intermediate_size=3072,
        vocab_size=151_936, qk_norm=True,
    ),
    "TinyLlama-1.1B": GPTConfig(
        n_layer=22, n_embed=2048, n_head=32, n_kv_head=4, head_size=64, intermediate_size=5632,
        vocab_size=32_000, tie_embeddings=False,
    ),
    "Llama-3.2-1B": GPTConfig(
        n_layer=16, n_embed=2048, n_head=32, n_kv_head=8, head_size=64, intermediate_size=8192,
        vocab_size=128_256,
    ),
}  # fmt: skip
METHODS = (
    ("full", "bf16"), ("full", "bf16_weights"), ("lora", "bf16"), ("lora", "bf16_weights"),
    ("qlora", "bf16_weights"),
)  # fmt: skip


def networks() -> dict[str, GPTConfig]:
    """The networks by name."""
    sections = {name: compose_training(f"model={name}", "data=shakespeare") for name in OURS}
    ours = {f"model={name}": one.resolve(50_257, "bf16").model for name, one in sections.items()}
    return ours | THEIRS


def setup_of(model: GPTConfig, method: str, precision: str, context: int) -> Setup:
    """A run on one sequence per step."""
    finetune = for_memory(FinetuneOptions(method))
    return Setup(
        replace(model, block_size=context).resolve(), precision=precision, batch_size=1,
        micro_batch=1, device="cuda", finetune=finetune, reads_whole=False,
    )  # fmt: skip


def rows() -> Iterator[Row]:
    """The predicted peaks beside the budget; their spread is over the contexts."""
    for name, model in networks().items():
        for method, precision in METHODS:
            setups = [setup_of(model, method, precision, context) for context in CONTEXTS]
            pairs = [(predict(setup, RESERVE).total, BUDGET) for setup in setups]
            what = f"bytes, {name} finetune={method} precision={precision}; 4 GiB"
            id = f"finetune_{name}_{method}_{precision}"
            yield row(id, what, pairs, lambda ours, other: ours / other)


def table() -> Iterator[str]:
    """The lines of the table: GiB, in brackets if it only fits as ``memory.fit=auto`` changes it, a
    dash if nothing helps.
    """
    contexts = " | ".join(f"{context:,} tokens" for context in CONTEXTS)
    yield f"| network | `finetune` | `precision` | {contexts} |"
    yield "|---|---|---|" + "---|" * len(CONTEXTS)
    for name, model in networks().items():
        size = f"{n_parameters(model.resolve()) / 1e6:,.0f} million"
        for method, precision in METHODS:
            setups = [setup_of(model, method, precision, context) for context in CONTEXTS]
            cells = " | ".join(map(_cell, setups))
            yield f"| {name}, {size} | {method} | {precision} | {cells} |"


def _cell(setup: Setup) -> str:
    peak = predict(setup, RESERVE).total
    if peak <= BUDGET:
        return f"{peak / GIB:.2f}"
    found = fit(setup, BUDGET, RESERVE)
    return f"({found.prediction.total / GIB:.2f})" if found else "-"
