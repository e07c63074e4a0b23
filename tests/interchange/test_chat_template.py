"""Exported chat templates: transformers makes our ids of the same messages, or refuses them."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llm.checkpoint.folder import CheckpointFolder
from llm.data.bpe import BPETokenizer
from llm.data.template import Message, Template, read_template
from llm.data.tokenizer import ByteTokenizer, GPT2Tokenizer, Tokenizer
from llm.interchange.chat_template import LARGEST, Chat, chat_in_folder, chat_of
from llm.interchange.gguf_file import read_header
from llm.interchange.source import open_source
from llm.interchange.writing import export_gguf, export_hf, export_peft
from llm.model.finetune import FinetuneOptions
from llm.model.gpt import GPT
from tests.data.test_bpe import library
from tests.interchange.test_hf_writing import saved, their_tokenizer
from tests.interchange.test_peft_writing import tuned

QUESTION = Message("user", "What's 2 + 2?\n\n")
CHAT = [
    QUESTION, Message("assistant", "It is 4.\nReally \\n 'so'."),
    Message("user", "\t 简短 {{ x }}"), Message("assistant", "Three."),
    Message("user", "<|other|> {% raw %}"),
]  # fmt: skip
SYSTEM = Message("system", " You are terse. ")
CASES: list[tuple[str, str]] = [
    ("chatml", "smollm"), ("alpaca", "gpt2"), ("alpaca", "byte"), ("plain", "byte"),
    ("plain", "smollm"), ("llama2", "llama2"), ("alpaca", "llama2"),
]  # fmt: skip


def made(name: str) -> Tokenizer:
    if name in ("gpt2", "byte"):
        return GPT2Tokenizer() if name == "gpt2" else ByteTokenizer()
    return BPETokenizer(library(name).to_str(), {"llama2": "</s>"}.get(name, "<|im_end|>"))


def trained(folder: Path, tokenizer: Tokenizer, template: Template) -> str:
    """A checkpoint of a network that was trained on conversations."""
    model = GPT(n_layer=1, n_embed=16, n_head=2, head_size=8, block_size=64,
                vocab_size=tokenizer.vocab_size)  # fmt: skip
    folder.mkdir(exist_ok=True)
    made = CheckpointFolder(folder, 1, model.config, tokenizer, {}, template.plain())
    return str(made.save_best(1, model.state_dict(), {}))


def plain(messages: list[Message]) -> list[dict[str, str]]:
    return [{"role": one.role, "content": one.content} for one in messages]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    """The tokenizer that transformers reads for each template and tokenizer."""
    found = {}
    for case in CASES:
        folder = tmp_path_factory.mktemp("-".join(case))
        place = trained(folder / "run", made(case[1]), read_template(case[0]))
        export_hf(open_source("ckpt", place), folder / "hf", "fp16", False)
        found[case] = their_tokenizer(folder / "hf")
    return found


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_transformers_makes_our_ids_of_the_same_messages(case: Any, exported: Any) -> None:
    template, ours, theirs = read_template(case[0]), made(case[1]), exported[case]
    for start in ([], [SYSTEM]):
        for count in (1, 3, 5):
            messages = [*start, *CHAT[:count]]
            found = theirs.apply_chat_template(
                plain(messages), add_generation_prompt=True, return_dict=False
            )
            assert found == template.prompt(ours, messages).tolist(), (start, count)
    whole = theirs.apply_chat_template(plain(CHAT[:4]), return_dict=False)
    assert whole == template.encode(ours, CHAT[:4])[0].tolist()
    with pytest.raises(Exception, match="roles are system"):
        theirs.apply_chat_template([{"role": "tool", "content": "x"}])


@pytest.mark.parametrize("case", CASES, ids="-".join)
@pytest.mark.parametrize("role", ["system", "user"])
def test_a_marker_in_a_message_is_refused_there(case: Any, role: str, exported: Any) -> None:
    template, ours = read_template(case[0]), made(case[1])
    for marker in template.markers or [ours.decode([ours.end_of_text or 0])]:
        messages = [{"role": role, "content": f"a {marker} b"}, *plain([QUESTION])]
        with pytest.raises(Exception, match="a message contains a special token"):
            exported[case].apply_chat_template(messages)


def test_exported_adapters_have_the_tokenizer_and_the_template_of_their_run(tmp_path: Path) -> None:
    base, template = saved(tmp_path / "base", ByteTokenizer()), read_template("alpaca")
    options = FinetuneOptions("lora")
    source = open_source("ckpt", tuned(tmp_path / "run", base, options, template.plain()))
    export_hf(source, tmp_path / "hf", "fp32", False)
    export_peft(source, tmp_path / "peft", "fp32", False)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "peft" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()
    theirs = their_tokenizer(tmp_path / "peft")
    found = theirs.apply_chat_template(
        plain([QUESTION]), add_generation_prompt=True, return_dict=False
    )
    assert found == template.prompt(source.tokenizer, [QUESTION]).tolist()
    again = open_source("ckpt", str(tmp_path / "peft")).chat
    assert again is not None and again.template == source.chat.template  # type: ignore[union-attr]


@settings(max_examples=40, deadline=None, database=None)
@given(texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=20), min_size=4, max_size=4))
def test_any_texts_of_a_template_are_written_as_they_are(texts: list[str]) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    assume("<|endoftext|>" not in "".join(texts))
    system, before, after, content = texts
    values = {"user": {"before": before, "after": after}, "assistant": {}, "end": "x",
              "system": {}, "default_system": system}  # fmt: skip
    chat = chat_of(values, ByteTokenizer())
    assert chat is not None
    rendered, _ = render_jinja_template(
        conversations=[plain([Message("user", content)])], chat_template=chat.template
    )
    assert rendered == [system + before + content + after]


def test_a_template_without_system_refuses_a_system_message() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    chat = chat_of({"user": {}, "assistant": {}}, ByteTokenizer())
    assert chat is not None
    for start, known in (([], True), ([SYSTEM], False)):
        messages = [plain([*start, Message("user", "Hi")])]
        with nullcontext() if known else pytest.raises(Exception, match="roles are system"):
            assert render_jinja_template(messages, chat_template=chat.template)[0] == ["Hi"]


def test_generation_ends_where_an_answer_does(tmp_path: Path) -> None:
    tokenizer = BPETokenizer(library("smollm").to_str(), "<|endoftext|>")
    source = open_source("ckpt", trained(tmp_path / "run", tokenizer, read_template("chatml")))
    end = tokenizer.special_ids["<|im_end|>"]
    export_hf(source, tmp_path / "hf", "fp32", False)
    settings = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [tokenizer.end_of_text, end]
    export_gguf(source, tmp_path / "a.gguf", "fp32", False)
    values = read_header(tmp_path / "a.gguf").values
    assert values["tokenizer.ggml.eot_token_id"] == end
    assert values["tokenizer.chat_template"] == source.chat.template  # type: ignore[union-attr]


def test_a_template_of_other_weights_is_copied_through_every_format(tmp_path: Path) -> None:
    place = trained(tmp_path / "run", ByteTokenizer(), read_template("plain"))
    export_hf(open_source("ckpt", place), tmp_path / "hf", "fp32", False)
    theirs = "{% for message in messages %}{{ message.content }}{% endfor %}"
    (tmp_path / "hf" / "chat_template.jinja").write_text(theirs)
    export_gguf(open_source("ckpt", str(tmp_path / "hf")), tmp_path / "a.gguf", "fp32", False)
    export_hf(open_source("ckpt", str(tmp_path / "a.gguf")), tmp_path / "again", "fp32", False)
    assert chat_in_folder(tmp_path / "again") == Chat(theirs)
    assert chat_in_folder(tmp_path) is None


def test_no_template_is_written_that_would_give_other_ids() -> None:
    special_text = read_template("chatml").plain() | {"markers": []}
    assert chat_of(special_text, made("smollm")) is None
    metaspace = BPETokenizer(library("metaspace").to_str(), "</s>")
    assert chat_of(read_template("llama2").plain(), metaspace) is None
    assert chat_of({}, ByteTokenizer()) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}], "d"),
        ("t", "t"), ([{"name": "rag", "template": "r"}], None), ([1], None), (7, None),
        ({"default": "d"}, None), ("", None), ("x" * (LARGEST + 1), None), ("\ud800", None),
    ],
    ids=range(9),
)  # fmt: skip
def test_only_text_is_taken_from_a_strangers_settings(
    value: Any, text: str | None, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    assert chat_in_folder(tmp_path) == (None if text is None else Chat(text))
    (tmp_path / "chat_template.jinja").write_text("")
    assert chat_in_folder(tmp_path) is None, "the file counts, and it is empty"
