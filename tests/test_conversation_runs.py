"""Runs on conversations, as typed: what they read, say, refuse, and continue to the bit."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from llm.checkpoint.checkpoint import Checkpoint
from llm.data.bpe import BPETokenizer
from llm.data.conversation_dataset import ConversationDataset
from llm.data.dataset import Dataset
from llm.data.template import TEMPLATES, read_template
from llm.functional import IGNORED
from llm.interchange.source import load_model, open_source
from llm.interchange.writing import export_hf
from llm.model.gpt import GPT
from tests.command_line import here, rows
from tests.conftest import TINY_RUN, entered
from tests.data.test_bpe import library
from tests.interchange.test_hf_writing import saved
from tests.test_bad_input import assert_refused

CPU = torch.device("cpu")
SIZE = 48  # block_size
RUN = [word for word in TINY_RUN if not word.startswith("model.")]
CHAT = [
    "data=instruct", "data.path=chat.jsonl", "data.tokenizer=byte", "data.template=plain",
    "data.val_fraction=0.3", "init_from=outputs/base", *RUN,
]  # fmt: skip
MIX = ["data.mix=0.5", "data.mix_path=general.txt"]


def train(cwd: Path, *typed: str) -> str:
    done = here("train", *typed, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A folder with conversations, four of them too long, a general text, and a base."""
    path = tmp_path_factory.mktemp("conversations")
    texts = [(f"Say {n}", f"{n}!") for n in range(24)]
    texts += [("Say it!" + " Please." * 6, "No."), ("Who are you?", "I am who I am. " * 3)] * 2
    lines = [json.dumps({"instruction": asked, "output": told}) for asked, told in texts]
    (path / "chat.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (path / "general.txt").write_text(text_file.read_text("utf-8")[:600], encoding="utf-8")
    data = ["data=text", f"data.path={text_file}", "data.tokenizer=byte"]
    train(path, *data, *TINY_RUN, f"model.block_size={SIZE}", "run.name=base")
    return path


@pytest.fixture
def cwd(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, in which a test runs."""
    return entered(made, tmp_path, monkeypatch)


def alone(model: GPT, tokens: Any, targets: Any) -> tuple[float, int]:
    """The sum of the losses of one conversation in a row of its own, by torch's cross-entropy, and
    the number of its targets.
    """
    x, y = (torch.as_tensor(np.asarray(one, np.int64)) for one in (tokens, targets))
    with torch.no_grad():
        loss = cross_entropy(model(x[None])[0], y, ignore_index=IGNORED, reduction="none")
    return float(loss.double().sum()), int((y != IGNORED).sum())


def mean(parts: list[tuple[float, int]]) -> Any:
    total, count = map(sum, zip(*parts, strict=True))
    return pytest.approx(total / count, rel=2e-6)


def opened(cwd: Path) -> ConversationDataset:
    (folder,) = (path.parent for path in cwd.glob("data/instruct-*/meta.json"))
    dataset = Dataset.open(folder)
    assert isinstance(dataset, ConversationDataset)
    return dataset


def test_training_and_evaluation_give_the_loss_of_each_conversation_alone(cwd: Path) -> None:
    # The rate is too low to change a weight: each loss is the one of the base.
    said = train(cwd, *CHAT, *MIX, "run.name=chat", "trainer.max_steps=2", "optimizer.lr=1e-12",
                 "trainer.micro_batch_size=2", "trainer.eval_batches=null")  # fmt: skip
    logged = rows(cwd / "outputs/chat")
    model, data = load_model(open_source("ckpt", "outputs/base"), CPU).eval(), opened(cwd)
    sampler = data.mixed(0.5).sampler(SIZE, 4, seed=1337)
    for step in (1, 2):
        parts = []
        for inputs, targets, documents in zip(*sampler.batch(step), strict=True):
            for place in (documents == one for one in np.unique(documents)):
                parts.append(alone(model, inputs[place], targets[place]))
        assert sum(count > 0 for _, count in parts) > 4, "some conversations share a row"
        (loss,) = (row["train/loss"] for row in logged if row["step"] == step)
        assert loss == mean(parts), step
    val, parts = data.conversations["val"], []
    for start, end in zip(val.starts[:-1], val.starts[1:], strict=True):
        tokens = val.tokens[start : min(end, start + SIZE + 1)].astype(np.int64)
        targets = np.where(val.is_answer[start : start + len(tokens)], tokens, IGNORED)
        parts.append(alone(model, tokens[:-1], targets[1:]))
    assert logged[0]["val/loss"] == mean(parts)
    done = here("eval", "outputs/chat", "device=cpu", "json=true", cwd=cwd)
    found = json.loads(done.stdout)["runs"][0]["tasks"]["loss"]
    assert found["loss"] == mean(parts)
    assert type(found["stride"]) is int, "as for a text"
    lengths = data.conversations["train"].lengths
    cut = int((lengths - 1 > SIZE).sum())
    assert cut and f"{cut} of {len(lengths)} conversations of train are longer" in said


def test_a_text_to_mix_in_that_fills_no_window_is_refused(cwd: Path) -> None:
    (cwd / "general.txt").write_text("x" * (SIZE - 1), encoding="utf-8")  # and its end token
    words = f"data.mix_path has {SIZE} tokens, and model.block_size={SIZE} needs {SIZE + 1}: "
    assert_refused(here("train", *CHAT, *MIX, cwd=cwd), words)
    (cwd / "general.txt").write_text("x" * SIZE, encoding="utf-8")
    mixed = " ".join(train(cwd, *CHAT, "data.mix=0.004", MIX[1], "trainer.max_steps=1").split())
    assert f"mixed in 0.4% of the rows are from {SIZE + 1} tokens of general text" in mixed
    assert "mixed in" not in train(cwd, *CHAT, "trainer.max_steps=1")


def test_a_resumed_run_says_which_file_of_its_data_has_moved(cwd: Path) -> None:
    (cwd / "mine.yaml").write_text((TEMPLATES / "plain.yaml").read_text("utf-8"), "utf-8")
    shutil.copytree(cwd / "outputs/base", cwd / "other")
    mine = ["data.template=mine.yaml", "data.tokenizer=other"]
    train(cwd, *CHAT, *MIX, *mine, "run.name=chat")
    typed = ["resume=outputs/chat", "trainer.max_steps=7"]
    files = {"mix_path": "general.txt", "template": "mine.yaml", "tokenizer": "other"}
    for key, file in files.items():
        shutil.move(cwd / file, cwd / f"moved-{file}")
        words = (
            f"data.{key}={file} in outputs/chat/config.yaml does not exist here: start the command"
        )
        assert_refused(
            here("train", *typed, cwd=cwd), words, f"say where it is now, data.{key}=PATH"
        )
        typed.append(f"data.{key}=moved-{file}")
    train(cwd, *typed)


DROPOUT = "finetune.dropout=0.2"  # draws from the generator whose state a checkpoint restores
SEVERAL = [
    ["finetune=qlora", DROPOUT],
    ["finetune=dora", "finetune.rslora=true", DROPOUT, *MIX],
    ["finetune=lora", DROPOUT, "precision=bf16_weights"],
    pytest.param(["finetune=head"], marks=pytest.mark.slow),
    pytest.param(["finetune=lora", DROPOUT, *MIX], marks=pytest.mark.slow),
]


@pytest.mark.parametrize("words", SEVERAL, ids=" ".join)
def test_a_continued_run_has_the_same_weights_to_the_bit(words: list[str], cwd: Path) -> None:
    """test_finetuning does the same for LoRA in float32 on text."""
    few = ["trainer.max_steps=2", "trainer.checkpoint_interval=1", "trainer.eval_batches=1"]
    train(cwd, *CHAT, *words, *few, "run.name=whole")
    run = cwd / "outputs/cut"
    shutil.copytree(cwd / "outputs/whole", run, symlinks=True)
    for path in (run / "checkpoints").iterdir():
        if path.name != "step-00000001":
            path.unlink() if path.is_symlink() else shutil.rmtree(path)
    (run / "summary.json").unlink()
    train(cwd, "resume=outputs/cut")
    for file in ("model.safetensors", "training.safetensors"):
        paths = [cwd / f"outputs/{one}/checkpoints/last/{file}" for one in ("cut", "whole")]
        assert paths[0].read_bytes() == paths[1].read_bytes(), file
    early = run / "checkpoints/step-00000001/model.safetensors"
    assert early.read_bytes() != paths[0].with_name("model.safetensors").read_bytes()


def test_other_peoples_weights_are_tuned_and_asked_with_their_own_tokenizer(
    cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = library("smollm")
    run = saved(cwd / "run", BPETokenizer(words.to_str(), "<|im_end|>"), block_size=256)
    export_hf(open_source("ckpt", run), cwd / "hf", "fp32", False)
    shutil.rmtree(cwd / "run")
    train(cwd, "init_from=hf/", "finetune=lora", "data=instruct", "data.path=chat.jsonl",
          *RUN, "trainer.max_steps=2", "run.name=mine")  # fmt: skip
    mine = Checkpoint.open(cwd / "outputs/mine/checkpoints/last")
    assert mine.base is not None and mine.base.digest == open_source("init_from", "hf").digest()
    assert all("lora_" in name for name in mine.weights())
    asked = (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nSay 3\n\n### Response:\n"
    )
    whole = [one for split in opened(cwd).conversations.values() for one in np.split(
        split.tokens, split.starts[1:-1].astype(np.int64))]  # fmt: skip
    expected = words.encode(asked).ids + words.encode("3!<|im_end|>").ids
    assert [one.tolist() for one in whole].count(expected) == 1

    read, hidden = list[list[int]](), GPT.hidden

    def recorded(self: GPT, tokens: torch.Tensor, *others: Any, **more: Any) -> torch.Tensor:
        read.append(tokens[0].tolist())
        return hidden(self, tokens, *others, **more)

    monkeypatch.setattr(GPT, "hidden", recorded)
    chatml = (
        f"<|im_start|>system\n{read_template('chatml').default_system}<|im_end|>\n"
        "<|im_start|>user\nSay 3<|im_end|>\n<|im_start|>assistant\n"
    )
    for place, prompt in (("hf", chatml), ("outputs/mine", asked)):
        typed = ["chat=true", "max_new_tokens=2", "device=cpu"]
        done = here("sample", place, *typed, cwd=cwd, stdin=b"Say 3\n")
        assert (done.returncode, read[0]) == (0, words.encode(prompt).ids), done.stderr
        read.clear()
