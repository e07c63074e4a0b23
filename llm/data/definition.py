"""Reads a ``tokenizer.json`` and checks its values before the library ``tokenizers`` gets them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llm.errors import Refused, as_line, require

if TYPE_CHECKING:
    import tokenizers

LARGEST = 32 << 20  # bytes of text; Qwen3's has 11 million
MOST_IDS = 2**20  # as model.vocab_size
DEEPEST = 8  # sequences in sequences
SPACE_MARK = "▁"  # U+2581, a space in the tokens of sentencepiece
STEPS = ("normalizer", "pre_tokenizer", "decoder")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
Definition = dict[str, Any]


def _alphabet() -> dict[str, int]:
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


ALPHABET = _alphabet()  # the byte that each of GPT-2's 256 printable characters stands for


def parse(text: str) -> Definition:
    """The values of the text of a tokenizer.json, whose model is BPE.

    Raises :class:`llm.errors.Refused` for other models, by name, and for malformed values.
    """
    require(len(text) <= LARGEST, f"a tokenizer.json of {len(text):,} characters is too large")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(f"tokenizer.json is damaged: {as_line(str(error))}") from None
    model = values.get("model") if isinstance(values, dict) else None
    require(isinstance(model, dict), "tokenizer.json has no model")
    assert isinstance(model, dict)
    is_bpe = "merges" in model and isinstance(model.get("vocab"), dict)
    kind = model.get("type", "BPE" if is_bpe else None)  # old files lack the type
    require(kind == "BPE", f"tokenizer.json has model.type={kind!r:.40}: only BPE is supported")
    vocab, merges = model.get("vocab"), model.get("merges")
    require(isinstance(vocab, dict) and vocab, "tokenizer.json has no model.vocab")
    require(isinstance(merges, list), "tokenizer.json has no model.merges")
    unknown = model.get("unk_token")
    is_text = unknown is None or isinstance(unknown, str)
    require(is_text, f"tokenizer.json has model.unk_token={unknown!r:.40}, which is not text")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        require(not model.get(key), f"tokenizer.json has model.{key}={model.get(key)!r:.40}, which "
                "is not supported")  # fmt: skip
    return dict(values)


def added_tokens(values: Definition) -> list[Definition]:
    """The tokens of ``added_tokens``, with all their flags."""
    tokens = values.get("added_tokens") or []
    require(isinstance(tokens, list), "tokenizer.json: added_tokens is not a list")
    added = []
    for token in tokens:
        is_token = isinstance(token, dict) and isinstance(token.get("content"), str)
        require(is_token and token["content"], f"tokenizer.json has an added token {token!r:.60}")
        flags = {flag: bool(token.get(flag, False)) for flag in FLAGS}
        added.append({"content": token["content"], "id": token.get("id")} | flags)
    return added


def added_token(number: int, content: str, special: bool) -> Definition:
    """An entry of ``added_tokens``: a token that is found before text is divided into words."""
    return {"id": number, "content": content} | dict.fromkeys(FLAGS, False) | {"special": special}


def ids_by_text(values: Definition, added: list[Definition]) -> dict[str, int]:
    """The id of every token.

    Raises :class:`llm.errors.Refused` for an id that is too large or occurs twice.
    """
    ids: dict[str, int] = dict(values["model"]["vocab"])
    for token in added:
        text = token["content"]
        same = ids.setdefault(text, token["id"]) == token["id"]
        require(same, f"tokenizer.json has two ids for the token {text[:60]!r}")
    for wrong in (n for n in ids.values() if type(n) is not int or not 0 <= n < MOST_IDS):
        raise Refused(f"tokenizer.json has the id {wrong!r:.40}, not 0 to {MOST_IDS - 1:,}")
    require(len(set(ids.values())) == len(ids), "tokenizer.json has one id for two tokens")
    try:
        "".join(ids).encode()
    except UnicodeEncodeError:
        raise Refused("tokenizer.json has a token that is not Unicode text") from None
    return ids


def _steps(value: object, depth: int = 0) -> Iterator[Definition]:
    """The normalizers, pre-tokenizers or decoders in ``value``, also inside of sequences."""
    if value is None:
        return
    is_step = isinstance(value, dict) and isinstance(value.get("type"), str)
    require(is_step and depth < DEEPEST, f"tokenizer.json has the unusable step {value!r:.60}")
    assert isinstance(value, dict)
    if value["type"] != "Sequence":
        yield value
        return
    for parts in value.values():
        for part in parts if isinstance(parts, list) else []:
            yield from _steps(part, depth + 1)


def types(values: Definition) -> set[str]:
    """The names of the normalizers, pre-tokenizers and decoders: ``{"NFC", "ByteLevel"}``."""
    return {step["type"] for key in STEPS for step in _steps(values.get(key))}


def splits(values: Definition) -> set[str]:
    """The patterns that divide a text into words; GPT-2's is built into ``ByteLevel``."""
    found = set()
    for step in _steps(values.get("pre_tokenizer")):
        if step["type"] == "ByteLevel" and step.get("use_regex", True):
            found.add(GPT2_SPLIT)
        pattern = step.get("pattern")
        if isinstance(pattern, dict):
            found |= {str(text) for text in pattern.values()}
    return found


