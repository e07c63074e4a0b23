"""The tokenizer beside other people's weights, against transformers and sentencepiece."""

import base64
import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken.load import load_tiktoken_bpe
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from llm.data import assets
from llm.data.bpe import BPETokenizer
from llm.data.tokenizer import GPT2Tokenizer
from llm.errors import Refused
from llm.interchange.sentencepiece import read_model
from llm.interchange.tokenizers import tokenizer_of_folder
from tests.data.test_bpe import LIBRARIES, NAMES, TEXT


def gpt2_library() -> Library:
    ours = GPT2Tokenizer()
    lines = [tuple(line.split()) for line in ours.merges.split("\n")[1:-1]]
    from llm.data.definition import ALPHABET

    vocab = {c: i for i, c in enumerate(ALPHABET)}
    for left, right in lines:
        vocab[left + right] = len(vocab)
    vocab["<|endoftext|>"] = len(vocab)
    made = Library(models.BPE(vocab, lines))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    return made


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    gpt2_library().save(str(folder / "tokenizer.json"))
    return folder


def test_gpt2s_files_become_our_own_tokenizer(gpt2: Path, tmp_path: Path) -> None:
    ours = GPT2Tokenizer()
    assert tokenizer_of_folder(gpt2).digest() == ours.digest()
    plain = json.loads((gpt2 / "tokenizer.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(plain["model"]["vocab"]))
    (tmp_path / "merges.txt").write_bytes(assets.gpt2_merges())
    assert tokenizer_of_folder(tmp_path).digest() == ours.digest()
    plain["added_tokens"].append(plain["added_tokens"][0] | {"content": "<|more|>", "id": 50257})
    (tmp_path / "tokenizer.json").write_text(json.dumps(plain))
    more = tokenizer_of_folder(tmp_path)
    assert isinstance(more, BPETokenizer) and more.vocab_size == 50258
    assert more.encode(TEXT).tolist() == ours.encode(TEXT).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_gives_the_ids_of_transformers_and_its_end_token(
    name: str, tmp_path: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    library = LIBRARIES[name]
    end = "</s>" if library.token_to_id("</s>") is not None else "<|im_end|>"
    theirs = PreTrainedTokenizerFast(tokenizer_object=library, eos_token=end)
    theirs.save_pretrained(tmp_path)
    tokenizer = tokenizer_of_folder(tmp_path)
    assert tokenizer.encode(TEXT).tolist() == theirs.encode(TEXT, add_special_tokens=False)
    assert tokenizer.end_of_text == theirs.eos_token_id == tokenizer.special_ids[end]


def test_the_end_token_may_be_in_the_settings_of_generation(tmp_path: Path) -> None:
    LIBRARIES["qwen2"].save(str(tmp_path / "tokenizer.json"))
    assert tokenizer_of_folder(tmp_path).end_of_text is None
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    assert tokenizer_of_folder(tmp_path).end_of_text == 2


@pytest.fixture(scope="module")
def pieces() -> bytes:
    """A BPE model that sentencepiece trains with the options of Llama 2."""
    return trained("bpe")


def trained(kind: str, **options: object) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((TEXT * 20).split("\n")), model_writer=model, vocab_size=420,
        model_type=kind, byte_fallback=True, minloglevel=2, character_coverage=0.98,
        **({"normalization_rule_name": "identity", "remove_extra_whitespaces": False} | options),
    )  # fmt: skip
    return model.getvalue()


def test_a_model_of_sentencepiece_gives_the_same_ids(pieces: bytes, tmp_path: Path) -> None:
    import sentencepiece

    (tmp_path / "tokenizer.model").write_bytes(pieces)
    tokenizer = tokenizer_of_folder(tmp_path)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    assert tokenizer.vocab_size == theirs.vocab_size()
    assert tokenizer.end_of_text == theirs.eos_id()
    for text in (TEXT, "", " ", "a", "  two  spaces ", "这是🎭", *TEXT.split("\n")):
        assert tokenizer.encode(text).tolist() == theirs.encode(text), text
    assert 2 not in tokenizer.encode("</s>") and tokenizer.decode([2]) == "</s>"


def test_a_model_of_sentencepiece_that_normalizes_gives_the_same_ids(tmp_path: Path) -> None:
    import sentencepiece

    options = {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True}
    raw = trained("bpe", **options)
    (tmp_path / "tokenizer.model").write_bytes(raw)
    tokenizer = tokenizer_of_folder(tmp_path)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=raw)
    for text in (*TEXT.split("\n"), "  ①  ﬁne  ", "a"):
        assert tokenizer.encode(text).tolist() == theirs.encode(text), text


def test_other_models_of_sentencepiece_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(trained("unigram", hard_vocab_limit=False))
    with pytest.raises(Refused, match=r"tokenizer\.model: a model of the type Unigram, and only"):
        tokenizer_of_folder(tmp_path)


def test_a_file_of_tiktoken_is_refused_saying_which_files_to_add(tmp_path: Path) -> None:
    ranks = {bytes([n]): n for n in range(256)} | {b"th": 256}
    path = tmp_path / "tokenizer.model"
    lines = [base64.b64encode(token) + f" {rank}\n".encode() for token, rank in ranks.items()]
    path.write_bytes(b"".join(lines))
    assert load_tiktoken_bpe(str(path)) == ranks
    with pytest.raises(Refused) as refused:
        tokenizer_of_folder(tmp_path)
    start, _, advice = str(refused.value).partition(" which ")
    assert start == f"{path}: it is a file of tiktoken, as in Llama 3,"
    assert "put tokenizer.json and tokenizer_config.json of the Hugging Face folder" in advice
    LIBRARIES["llama3"].save(str(tmp_path / "tokenizer.json"))
    assert tokenizer_of_folder(tmp_path).encode(TEXT).size


@settings(max_examples=150, deadline=None, database=None)
@given(at=st.floats(0, 1), written=st.binary(min_size=1, max_size=9), length=st.floats(0, 1.1))
def test_a_damaged_model_is_refused_in_one_line(
    pieces: bytes, at: float, written: bytes, length: float
) -> None:
    raw = bytearray(pieces)
    place = int(at * len(raw))
    raw[place : place + len(written)] = written
    try:
        definition, end = read_model(bytes(raw[: int(length * len(raw))]))
        BPETokenizer(json.dumps(definition), end).encode("the text")
    except Refused as refused:
        assert "\n" not in str(refused)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no tokenizer: none of tokenizer.json"),
        ({"tokenizer.json": "{"}, r"tokenizer\.json cannot be read"),
        ({"tokenizer.json": '{"model": {"type": "Unigram"}}'}, "json has model.type='Unigram'"),
        ({"tokenizer.json": "\ud800"}, r"tokenizer\.json cannot be read"),
        ({"vocab.json": "[]", "merges.txt": ""}, "not an object of tokens"),
        ({"vocab.json": "{}"}, r"merges\.txt cannot be read: No such file"),
        ({"tokenizer.model": "hello"}, "tokenizer.model: it"),
    ],
)
def test_folders_without_such_a_tokenizer_are_refused(
    files: dict[str, str], message: str, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(Refused, match=message):
        tokenizer_of_folder(tmp_path)
