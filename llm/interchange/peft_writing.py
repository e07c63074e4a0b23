"""Write adapters as a folder that PEFT loads: adapter_config.json and adapter_model.safetensors."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llm.checkpoint.find import Base
from llm.checkpoint.tensors import save_durably
from llm.interchange.families import choose_family
from llm.interchange.hf_writing import DTYPES, cast, write_json
from llm.interchange.peft import (
    BASE_DIGEST,
    BASE_VALUES,
    CONFIG,
    PREFIX,
    THEIR_A,
    THEIR_B,
    THEIR_MAGNITUDE,
    WEIGHTS,
    adapted_modules,
)
from llm.interchange.peft_reading import weights_digest
from llm.model.config import GPTConfig
from llm.model.finetune import FinetuneOptions
from llm.model.lora import MAGNITUDE, A, B
from llm.sealed import Plain


@dataclass(frozen=True)
class Adapter:
    """The adapter of a matrix (out, in) of transformers."""

    a: Tensor  # (rank, in)
    b: Tensor  # (out, rank)
    magnitude: Tensor | None  # (out,), of DoRA


def write_peft(
    folder: Path, model: GPTConfig, options: FinetuneOptions, trained: Mapping[str, Tensor],
    base: Mapping[str, Tensor], place: Base, dtype: str,
) -> None:  # fmt: skip
    """Fill ``folder`` with the ``trained`` tensors of a run with adapters.

    ``base``: the weights that they were trained on, at ``place``. Raises
    :class:`llm.errors.Refused` if no architecture computes the same.
    """
    names = choose_family(model).names(model)
    modules = adapted_modules(model, names)
    adapters = {
        theirs: joined(ours, trained, base) for theirs, ours in modules.items()
        if any(f"{layer}.{A}" in trained for layer in ours)
    }  # fmt: skip
    tensors = {name: cast(name, tensor, DTYPES[dtype]) for name, tensor in _stored(adapters)}
    digests = {BASE_DIGEST: place.digest, BASE_VALUES: weights_digest(base)}
    save_durably(tensors, folder / WEIGHTS, {"format": "pt"} | digests)
    config = config_json(options, adapters, [*modules], names.transposed)
    write_json(folder / CONFIG, config | {"base_model_name_or_path": place.init_from})


def joined(
    layers: Sequence[str], trained: Mapping[str, Tensor], base: Mapping[str, Tensor]
) -> Adapter:
    """One adapter for a matrix that joins our ``layers``, as GPT-2's c_attn joins q, k and v.

    The layers' A are stacked, and their B become the blocks of a block-diagonal B, so that B A has
    the rows of the layers' own products.
    """
    adapted = [layer for layer in layers if f"{layer}.{A}" in trained]
    a = torch.cat([trained[f"{layer}.{A}"] for layer in adapted])
    is_dora = f"{adapted[0]}.{MAGNITUDE}" in trained
    blocks, lengths = [], []
    for layer in layers:
        weight, own = base[f"{layer}.weight"], trained.get(f"{layer}.{MAGNITUDE}")
        blocks.append(trained.get(f"{layer}.{B}", a.new_zeros(len(weight), 0)))
        if is_dora and own is None:  # rows without an adapter keep their length
            own = torch.linalg.vector_norm(weight.float(), dim=1)
        lengths += [] if own is None else [own]
    b: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return Adapter(a, b, torch.cat(lengths) if is_dora else None)


def _stored(adapters: Mapping[str, Adapter]) -> Iterator[tuple[str, Tensor]]:
    for module, adapter in adapters.items():
        yield f"{PREFIX}{module}.{THEIR_A}", adapter.a
        yield f"{PREFIX}{module}.{THEIR_B}", adapter.b
        if adapter.magnitude is not None:
            yield f"{PREFIX}{module}.{THEIR_MAGNITUDE}", adapter.magnitude


def config_json(
    options: FinetuneOptions, adapters: Mapping[str, Adapter], modules: Sequence[str],
    transposed: bool,
) -> Plain:  # fmt: skip
    """``adapter_config.json``. ``modules``: all matrices of the network that may have adapters."""
    ranks = {name: len(one.a) for name, one in adapters.items()}
    joined = {name: rank for name, rank in ranks.items() if rank != options.rank}
    # A joined matrix has a larger rank. With this alpha its scale is the same.
    power = 0.5 if options.rslora else 1.0
    alphas = {name: options.alpha * (rank / options.rank) ** power for name, rank in joined.items()}
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True,
        "r": options.rank, "lora_alpha": _short(options.alpha), "lora_dropout": options.dropout,
        "target_modules": sorted(_shortest([*adapters], modules)), "rank_pattern": joined,
        "alpha_pattern": {name: _short(alpha) for name, alpha in alphas.items()},
        "use_rslora": options.rslora, "use_dora": options.name == "dora",
        "bias": "none", "modules_to_save": None, "fan_in_fan_out": transposed,
    }  # fmt: skip


def _shortest(adapted: Sequence[str], modules: Sequence[str]) -> set[str]:
    """``q_proj`` if all matrices of that name are adapted, otherwise their full names."""
    rest = {name.rpartition(".")[2] for name in modules if name not in adapted}
    last = {name: name.rpartition(".")[2] for name in adapted}
    return {name if short in rest else short for name, short in last.items()}


def _short(number: float) -> float:
    return int(number) if number == int(number) else number
