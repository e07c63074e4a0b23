# ruff: noqa: RUF001  (Chinese punctuation is meant)
"""The loss of a text file counts the bytes of its text, whatever the tokenizer makes of them."""

import json
import math
import re
import shlex
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from llm.interchange.source import load_model, open_source
from tests.command_line import here
from tests.data.test_bpe import LIBRARIES, OURS
from tests.interchange.test_hf_writing import saved

TEXT = "他说：“你好，世界。”\n大家都笑了 🎭\u00e9 my lord\n"


# smollm's tokens are parts of the bytes; llama2's first token has a space that is not in the text;
# qwen2's replaces the two characters of an accented letter by one.
@pytest.mark.parametrize("name", ["smollm", "llama2", "qwen2"])
def test_bits_per_byte_of_a_text_file_divide_by_the_bytes_of_its_text(
    name: str, tmp_path: Path
) -> None:
    text = TEXT.replace("\u00e9", "e\u0301")
    (tmp_path / "novel.txt").write_bytes(("\ufeff" + text.replace("\n", "\r\n")).encode())
    place = saved(tmp_path / "run", OURS[name], block_size=256)
    typed = [place, "tasks=[novel.txt]", "device=cpu", "json=true"]
    done = here("eval", *typed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["runs"][0]["tasks"]["novel.txt"]

    library, model = LIBRARIES[name], load_model(open_source("ckpt", place), torch.device("cpu"))
    end = "</s>" if name == "llama2" else "<|im_end|>"
    ids = library.encode(text, add_special_tokens=False).ids
    tokens = torch.tensor([library.token_to_id(end), *ids])
    with torch.no_grad():
        nats = float(F.cross_entropy(model(tokens[None, :-1])[0], tokens[1:], reduction="sum"))
    n_bytes = len(text.encode())
    assert n_bytes > 1.5 * len(text)
    assert (found["tokens"], found["bytes"], found["starts_with"]) == (len(ids), n_bytes, end)
    assert found["loss"] == pytest.approx(nats / len(ids), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5)


@pytest.mark.parametrize("file", ["my chat.JSONL", "chat.json"])
def test_the_loss_of_json_is_refused_with_the_command_that_prepares_it(
    file: str, tmp_path: Path
) -> None:
    place = saved(tmp_path / "run", OURS["smollm"])
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "my lord"}]
    rows = [{"messages": [turns[0] | {"content": f"Hi {n}"}, turns[1]]} for n in range(40)]
    lines = [json.dumps(row) for row in rows]
    text = f"[{','.join(lines)}]" if file == "chat.json" else "\n".join(lines)
    (tmp_path / file).write_text(text, encoding="utf-8")
    done = here("eval", place, f"data_path={file}", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"data_path={file} is JSON: questions and pairs are read by tasks=" in done.stderr
    (typed,) = re.findall(r"run_prepare.py (.*), whose folder", done.stderr)
    assert here("prepare", *shlex.split(typed), cwd=tmp_path).returncode == 0
    (data,) = (tmp_path / "data").iterdir()
    done = here("eval", place, f"data_path={data}", "device=cpu", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith(f"{data.name}: loss "), done.stderr
