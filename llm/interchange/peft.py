"""Adapters of PEFT: folders with adapter_config.json and adapter_model.safetensors.

As in llm/interchange/hf.py, each field of the config must be understood or known to be harmless;
otherwise the folder is refused, naming the field.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.data.tokenizer import Tokenizer
from llm.errors import Refused, require
from llm.interchange.chat_template import Chat, chat_in_folder
from llm.interchange.families import choose_family
from llm.interchange.files import file_digest, refuse_pickle, require_file, require_supported
from llm.interchange.names import Names
from llm.model.config import GPTConfig
from llm.model.finetune import LARGEST_ALPHA, TARGETS
from llm.options import from_plain, option
from llm.sealed import Plain, read_json

if TYPE_CHECKING:
    from torch import Tensor

    from llm.interchange.source import Source

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."  # of all names in such a file
# Their ends: A, B, and the magnitude of DoRA
THEIR_A, THEIR_B, THEIR_MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
# This program adds to the metadata of its files: Source.digest() of the base, and a digest of the
# base's values, which is the same in every format.
BASE_DIGEST, BASE_VALUES = "base_digest", "base_values_digest"
# Fields that do not change the logits: dropout, and how other programs load the adapters. The
# tensors show which matrices have adapters, so exclude_modules is not needed either.
NO_MATHEMATICS = """
    auto_mapping exclude_modules inference_mode layers_pattern lora_dropout megatron_core
    peft_version qalora_group_size revision
