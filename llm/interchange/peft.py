"""Adapters of PEFT: folders with adapter_config.json and adapter_model.safetensors."""

from llm.interchange.names import Names
from llm.model.config import GPTConfig
from llm.model.finetune import TARGETS

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of all names in such a file
BASE_DIGEST = "base_digest"  # in the metadata of a file of ours: the digest of the base's weights


def adapted_modules(model: GPTConfig, names: Names) -> dict[str, list[str]]:
    """Their name of each matrix that may have an adapter, and our layers that it joins."""
    parts = [part for part in names.modules if part.rpartition(".")[2] in TARGETS]
    modules: dict[str, list[str]] = {}
    for number in range(model.n_layer):
        for part in parts:
            layer = f"blocks.{number}.{part}"
            theirs = names.theirs(f"{layer}.weight").removesuffix(".weight")
            modules.setdefault(theirs, []).append(layer)
    return modules
