"""lm-eval by our adapter and by transformers: python -m benchmarks.evaluation [--json FILE]

Both read the same weights: ``--ckpt PLACE`` (smollm2) and its export as a folder of Hugging Face.
The questions are beginnings of sentences with a right and a wrong end, made from ``grammar``; the
texts are sentences of it. Nothing is downloaded but smollm2, once. ``--keep FOLDER`` keeps the
task files, the questions and the export, so that both programs can be typed:

    python run_eval.py PLACE tasks=[lm_eval:ends] include_path=FOLDER
    lm_eval run --model hf --model_args pretrained=FOLDER/hf,dtype=float32 --tasks ends \
        --include_path FOLDER --device cpu --batch_size 16
"""

import io
import json
import os
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from benchmarks.rows import Parser, Row, report, row

EACH = 8  # questions about each phenomenon
TASKS = {
    "ends": """
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "sentences": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
""",
}
HEAD = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{path}"}}}}
test_split: test
"""
METRICS = {"ends": ("acc", "acc_norm"), "sentences": ("bits_per_byte",)}


def question(pair: dict[str, Any]) -> dict[str, Any] | None:
    """The words that both sentences start with, and their ends; None if they start differently."""
    good, bad = pair["sentence_good"].split(), pair["sentence_bad"].split()
    same = [a == b for a, b in zip(good, bad, strict=False)]
    first = same.index(False) if False in same else len(same)
    if not 0 < first < min(len(good), len(bad)):
        return None
    ends = [" ".join(good[first:]), " ".join(bad[first:])]
    return {"context": " ".join(good[:first]), "choices": ends, "text": pair["sentence_good"],
            "phenomenon": pair["linguistics_term"]}  # fmt: skip


def write_tasks(folder: Path, count: int = EACH) -> Path:
    """Write the task files and what they read; returns the file of questions."""
    from llm.evaluation.grammar import rows as pairs

    chosen: dict[str, list[dict[str, Any]]] = {}
    for number, made in enumerate(filter(None, map(question, pairs()))):
        answer = number % 2  # the right end is not always the first
        made |= {"answer": answer, "choices": made["choices"][:: -1 if answer else 1]}
        group = chosen.setdefault(made["phenomenon"], [])
        group += [made] * (len(group) < count)
    questions = [one for group in chosen.values() for one in group]
    texts = [{"text": " ".join(one["text"] for one in group)} for group in chosen.values()]
    for (name, body), lines in zip(TASKS.items(), (questions, texts), strict=True):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
        text = HEAD.format(name=name, path=path.resolve()) + body
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / "ends.jsonl"


def compared(place: str, folder: Path, count: int = EACH) -> Iterator[Row]:
    """A row for each figure."""
    import torch
    from lm_eval.models.huggingface import HFLM

    from llm.evaluation.accuracy import answer_questions
    from llm.evaluation.lm_eval_adapter import Adapter, run
    from llm.evaluation.questions import read_questions
    from llm.interchange.source import load_model, open_source
    from llm.interchange.writing import export_hf

    questions, source = write_tasks(folder, count), open_source("ckpt", place)
    export_hf(source, folder / "hf", "fp32", overwrite=True)
    model = load_model(source, torch.device("cpu"))
    ours: Any = Adapter(model, source.tokenizer, model.config.block_size, None)
    hf = str(folder / "hf")
    theirs = HFLM(pretrained=hf, dtype="float32", device="cpu", batch_size=16)
    other = {}
    for name, metrics in METRICS.items():
        with redirect_stderr(io.StringIO()):  # a progress bar for each text
            mine, other[name] = run(ours, name, folder), run(theirs, name, folder)
        for metric in metrics:
            pair = mine[metric], other[name][metric]
            what = f"lm-eval's {metric} of {mine['n']} texts by our adapter; by transformers"
            yield row(f"lm_eval_{metric}", what, [pair], lambda a, b: a / b)
    _, read = read_questions(questions)
    found = answer_questions(model, source.tokenizer, read)
    for metric in METRICS["ends"]:
        pair = found[metric], other["ends"][metric]
        what = f"{metric} of run_eval.py tasks=[FILE.jsonl]; of lm-eval by transformers"
        yield row(f"built_in_{metric}", what, [pair], lambda a, b: a / b)


def rows(options: Namespace) -> Iterator[Row]:
    """All rows, in ``--keep`` or a temporary folder."""
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
        yield from compared(options.ckpt, options.keep)
        return
    with tempfile.TemporaryDirectory() as name:
        yield from compared(options.ckpt, Path(name))


def main(arguments: list[str] | None = None) -> None:
    """Measure and print a table."""
    parser = Parser("lm-eval by our adapter and by transformers", repeats=0)
    parser.add_argument("--ckpt", default="smollm2", help="weights, as for run_eval.py")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the files stay")
    options = parser.parse_args(arguments)
    for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ[key] = "1"
    report(rows(options), options.json)


if __name__ == "__main__":
    main()
