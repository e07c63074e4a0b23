"""The names and shapes of all weights of a network, without torch."""

import math
import re
from dataclasses import dataclass, fields
from functools import cache

from llm.memory.lora import LoRA
from llm.memory.network import Network
from llm.memory.tape import Meter, Tape
from llm.model.config import GPTConfig


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
    def is_lora(self) -> bool:
        """Whether LoRA adds it to the network."""
        return ".lora_" in self.name


def without_layer(name: str) -> str:
    """``blocks.3.mlp.up.weight`` -> ``blocks.mlp.up.weight``."""
    return re.sub(r"^blocks\.\d+\.", "blocks.", name)


def weights_of(config: GPTConfig, lora: LoRA | None = None) -> list[Weight]:
    """All weights of the network, LoRA's included."""
    _, *others = (getattr(config, field.name) for field in fields(GPTConfig))  # n_layer is first
    return _weights_of(config.n_layer, tuple(others), lora)


@cache
def _weights_of(n_layer: int, others: tuple[object, ...], lora: LoRA | None) -> list[Weight]:
    return [
        Weight(name, shape, n_layer if name.startswith("blocks.") else 1)
        for name, shape in _shapes(others, lora).items()
    ]


@cache
def _shapes(others: tuple[object, ...], lora: LoRA | None) -> dict[str, tuple[int, ...]]:
    """The shapes of all weights by name, of a network with one layer."""
    config = GPTConfig(1, *others)  # type: ignore[arg-type]  # in the order of the fields
    network = Network(Tape(Meter(), learning=False), config, 1, "fp32", "cpu", lora)
    network.forward()
    return {without_layer(one.name): one.shape for one in network.parameters.values()}


def trained_weights(config: GPTConfig, lora: LoRA | None = None) -> list[Weight]:
    """The weights that training changes: all, or only LoRA's."""
    return [one for one in weights_of(config, lora) if one.is_lora or lora is None]


def n_parameters(config: GPTConfig) -> int:
    """Parameters of the network, without LoRA's; tied weights count once."""
    return sum(one.numbers * one.layers for one in weights_of(config))


def flops_per_token(config: GPTConfig) -> float:
    """Floating point operations to train on one token, forward and backward.

    6 per weight of a matrix product, and 12 n_layer n_head head_size block_size for attention
    (Chowdhery et al. 2022, arXiv:2204.02311, appendix B). An embedding look-up is not a product; a
    tied embedding is the matrix of the head as well.
    """
    assert config.n_head and config.head_size
    tables = {"position.weight"} if config.tie_embeddings else {"embed.weight", "position.weight"}
    products = [one for one in weights_of(config) if one.name not in tables]
    weights = sum(one.numbers * one.layers for one in products)
    attention = config.n_layer * config.n_head * config.head_size * config.block_size
    return 6.0 * weights + 12.0 * attention


def n_trained(config: GPTConfig, lora: LoRA | None = None) -> int:
    """Parameters that training changes."""
    return sum(one.numbers * one.layers for one in trained_weights(config, lora))
