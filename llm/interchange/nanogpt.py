"""nanoGPT's ckpt.pt. The shape of the network is in the pickle, so opening it imports torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.data.tokenizer import CharTokenizer, GPT2Tokenizer, Tokenizer
from llm.errors import Refused, reason_for, require
from llm.interchange.files import FileSource, resolved
from llm.interchange.names import NANOGPT
from llm.model.config import GPTConfig
from llm.options import from_plain, option
from llm.sealed import read_bounded

if TYPE_CHECKING:
    from llm.interchange.assemble import Stored

WEIGHTS, ALPHABET = "ckpt.pt", "characters.txt"
LARGEST_ALPHABET = 4 << 20  # bytes
COMPILED = "_orig_mod."  # torch.compile puts this before the names


@dataclass
class ModelArgs:
    """``model_args``"""

    n_layer: int = option()
    n_head: int = option()
    n_embd: int = option()
    block_size: int = option()
    vocab_size: int = option()
    bias: bool = option()
    dropout: float = 0.0


def open_file(place: str, file: Path) -> FileSource:
    """The network in ``file`` (ckpt.pt)."""
    values = _part(file, "model_args")
    for key in values:  # a pickle may have keys of other types
        require(
            isinstance(key, str), f"{file}: model_args has the key {key!s:.60}, which is not text"
        )
    args = from_plain(ModelArgs, values, f"{file}: model_args.")
    model = GPTConfig(
        n_layer=args.n_layer, n_embed=args.n_embd, n_head=args.n_head, head_size=None,
        block_size=args.block_size, vocab_size=args.vocab_size, bias=args.bias, norm="layernorm",
        mlp="gelu_exact", position="learned", tie_embeddings=True,
    )  # fmt: skip
    return FileSource(
        kind="nanogpt", place=place, model=resolved(model, file), names=NANOGPT, files=(file,),
        read=_read, context=args.block_size,
        find_tokenizer=lambda: _tokenizer(file.parent, args.vocab_size),
    )  # fmt: skip


def _part(file: Path, key: str) -> Any:
    from llm.interchange.pickled import read_pickled

    values = read_pickled(file)
    found = isinstance(values, dict) and isinstance(values.get(key), dict)
    require(found, f"{file} has no {key}: it is not a checkpoint of nanoGPT")
    return values[key]


def _read(files: tuple[Path, ...]) -> "Mapping[str, Stored]":
    from llm.interchange.pickled import stored_tensors

    stored = stored_tensors(files[0], _part(files[0], "model"))
    return {name.removeprefix(COMPILED): tensor for name, tensor in stored.items()}


def _tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """GPT-2's, or the characters in characters.txt: nanoGPT's own list is in a pickle, meta.pkl,
    which this program does not read.
    """
    if vocab_size in (50_257, 50_304):  # 50,304: padded
        return GPT2Tokenizer()
    path = folder / ALPHABET
    require(
        path.exists(),
        f"{folder} does not say which characters its {vocab_size} ids are: put the training text, "
        f"or just its characters, into {path}",
    )
    try:
        text = read_bounded(path, LARGEST_ALPHABET).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path} cannot be read: {reason_for(path, error)}") from None
    characters = "".join(sorted(set(text)))
    found = len(characters)
    require(found == vocab_size, f"{path} has {found} characters, and the model {vocab_size} ids")
    return CharTokenizer(characters)
