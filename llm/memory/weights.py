"""The names and shapes of all weights of a network, without torch."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache

from llm.functional.sizes import BLOCK_4BIT
from llm.memory.network import Network
from llm.memory.tape import Meter, Tape, aligned
from llm.model.config import GPTConfig
from llm.model.finetune import ADAPTER_WEIGHTS, TARGETS, FinetuneOptions

ALL = FinetuneOptions("full", targets=[])  # all weights are trained


@dataclass(frozen=True)
class Weight:
    """One weight, or the same weight of all layers."""

    name: str  # of layers: "blocks.mlp.up.weight"
    shape: tuple[int, ...]
    layers: int = 1  # how many layers have it

    @property
    def numbers(self) -> int:
        """Elements in one layer."""
        return math.prod(self.shape)

    @property
    def is_added(self) -> bool:
        """Whether an adapter adds it to the network."""
        return self.name.rpartition(".")[2] in ADAPTER_WEIGHTS


def without_layer(name: str) -> str:
    """``blocks.3.mlp.up.weight`` -> ``blocks.mlp.up.weight``."""
    return re.sub(r"^blocks\.\d+\.", "blocks.", name)


def for_memory(finetune: FinetuneOptions) -> FinetuneOptions:
    """``finetune`` with one value for all options that memory does not depend on."""
    if not finetune.has_adapters:
        name = "head" if finetune.name == "head" else ALL.name
        return replace(ALL, name=name, freeze=finetune.freeze)
    return replace(
        finetune, alpha=ALL.alpha, rslora=False, dropout=0.1 if finetune.dropout else 0.0,
        bits=finetune.stored_bits,
    )  # fmt: skip


def weights_of(config: GPTConfig, finetune: FinetuneOptions = ALL) -> list[Weight]:
    """All weights of the network, those of adapters included."""
    _, *others = (getattr(config, field.name) for field in fields(GPTConfig))  # n_layer is first
    weights = [
        Weight(name, shape, config.n_layer if name.startswith("blocks.") else 1)
        for name, shape in _shapes(tuple(others), finetune.name, finetune.rank).items()
    ]
    if finetune.frozen or {*finetune.target_names} != {*TARGETS}:
        weights = [_in_layers(w, finetune.adapts) if w.is_added else w for w in weights]
    return [one for one in weights if one.layers]


@cache
def _shapes(others: tuple[object, ...], method: str, rank: int) -> dict[str, tuple[int, ...]]:
    """The shapes of all weights by name, of a network with one layer, all of whose matrices have
    adapters.
    """
    config = GPTConfig(1, *others)  # type: ignore[arg-type]  # in the order of the fields
    finetune = FinetuneOptions(method, rank)
    network = Network(Tape(Meter(), learning=False), config, 1, "fp32", "cpu", finetune)
    network.forward()
    return {without_layer(one.name): one.shape for one in network.parameters.values()}


def _in_layers(weight: Weight, chosen: Callable[[str], bool]) -> Weight:
    """``weight`` of the layers in which its name, or for an adapter its matrix's, is ``chosen``."""
    names = _names(weight)
    if weight.is_added:
        names = [name.rpartition(".")[0] for name in names]
    return replace(weight, layers=sum(map(chosen, names)))


def _names(weight: Weight) -> list[str]:
    """``weight`` by its name in each layer."""
    return [weight.name.replace("blocks.", f"blocks.{i}.", 1) for i in range(weight.layers)]


def trained_weights(config: GPTConfig, finetune: FinetuneOptions = ALL) -> list[Weight]:
    """The weights that training changes."""
    weights = weights_of(config, finetune)
    if finetune.has_adapters:
        return [one for one in weights if one.is_added]
    if finetune == ALL:
        return weights
    is_tied = config.tie_embeddings
    trained = (_in_layers(one, lambda name: finetune.trains(name, is_tied)) for one in weights)
    return [one for one in trained if one.layers]


def names_of(config: GPTConfig) -> list[str]:
    """The names of all weights of the network, without adapters."""
    return [name for weight in weights_of(config) for name in _names(weight)]


def stored_bytes(weight: Weight, finetune: FinetuneOptions, width: int) -> int:
    """Bytes of ``weight`` in all its layers, of ``width`` bytes per number if not quantised."""
    whole, bits = aligned(weight.numbers * width), finetune.stored_bits
    if bits is None or not weight.name.endswith(".weight"):
        return whole * weight.layers
    packed = _in_layers(weight, lambda name: finetune.adapts(name.removesuffix(".weight"))).layers
    scales = weight.shape[0] if bits == 8 else -(-weight.numbers // BLOCK_4BIT)
    pairs = 4 * 2 * 256  # the table of llm/model/quantised.py
    small = aligned(weight.numbers * bits // 8) + aligned(4 * scales) + pairs
    return small * packed + whole * (weight.layers - packed)


def n_parameters(config: GPTConfig) -> int:
    """Parameters of the network, without adapters; tied weights count once."""
    return sum(one.numbers * one.layers for one in weights_of(config))


def flops_per_token(config: GPTConfig, finetune: FinetuneOptions = ALL) -> float:
    """Floating point operations to train on one token, forward and backward.

    For each weight of a matrix product, 2 forward, 2 for the gradient of the input and 2 for the
    weight's own gradient; a frozen weight has none. Attention takes 12 n_layer n_head head_size
    block_size (Chowdhery et al. 2022, arXiv:2204.02311, appendix B). An embedding look-up is not a
    product; a tied embedding is the matrix of the head as well. With ``finetune=head`` gradients
    do not go below the head.
    """
    assert config.n_head and config.head_size
    tables = {"position.weight"} if config.tie_embeddings else {"embed.weight", "position.weight"}

    def numbers(weights: list[Weight]) -> int:
        return sum(one.numbers * one.layers for one in weights if one.name not in tables)

    used = numbers(weights_of(config, finetune))
    trained = numbers(trained_weights(config, finetune))
    attention = config.n_layer * config.n_head * config.head_size * config.block_size
    if finetune.name == "head":
        return 2.0 * used + 4.0 * trained + 4.0 * attention
    return 4.0 * used + 2.0 * trained + 12.0 * attention


def n_trained(config: GPTConfig, finetune: FinetuneOptions = ALL) -> int:
    """Parameters that training changes."""
    return sum(one.numbers * one.layers for one in trained_weights(config, finetune))
