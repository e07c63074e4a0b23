"""Llama as Meta publishes it: consolidated.00.pth, params.json, and a tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm.errors import require
from llm.interchange.files import FileSource, require_file, resolved
from llm.interchange.names import CONSOLIDATED
from llm.interchange.tokenizers import tokenizer_of_folder
from llm.model.config import GPTConfig
from llm.options import from_plain, option
from llm.sealed import Plain, read_json

if TYPE_CHECKING:
    from llm.interchange.assemble import Stored

WEIGHTS, SECOND, PARAMS = "consolidated.00.pth", "consolidated.01.pth", "params.json"
CONTEXT = 2048  # tokens: params.json has no context length, and every version has at least this
SCALED_FROM = 8192  # tokens: the original context of Llama 3


@dataclass
class Params:
    """The contents of params.json, with the defaults of Meta's program."""

    dim: int = option(at_least=1)
    n_layers: int = option()
    n_heads: int = option()
    vocab_size: int = option()
    n_kv_heads: int | None = None
    multiple_of: int = option(256, at_least=1)
    ffn_dim_multiplier: float | None = option(None, more_than=0, at_most=100)
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    use_scaled_rope: bool = False
    rope_scaling_factor: float | None = None
    rope_high_freq_factor: float | None = None
    max_batch_size: int = 1
    max_seq_len: int = CONTEXT

    @property
    def intermediate_size(self) -> int:
        """Width of the MLP."""
        size = int(2 * 4 * self.dim / 3)
        if self.ffn_dim_multiplier is not None:
            size = int(self.ffn_dim_multiplier * size)
        return -(-size // self.multiple_of) * self.multiple_of

    def scaling(self, path: Path) -> Plain:
        """The options for rotary positions in long texts."""
        if not self.use_scaled_rope:
            return {}
        require(
            self.rope_scaling_factor is not None,
            f"{path}: use_scaled_rope=true needs rope_scaling_factor (8 for Llama 3.1, 32 for "
            "3.2): add it, or take the Hugging Face folder",
        )
        return {
            "rope_scaling": "llama3", "rope_factor": self.rope_scaling_factor,
            "rope_original_size": SCALED_FROM, "rope_high": self.rope_high_freq_factor or 4.0,
        }  # fmt: skip


def open_folder(place: str, file: Path) -> FileSource:
    """The network in ``file`` (consolidated.00.pth) and in params.json beside it."""
    folder = file.parent
    path = folder / PARAMS
    require(path.exists(), f"{file} needs {PARAMS} beside it")
    require_file(file)
    second = (folder / SECOND).exists()
    advice = f"take a folder whose only file of weights is {WEIGHTS}"
    require(not second, f"{folder} splits each tensor over several files: {advice}")
    values = {key: value for key, value in read_json(path).items() if value is not None}
    params = from_plain(Params, values, f"{path}: ")
    if params.vocab_size == -1:  # Llama 1 and 2: the tokenizer has it
        params.vocab_size = tokenizer_of_folder(folder).vocab_size
    model = GPTConfig(
        n_layer=params.n_layers, n_embed=params.dim, n_head=params.n_heads, head_size=None,
        n_kv_head=params.n_kv_heads, intermediate_size=params.intermediate_size,
        block_size=CONTEXT, vocab_size=params.vocab_size, norm_eps=float(params.norm_eps),
        tie_embeddings=False, rope_base=float(params.rope_theta), **params.scaling(path),
    )  # fmt: skip
    return FileSource(
        kind="llama", place=place, model=resolved(model, path), names=CONSOLIDATED,
        files=(file,), read=_read, context=CONTEXT,
        find_tokenizer=lambda: tokenizer_of_folder(folder),
    )  # fmt: skip


def _read(files: tuple[Path, ...]) -> "Mapping[str, Stored]":
    from llm.interchange.pickled import read_pickled, stored_tensors

    return stored_tensors(files[0], read_pickled(files[0]))
