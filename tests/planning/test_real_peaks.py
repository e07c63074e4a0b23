"""The peak of real processes that fine-tune is at most a few percent below their prediction."""

import json
from pathlib import Path

import pytest

from benchmarks.real_runs import SHORT, started, text_data, trained
from tests.conftest import ROOT, needs_linux

# Large enough that its tensors outweigh the libraries; keys and values of few heads are small.
SHAPE = [
    "model.n_layer=12", "model.n_embed=640", "model.head_size=64", "model.n_kv_head=2",
    "model.block_size=256", "model.vocab_size=8192",
]  # fmt: skip


@pytest.fixture(scope="module")
def cwd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with conversations and a random network, as a checkpoint and as a folder of Hugging
    Face.
    """
    folder = tmp_path_factory.mktemp("tuned")
    ask, say = "What does it do?", "It goes on, and on, and on."
    rows = [{"instruction": f"{ask} ({n})", "output": say * (1 + n % 9)} for n in range(400)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    base = [*text_data(folder), *SHORT, *SHAPE, "trainer.max_steps=1", "run.name=base"]
    for command, *typed in (
        ["run_train.py", *base, "trainer.batch_size=1", "logger=none"],
        ["run_export.py", "ckpt=outputs/base", "format=hf", "out=base"],
    ):
        done = started([str(ROOT / command), *typed], folder)
        assert done.status == 0, done.output
    return folder


@needs_linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "place", "typed", "least"),
    [
        ("lora", "base", [], 0.85), ("qlora", "base", [], 0.85), ("full", "base", [], 0.85),
        ("lora", "outputs/base", [], 0.85), ("lora", "base", ["precision=bf16"], 0.7),
        ("qlora", "base", ["trainer.activation_checkpointing=full"], 0.7),
    ],
)  # fmt: skip
def test_the_peak_of_a_process_is_at_most_its_prediction(
    cwd: Path, method: str, place: str, typed: list[str], least: float
) -> None:
    data = ["data=instruct", "data.path=rows.jsonl", "data.template=plain"]
    run = [*SHORT, "logger=none", "trainer.batch_size=4", f"finetune={method}", *typed]
    _, summary = trained([*data, *run, f"init_from={place}", "model.block_size=256"], cwd)
    share = summary["peak_memory_bytes"] / summary["predicted_memory_bytes"]
    assert least <= share <= 1, f"{share:.1%} of {summary['predicted_memory_bytes']:,} bytes"