def without_prefix(values: Definition) -> Definition:
    """The same definition without the space that it would put in front of a text."""
    return values | {key: _without_prefix(values.get(key)) for key in STEPS[:2]}


def _without_prefix(step: Any) -> Any:
    if not isinstance(step, dict):
        return step
    changed = dict(step)
    if step["type"] == "Sequence":
        for key in ("normalizers", "pretokenizers"):
            if isinstance(step.get(key), list):
                parts = [_without_prefix(part) for part in step[key]]
                changed[key] = [part for part in parts if part is not None]
    if step["type"] == "Prepend":
        return None
    if step["type"] == "Metaspace":
        changed = {"type": "Metaspace", "replacement": step.get("replacement", SPACE_MARK),
                   "prepend_scheme": "never", "split": step.get("split", True)}  # fmt: skip
    if step.get("add_prefix_space") is True:
        changed["add_prefix_space"] = False
    return changed


def build(
    values: Definition, vocab: dict[str, int], added: list[Definition]
) -> "tokenizers.Tokenizer":
    """The library's tokenizer with this vocabulary; the tokens ``added`` are found in a text first.

    Merges that make a token outside of ``vocab`` are left out.
    """
    try:
        import tokenizers
        from tokenizers.models import BPE
    except ImportError as error:
        raise Refused(
            "other people's tokenizers need the library tokenizers: "
            "pip install 'one-gpu-llm[interchange]'"
        ) from error
    model = values["model"]
    steps = {key: values.get(key) for key in STEPS[:2]}
    nothing = {"type": "BPE", "vocab": {}, "merges": []}
    empty = {"version": "1.0", "added_tokens": [], "model": nothing}
    with one_line():
        library = tokenizers.Tokenizer.from_str(json.dumps(empty | steps))
        library.model = BPE(
            vocab=vocab, merges=_merges(model["merges"], vocab), unk_token=None,
            byte_fallback=model.get("byte_fallback") is True,
            ignore_merges=model.get("ignore_merges") is True,
        )  # fmt: skip
        library.add_tokens([
            tokenizers.AddedToken(token["content"], **{flag: token[flag] for flag in FLAGS})
            for token in added
        ])  # fmt: skip
    return library


def _merges(merges: list[Any], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs of tokens in ``vocab`` that merge to one in it."""
    joined = pairs(merges)
    return [(a, b) for a, b in joined if a in vocab and b in vocab and a + b in vocab]


def pairs(merges: list[Any]) -> list[tuple[str, str]]:
    """``model.merges`` as pairs; old files write a pair as one string."""
    found = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        is_pair = isinstance(pair, list) and len(pair) == 2
        require(is_pair and all(isinstance(part, str) for part in pair),
                f"tokenizer.json has the merge {merge!r:.60}, not a pair")  # fmt: skip
        left, right = pair
        found.append((left, right))
    return found


@contextmanager
def one_line() -> Iterator[None]:
    """Turns any error of the library, also a panic of Rust, into a refusal of one line."""
    try:
        yield
    except Refused:
        raise
    except BaseException as error:
        # pyo3's PanicException is a BaseException
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise Refused(f"the library tokenizers fails: {as_line(str(error))}") from None
