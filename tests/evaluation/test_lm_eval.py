"""lm-eval has the same figures through our adapter and through transformers."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from llm.data.tokenizer import GPT2Tokenizer
from llm.errors import Refused
from llm.evaluation.accuracy import answer_questions
from llm.evaluation.questions import Question
from llm.interchange.source import load_model, open_source
from tests.interchange.test_hf_writing import saved

TASKS = {
    "own_choice": """
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "own_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}, {metric: byte_perplexity}]
""",
}
HEAD = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{path}"}}}}
test_split: test
"""


def hf_folder(folder: Path) -> Path:
    """A random GPT-2 with its tokenizer, as transformers saves them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    ours = GPT2Tokenizer()
    letters = pre_tokenizers.ByteLevel.alphabet()
    lines = ours.merges.split("\n")[1:-1]
    printable = [chr(b) for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    order = printable + sorted(set(letters) - set(printable))
    pairs = [tuple(line.split()) for line in lines]
    words = [*order, *(left + right for left, right in pairs)]
    vocabulary = {word: place for place, word in enumerate(words)} | {"<|endoftext|>": 50256}
    made = Tokenizer(models.BPE(vocabulary, pairs))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    end = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=made, **end).save_pretrained(folder)
    config = GPT2Config(
        n_layer=2, n_embd=32, n_head=2, n_positions=32, initializer_range=0.3,
        bos_token_id=50256, eos_token_id=50256,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def write_tasks(folder: Path) -> list[Question]:
    words = ["the king", " went", " home", " alone", " and sang", " of ships", " at night"]
    random = np.random.default_rng(0)
    rows, questions = [], []
    for _ in range(24):
        context = "".join(random.choice(words, size=random.integers(1, 20)))
        choices = [one.strip() for one in random.choice(words[1:], size=3, replace=False)]
        answer = int(random.integers(3))
        rows.append({"context": context, "choices": choices, "answer": answer, "text": context})
        spaced = tuple(f" {one}" for one in choices)
        questions.append(Question(context, spaced, answer))
    folder.mkdir()
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, body in TASKS.items():
        text = HEAD.format(name=name, path=path) + body
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return questions


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of lm-eval, datasets and transformers
def test_our_adapter_and_the_route_by_transformers_have_the_same_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Callable[[str], None]
) -> None:
    pytest.importorskip("lm_eval")
    for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(key, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    from lm_eval.models.huggingface import HFLM

    from llm.evaluation.lm_eval_adapter import Adapter, run

    folder = hf_folder(tmp_path / "hf")
    questions = write_tasks(tmp_path / "tasks")
    source = open_source("ckpt", str(folder))
    model = load_model(source, torch.device("cpu"))
    ours = Adapter(model, source.tokenizer, 32, None)
    theirs = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=1)
    for name, metrics in (("own_choice", ("acc", "acc_norm")), ("own_text", ("bits_per_byte",))):
        mine = run(ours, name, tmp_path / "tasks")
        other = run(theirs, name, tmp_path / "tasks")
        for metric in metrics:
            report(f"{name} {metric}: ours {mine[metric]:.6f}, by HF {other[metric]:.6f}")
            assert mine[metric] == pytest.approx(other[metric], abs=1e-5)
    (tmp_path / "tasks" / "both.yaml").write_text("group: both\ntask: [own_choice, own_text]\n")
    for name in ("both", "nothing"):
        with pytest.raises(Refused, match=r"is not a task in .*: take one of own_choice, own_text"):
            run(ours, name, tmp_path / "tasks")
    with pytest.raises(Refused, match="a continuation has 33 tokens, and the window only 32"):
        ours._loglikelihood_tokens([("", [1], [2] * 33)])
    found = answer_questions(model, source.tokenizer, questions)
    report(f"built in: acc {found['acc']:.6f}, acc_norm {found['acc_norm']:.6f}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_benchmark_finds_the_same_figures_by_our_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(key, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    from benchmarks.evaluation import compared

    place, tasks = saved(tmp_path / "run", GPT2Tokenizer(), block_size=64), tmp_path / "tasks"
    tasks.mkdir()
    rows = list(compared(place, tasks, 1))
    lm_eval = [row for row in rows if row.id.startswith("lm_eval")]
    assert len(lm_eval) == 3 and len(rows) == 5
    assert all(row.ours == pytest.approx(row.other, abs=1e-5) for row in lm_eval)
