"""From a file of conversations to batches: splits, answers, cuts, a mixture, damage."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from llm.data.config import DataConfig
from llm.data.conversation_dataset import ConversationDataset, conversation_counts, facts_of
from llm.data.dataset import Dataset
from llm.data.meta import read_meta
from llm.data.prepare import prepare
from llm.errors import Refused
from llm.functional import IGNORED
from llm.model.gpt import GPT
from llm.options import validate
from tests.command_line import here

COUNT = 40


def row(number: int) -> dict[str, str]:
    return {"instruction": f"Say {number}.", "input": "", "output": f"It is {number}!"}


def config(folder: Path, rows: list[Any] | None = None, **options: Any) -> DataConfig:
    path = folder / "chat.jsonl"
    rows = [row(n) for n in range(COUNT)] if rows is None else rows
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    values: dict[str, Any] = {
        "name": "chat", "corpus": "conversations", "dir": str(folder / "data"),
        "path": str(path), "tokenizer": "byte", "val_fraction": 0.2, "template": "plain",
    }  # fmt: skip
    return DataConfig(**values | options)


def opened(folder: Path, rows: list[Any] | None = None, **options: Any) -> ConversationDataset:
    dataset = Dataset.open(prepare(config(folder, rows, **options)))
    assert isinstance(dataset, ConversationDataset)
    dataset.verify()
    return dataset


def texts(dataset: ConversationDataset, split: str) -> list[str]:
    one = dataset.conversations[split]
    return [
        dataset.tokenizer.decode(one.tokens[start:end].tolist())
        for start, end in zip(one.starts[:-1], one.starts[1:], strict=True)
    ]


def test_every_conversation_is_in_one_split_and_its_answers_are_marked(tmp_path: Path) -> None:
    dataset = opened(tmp_path, test_fraction=0.1)
    found = {split: texts(dataset, split) for split in ("train", "val", "test")}
    assert [len(found[split]) for split in found] == [28, 8, 4]
    wanted = {f"Say {n}.\nIt is {n}!<|endoftext|>" for n in range(COUNT)}
    assert set().union(*found.values()) == wanted
    assert sum(map(len, found.values())) == COUNT
    assert found["val"] != [f"Say {n}.\nIt is {n}!<|endoftext|>" for n in range(32, 40)]
    one = dataset.conversations["train"]
    answers = dataset.tokenizer.decode(one.tokens[one.is_answer != 0].tolist())
    assert answers == "".join(text.partition("\n")[2] for text in found["train"])
    counts = conversation_counts(dataset.folder)
    assert counts["conversations"] == {"train": 28, "val": 8, "test": 4}
    visible = sum(len(text.partition("\n")[2]) - len("<|endoftext|>") for text in found["val"])
    assert counts["answer_bytes"]["val"] == visible
    assert counts["answer_tokens"]["val"] == visible + 8


def test_equal_conversations_are_never_divided(tmp_path: Path) -> None:
    dataset = opened(tmp_path, [row(n % 10) for n in range(100)])
    train, val = texts(dataset, "train"), texts(dataset, "val")
    assert train and val and not set(train) & set(val)
    assert len(train) + len(val) == 100


def test_an_evaluation_reads_each_answer_once_and_says_how(tmp_path: Path) -> None:
    dataset = opened(tmp_path)
    count, batches = dataset.validation(64, 3, None)
    read = list(batches)
    assert len(read) == count
    targets = np.concatenate([batch[1] for batch in read])
    assert (targets != IGNORED).sum() == conversation_counts(dataset.folder)["answer_tokens"]["val"]
    protocol = dataset.protocol(64, None)
    assert protocol["windows"] == len(targets) and protocol["stride"] == 64
    assert dataset.protocol(64, 1)["windows"] == 1


def test_an_epoch_reads_every_row_once(tmp_path: Path) -> None:
    dataset = opened(tmp_path)
    rows = len(dataset.rows("train", 64))
    assert dataset.epochs(3 * rows, 64) == 3
    assert dataset.mixed(0.25).epochs(4 * rows, 64) == 3, "a quarter of the rows is general text"


def test_cut_conversations_are_counted_and_those_without_an_answer_left_out(tmp_path: Path) -> None:
    long = [{"instruction": "x" * 60, "output": "y"}, {"instruction": "z", "output": "w" * 60}]
    dataset = opened(tmp_path, [row(n) for n in range(20)] + [
        {**one, "instruction": one["instruction"] + str(n)} for n in range(10) for one in long
    ])  # fmt: skip
    rows = {split: dataset.rows(split, 32) for split in ("train", "val")}
    assert sum(one.cut for one in rows.values()) == 20
    assert sum(one.left_out for one in rows.values()) == 10
    (first, *_) = dataset.notes_on(32)
    cut, left_out = rows["train"].cut, rows["train"].left_out
    assert first.startswith(f"{cut} of 32 conversations of train are longer than block_size=32")
    assert f"and {left_out} of them have no answer left and are left out" in first
    assert "keeps 95% of them whole" in first
    assert dataset.notes_on(128) == []
    with pytest.raises(Refused, match=r"no answer of the 32 conversations in train fits into "
                       r"model.block_size=1: model.block_size=\d+ keeps 95%"):  # fmt: skip
        dataset.check(1, 300)
    with pytest.raises(Refused, match="is smaller than the vocabulary"):
        dataset.check(32, 20)


def test_the_suggested_block_size_is_a_larger_one_that_keeps_the_share_it_names(
    tmp_path: Path,
) -> None:
    answers = ["x" * (n % 50 + 1 if n % 200 else 100) for n in range(1000)]
    rows = [{"instruction": f"{n}", "output": answer} for n, answer in enumerate(answers)]
    dataset = opened(tmp_path, rows)
    needed, named = dataset.conversations["train"].lengths - 1, set[str]()
    longest = int(needed.max())
    for block_size in range(8, longest):
        note = dataset.notes_on(block_size)[0].rpartition(": model.block_size=")[2]
        size, text = note.removesuffix(" of them whole").split(" keeps ")
        share = 1 if text == "all" else int(text[:-1]) / 100
        assert int(size) > block_size and (needed <= int(size)).mean() >= share
        assert (needed < int(size)).mean() < share, "a smaller one would do"
        named.add(text)
    assert named == {"95%", "99%", "all"}
    assert not any(" of train " in note for note in dataset.notes_on(longest))


def test_general_text_is_mixed_into_training_rows_only(tmp_path: Path) -> None:
    text = tmp_path / "general.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 40, encoding="utf-8")
    plain = opened(tmp_path)
    dataset = opened(tmp_path, mix=0.25, mix_path=str(text)).mixed(0.25)
    assert dataset.digest != plain.digest
    sampler = dataset.sampler(32, 4, seed=1)
    share = [
        int((batch[1] != IGNORED).all(axis=1).sum()) for batch in map(sampler.batch, range(1, 41))
    ]
    assert sum(share) >= 38  # 40 of 160 rows; the first and last window may have ignored targets
    assert dataset.validation(32, 4, None)[0] == plain.validation(32, 4, None)[0]
    assert len(dataset.sampler(32, 4, seed=1, overfit_batches=2).batch(7)) == 3


def test_damage_of_an_additional_file_is_found(tmp_path: Path) -> None:
    dataset = opened(tmp_path)
    for name in ("train.answers.bin", "val.starts.bin"):
        path = dataset.folder / name
        raw = path.read_bytes()
        path.write_bytes(raw[:-1])
        with pytest.raises(Refused, match=f"{name} has .* bytes, but meta.json says"):
            Dataset.open(dataset.folder)
        changed = bytearray(raw)
        changed[8 if "starts" in name else 0] ^= 1
        path.write_bytes(bytes(changed))
        with pytest.raises(Refused, match=f"{name} is damaged"):
            Dataset.open(dataset.folder).verify()
        path.write_bytes(raw)
    dataset.verify()


def test_the_same_file_is_prepared_once_and_another_template_again(tmp_path: Path) -> None:
    first = config(tmp_path)
    folder = prepare(first)
    assert prepare(first) == folder
    assert prepare(replace(first, template="alpaca")) != folder
    meta = read_meta(folder)
    assert meta.conversations is not None and meta.conversations.template["end"] is None
    assert "conversations" in meta.plain()
    two = prepare(config(tmp_path, [row(1), row(2)], val_fraction=0.5))
    assert [facts_of(two)[split].partition(",")[0] for split in ("train", "val")] == [
        "1 conversation", "1 conversation",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "options", "reason"),
    [
        ([row(1), row(1)], {}, "has only 1 different conversation: each of the 2 splits needs one"),
        ([row(1), row(2)], {"test_fraction": 0.1}, "each of the 3 splits needs one"),
        (
            [row(1), row(2), row(3) | {"system": "x"}],
            {"template": "none.yaml"},
            "chat.jsonl, line 3: the template has no system message",
        ),
        (
            [row(1), {"instruction": "x"}],
            {},
            "chat.jsonl, line 2 has an empty message of assistant",
        ),
        (None, {"template": "chatml"}, "needs the special tokens <|im_start|> and <|im_end|>"),
        (None, {"template": "nothing"}, "data.template=nothing is neither one of alpaca"),
        (None, {"template": None}, "data.template is null"),
        (None, {"tokenizer": "char"}, "has no end-of-text token to end an answer"),
        (None, {"mix": 0.1}, "data.mix and data.mix_path go together"),
        (None, {"mix": 0.1, "mix_path": "nowhere.txt"}, "data.mix_path=nowhere.txt does not exist"),
        (
            None,
            {"mix": 0.1, "mix_path": "a.jsonl"},
            "data.mix_path=a.jsonl is JSON, and plain text",
        ),
        (None, {"path": "nowhere.json"}, "data.path=nowhere.json does not exist"),
        (None, {"path": None}, "data.path is missing: data=chat"),
        (None, {"corpus": "text"}, "data.template=plain is for conversations: take data=chat"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    rows: list[Any] | None, options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "none.yaml").write_text("user: {}\nassistant: {}\n", encoding="utf-8")
    if options.get("template") == "none.yaml":
        options = {"template": str(tmp_path / "none.yaml")}
    with pytest.raises(Refused) as refusal:
        prepare(config(tmp_path, rows, **options))
    assert reason in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (tmp_path / "data").exists()


def test_the_options_of_conf_are_valid() -> None:
    validate(DataConfig(corpus="conversations", path="x", template="alpaca", val_fraction=0.1))


def test_a_run_learns_answers_and_its_checkpoint_has_the_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config(tmp_path).path
    typed = [
        "data=instruct", f"data.path={path}", "data.tokenizer=byte", "data.template=plain",
        "model.n_layer=1", "model.n_embed=16", "model.head_size=8", "model.block_size=32",
        "trainer.batch_size=4", "trainer.eval_batches=2", "trainer.device=cpu", "logger=none",
        "run.name=chat",
    ]  # fmt: skip
    done = here("train", *typed, "trainer.max_steps=6", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "outputs/chat"
    manifest = json.loads((run / "checkpoints/last/checkpoint.json").read_text(encoding="utf-8"))
    assert manifest["template"]["user"] == {"before": "", "after": "\n"}
    protocol = json.loads((run / "summary.json").read_text(encoding="utf-8"))["evaluation"]
    assert protocol["split"] == "val" and protocol["bytes"] < protocol["tokens"]
    prepared = here("prepare", *typed[:4], "json=true", cwd=tmp_path)
    answer = json.loads(prepared.stdout.splitlines()[-1])
    assert answer["conversations"] == {"train": 36, "val": 4}
    evaluated = here("eval", "ckpt=outputs/chat", "device=cpu", "json=true", cwd=tmp_path)
    result = json.loads(evaluated.stdout.splitlines()[-1])["runs"][0]["tasks"]["loss"]
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert result["tokens"] == answer["answer_tokens"]["val"]
    assert result["loss"] == pytest.approx(summary["best_val_loss"], rel=1e-5)
    rows, hidden = [], GPT.hidden

    def counted(self: GPT, tokens: Tensor, *others: Any, **more: Any) -> Tensor:
        rows.append(len(tokens))
        return hidden(self, tokens, *others, **more)

    monkeypatch.setattr(GPT, "hidden", counted)
    again = here("eval", "outputs/chat", "batch_size=1", "device=cpu", "json=true", cwd=tmp_path)
    again_result = json.loads(again.stdout.splitlines()[-1])["runs"][0]["tasks"]["loss"]
    assert set(rows) == {1} and again_result["loss"] == pytest.approx(result["loss"], rel=1e-5)
