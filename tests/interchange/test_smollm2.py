"""SmolLM2 from its GGUF file is the network that transformers reads from the same file."""

from pathlib import Path
from typing import Any

import pytest
import torch

from llm.data.assets import smollm2
from llm.data.template import Message, read_template
from llm.interchange.source import load_model, open_source
from llm.interchange.writing import export_hf
from tests.model.test_reference import LLAMA_NAMES

MIXED = "Hello 世界! 12345 don't  you\n\n\tdef f(x):\n    return x**2 # é 🙂 العربية русский "
TEXTS = ["The capital of France is Paris, on the Seine.", "北京是中国的首都,人口超过两千万。"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # transformers warns of its own code
def test_smollm2_has_the_weights_logits_text_and_tokens_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    path, source = smollm2(), open_source("ckpt", "smollm2")
    place: dict[str, Any] = {"gguf_file": path.name}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        str(path.parent), dtype=torch.float32, **place
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(path.parent), **place)
    state, weights = theirs.state_dict(), source.weights()
    assert len(weights) == 272 and len(state) == 273, "theirs has the tied head twice"
    for name, weight in weights.items():
        assert torch.equal(weight.float(), state[_their_name(name)]), name
    ours = load_model(source, torch.device("cpu"))
    with torch.no_grad():
        for text in TEXTS:
            ids = torch.from_numpy(source.tokenizer.encode(text).astype("int64"))[None]
            expected = theirs(ids).logits
            torch.testing.assert_close(ours.logits(ours.hidden(ids)), expected, atol=1e-4, rtol=0)
        written = ids
        for _ in range(64):
            last = ours.logits(ours.hidden(written))[:, -1:]
            written = torch.cat([written, last.argmax(-1)], dim=1)
        end = {"do_sample": False, "eos_token_id": None, "repetition_penalty": 1.0}
        generated = theirs.generate(ids, max_new_tokens=64, **end)
    assert torch.equal(written, generated)
    found = source.tokenizer.encode(MIXED * 200).tolist()
    assert found == tokenizer(MIXED * 200, add_special_tokens=False)["input_ids"]


def _their_name(name: str) -> str:
    if not name.startswith("blocks."):
        return {"embed.weight": "model.embed_tokens.weight"}.get(name, f"model.{name}")
    _, number, rest = name.split(".", 2)
    part, kind = rest.rsplit(".", 1)
    return f"model.layers.{number}.{LLAMA_NAMES[part]}.{kind}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_export_of_smollm2_has_its_context_and_its_chat(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    source = open_source("ckpt", "smollm2")
    export_hf(source, tmp_path / "hf", "bf16", False)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf", local_files_only=True)
    assert theirs.model_max_length == source.context == 8192
    ids = source.tokenizer.special_ids
    assert theirs.convert_tokens_to_ids(list(ids)) == list(ids.values())
    turns = [Message("user", TEXTS[1]), Message("assistant", TEXTS[0]), Message("user", MIXED)]
    for messages in (turns, [Message("system", "Be brief."), *turns]):
        plain = [{"role": one.role, "content": one.content} for one in messages]
        found = theirs.apply_chat_template(plain, add_generation_prompt=True, return_dict=False)
        assert found == read_template("chatml").prompt(source.tokenizer, messages).tolist()
