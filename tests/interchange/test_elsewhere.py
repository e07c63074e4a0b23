"""An export of the default network works where there is only transformers, and not this program."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import here
from tests.conftest import HANGS, PLAY

PROMPT = "SPEAKER 3:\nWhat"
OURS = ("llm", "hydra", "omegaconf", "tiktoken", "wandb")  # what only this program needs
# ``-I`` leaves the current folder and PYTHONPATH out; None makes an import fail.
THEIRS = f"""
import sys

sys.modules |= dict.fromkeys({OURS!r})
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, prompt, length = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
ids = tokenizer(prompt, return_tensors="pt")
written = model.generate(**ids, do_sample=False, max_new_tokens=int(length))
print(type(model).__name__, tokenizer.decode(written[0]), sep="\\n", end="")
"""


@pytest.mark.slow
def test_transformers_alone_writes_the_text_of_run_sample(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "play.txt").write_text(PLAY, encoding="utf-8")
    data = ["data=text", "data.path=play.txt", "data.tokenizer=char"]
    few = ["trainer.max_steps=20", "trainer.eval_interval=20", "trainer.eval_batches=1"]
    machine = ["trainer.device=cpu", "logger=none", "run.name=make-train"]
    assert here("train", *data, *few, *machine, cwd=tmp_path).returncode == 0
    assert here("export", "outputs/make-train", "out=hf", cwd=tmp_path).returncode == 0
    typed = ["temperature=0", "max_new_tokens=60", "device=cpu", "json=true"]
    done = here("sample", "outputs/make-train", f"prompt={PROMPT}", *typed, cwd=tmp_path)
    (sample,) = json.loads(done.stdout)["samples"]
    (tmp_path / "elsewhere").mkdir()
    command = [sys.executable, "-I", "-W", "error", "-c", THEIRS, str(tmp_path / "hf")]
    child = subprocess.run(
        [*command, PROMPT, "60"], cwd=tmp_path / "elsewhere", capture_output=True, text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"}, timeout=HANGS,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    name, _, text = child.stdout.partition("\n")
    assert name == "LlamaForCausalLM"
    assert text == PROMPT + sample["text"], "letter by letter"
    assert "warn" not in child.stderr.lower(), "none is logged either"