"""
HARMLESS = frozenset(NO_MATHEMATICS.split())
OFF: tuple[Any, ...] = (None, False, {}, [])  # values that switch an option of PEFT off
INITIAL = (True, False, "gaussian", "orthogonal")  # others, such as pissa, change the base
# A hostile pattern may take years to match. One of these characters has no repetition.
NAME = re.compile(r"[\w.\\^$-]{1,200}")
MOST_PATTERNS = 4096  # one for each matrix of 512 layers, and some more


@dataclass(frozen=True)
class PeftFields:
    """The fields that this program understands, with the defaults of PEFT."""

    base_model_name_or_path: str
    peft_type: str = option(one_of=("LORA",))
    task_type: str | None = option(None, one_of=("CAUSAL_LM",))
    r: int = option(8, at_least=1)
    lora_alpha: float = option(8, more_than=0, at_most=LARGEST_ALPHA)
    rank_pattern: dict[str, int] = option({}, at_least=1)
    alpha_pattern: dict[str, float] = option({}, more_than=0, at_most=LARGEST_ALPHA)
    target_modules: Any = None  # a list of ends of names, or a pattern
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False  # the base stores matrices as (in, out)
    bias: str = option("none", one_of=("none",))
    init_lora_weights: Any = option(True, one_of=INITIAL)

    def targets(self, module: str) -> bool | None:
        """Whether ``target_modules`` names a matrix; None if it is a pattern, which is not run."""
        names = self.target_modules
        if isinstance(names, str):
            return None
        return any(f".{module}".endswith(f".{name}") for name in names)

    def rank(self, module: str) -> int:
        """The rank of the adapter of a matrix."""
        return int(_matching(self.rank_pattern, module, self.r))

    def scale(self, module: str) -> float:
        """s in W + s B A."""
        alpha, rank = _matching(self.alpha_pattern, module, self.lora_alpha), self.rank(module)
        return alpha / (rank**0.5 if self.use_rslora else rank)


def _matching(patterns: Mapping[str, float], module: str, default: float) -> float:
    """The value of the first pattern that matches ``module`` or the end of it, as in PEFT."""
    for name, number in patterns.items():
        if _compiled(name).match(module):
            return number
    return default


@lru_cache(2 * MOST_PATTERNS)
def _compiled(name: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({name})$")


@dataclass(frozen=True)
class PeftSource:
    """A base with the adapters of a folder merged in: see :class:`llm.interchange.source.Source`.

    The config names the base, but has no digest of its weights. A file that this program wrote has
    one in its metadata.
    """

    place: str
    config: PeftFields
    base: "Source"
    kind: str = "peft"

    @property
    def path(self) -> Path:
        """The place as typed."""
        return Path(self.place)

    @property
    def model(self) -> GPTConfig:
        """The network of the base."""
        return self.base.model

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the base."""
        return self.base.tokenizer

    @property
    def chat(self) -> Chat | None:
        """The chat template in the folder, or else of the base."""
        return chat_in_folder(self.path) or self.base.chat

    @property
    def context(self) -> int:
        """The context of the base."""
        return self.base.context

    @cached_property
    def names(self) -> Names:
        """The names of the tensors of the base in transformers."""
        own: Names | None = getattr(self.base, "names", None) if self.base.kind == "hf" else None
        return own or choose_family(self.model).names(self.model)

    def digest(self) -> str:
        """sha256 of the digests of the adapters and of the base, and of the config."""
        config = asdict(self.config) | {"base_model_name_or_path": None}
        parts = [file_digest(self.path / WEIGHTS), self.base.digest(), config]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def weights(self) -> "dict[str, Tensor]":
        """The weights of the base with the adapters merged in."""
        from llm.interchange.peft_reading import require_base

        base = self.base.weights()
        require_base(self, base)
        return self.merged(base)

    def tensors(self) -> "Iterator[tuple[str, Tensor]]":
        """See :class:`llm.interchange.source.Source`."""
        weights = self.weights()
        for name in list(weights):
            yield name, weights.pop(name)

    def merged(self, base: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """``base`` with the adapters merged in; unchanged tensors are the same objects.

        Raises :class:`llm.errors.Refused` for a file that is damaged or does not fit.
        """
        from llm.interchange.peft_reading import merge_adapters

        return merge_adapters(self, base)


def open_peft(place: str, path: Path, base: "Source | None" = None) -> PeftSource:
    """The adapters in the folder of ``path``, an adapter_config.json.

    ``base``: the weights to merge them into; None: the weights that the config names. Raises
    :class:`llm.errors.Refused` for an option that this program does not support.
    """
    config = read_config(path)
    weights = path.parent / WEIGHTS
    if not weights.exists():
        refuse_pickle(path.parent / PICKLE, "adapter", WEIGHTS)
    require_file(weights)
    source = PeftSource(place, config, base or named_base(config, path))
    fits = source.names.transposed or not config.fan_in_fan_out
    require(fits, f"{path}: fan_in_fan_out=true is for GPT-2, and the base is another network")
    return source


def named_base(config: PeftFields, path: Path) -> "Source":
    """The weights that ``base_model_name_or_path`` names, which must be on this machine."""
    from llm.interchange.source import DOWNLOADED, open_source

    name = config.base_model_name_or_path
    shown = f"the base of {path.parent} is {name!r:.200}"
    require(
        os.path.exists(name) or name in DOWNLOADED,
        f"{shown}, which is not on this machine: put the path of its weights into "
        f"base_model_name_or_path of {path}, or sample with ckpt=BASE adapters=[{path.parent}]",
    )
    is_adapter = os.path.isfile(Path(name) / CONFIG)
    require(
        not is_adapter, f"{shown}, an adapter itself: merge it with run_export.py format=merged"
    )
    try:
        return open_source("base_model_name_or_path", name)
    except Refused as refusal:
        raise Refused(f"{shown}, which cannot be opened: {refusal}") from None


def read_config(path: Path) -> PeftFields:
    """The fields of ``adapter_config.json``; :class:`llm.errors.Refused` for one that is in use and
    neither understood nor harmless.
    """
    known, mine = {one.name for one in fields(PeftFields)}, Plain()
    for key, value in read_json(path).items():
        if key in known and value is not None:
            mine[key] = value
        is_allowed = key in known or key in HARMLESS or value in OFF
        require_supported(is_allowed, f"{path}: {key:.60}", value)
    config = from_plain(PeftFields, mine, f"{path}: ")
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = getattr(config, key)
        few = len(patterns) <= MOST_PATTERNS
        require(
            few, f"{path}: {key} has {len(patterns):,} names, and at most {MOST_PATTERNS} are read"
        )
        for name in patterns:
            plain = _is_plain(name)
            require(plain, f"{path}: {key} has {name!r:.60}, and only plain names are read")
    names = config.target_modules
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    require(
        names and (is_list or isinstance(names, str)),
        f"{path}: target_modules={names!s:.60} must be a list of names, or a pattern",
    )
    return config


def _is_plain(name: str) -> bool:
    """Whether ``name`` is a pattern without repetitions."""
    try:
        return NAME.fullmatch(name) is not None and _compiled(name) is not None
    except re.error:
        return False


def adapted_modules(model: GPTConfig, names: Names) -> dict[str, list[str]]:
    """PEFT's name of each matrix that may have an adapter -> our layers that it joins."""
    parts = [part for part in names.modules if part.rpartition(".")[2] in TARGETS]
    layers = [f"blocks.{number}.{part}" for number in range(model.n_layer) for part in parts]
    joined = names.joined(f"{layer}.weight" for layer in layers)
    return {
        theirs.removesuffix(".weight"): [name.removesuffix(".weight") for name in ours]
        for theirs, ours in joined.items()
    }
