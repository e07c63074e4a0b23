"""The tensors of a folder of PEFT, and a base with them merged in."""

import hashlib
from collections.abc import Mapping

import safetensors
from torch import Tensor

from llm.checkpoint.checkpoint import weight_shapes
from llm.errors import require
from llm.interchange.assemble import Stored, check_stored, read_shards, read_stored
from llm.interchange.peft import (
    BASE_DIGEST,
    BASE_VALUES,
    PREFIX,
    THEIR_A,
    THEIR_B,
    THEIR_MAGNITUDE,
    WEIGHTS,
    PeftSource,
    adapted_modules,
)
from llm.model.lora import merged_weight

A, B, MAGNITUDE = THEIR_A, THEIR_B, THEIR_MAGNITUDE


def merge_adapters(source: PeftSource, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """See :meth:`llm.interchange.peft.PeftSource.merged`. Names and shapes are checked before any
    value is read.
    """
    path, config = source.path / WEIGHTS, source.config
    modules = adapted_modules(source.model, source.names)
    stored = adapters_in(source)
    weights, device = dict(base), base["embed.weight"].device
    for module, parts in stored.items():
        read = {
            kind: read_stored(path, f"{PREFIX}{module}.{kind}", one).float().to(device)
            for kind, one in parts.items()
        }
        row = 0
        for layer in modules[module]:  # of GPT-2's c_attn: rows of q, then of k, then of v
            name = f"{layer}.weight"
            rows = slice(row, row + len(base[name]))
            lengths = read[MAGNITUDE][rows] if config.use_dora else None
            scale, row = config.scale(module), rows.stop
            merged = merged_weight(base[name], read[A], read[B][rows], lengths, scale)
            finite = bool(merged.isfinite().all())
            require(finite, f"{path}: {module} with its adapter has values that are not finite")
            weights[name] = merged
    return weights


def adapters_in(source: PeftSource) -> dict[str, dict[str, Stored]]:
    """The tensors of each matrix that has an adapter: A, B, and the magnitude of DoRA.

    Raises :class:`llm.errors.Refused` naming the first tensor that is missing, unexpected, or of
    another shape or type.
    """
    modules = adapted_modules(source.model, source.names)
    path, config = source.path / WEIGHTS, source.config
    kinds = (A, B, MAGNITUDE) if config.use_dora else (A, B)
    found: dict[str, dict[str, Stored]] = {}
    for name, one in read_shards((path,)).items():
        kind = next((kind for kind in kinds if name.endswith(f".{kind}")), "")
        module = name.removeprefix(PREFIX).removesuffix(f".{kind}")
        is_known = kind and name.startswith(PREFIX) and module in modules
        readable = "only adapters of the matrices of attention and MLP are read"
        require(is_known, f"{path} has a tensor {name:.200}, and {readable}")
        found.setdefault(module, {})[kind] = one
    for module in modules:
        is_target, first = config.targets(module), f"{PREFIX}{module}.{A}"
        require(module in found or not is_target, f"{path} has no tensor {first}")
        is_used = module not in found or is_target is not False
        require(is_used, f"{path} has a tensor {first}, and target_modules does not name it")
    shapes = weight_shapes(source.model)
    for module, parts in found.items():
        matrices = [shapes[f"{layer}.weight"] for layer in modules[module]]
        rows, columns, rank = sum(one[0] for one in matrices), matrices[0][1], config.rank(module)
        needed = {A: (rank, columns), B: (rows, rank), MAGNITUDE: (rows,)}
        for kind in kinds:
            name = f"{PREFIX}{module}.{kind}"
            require(kind in parts, f"{path} has no tensor {name}")
            check_stored(path, name, parts[kind], needed[kind])
    require(found, f"{path} has no adapters")
    return found


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """sha256 of the values in float32: the same for a checkpoint and for its export.

    Biases are left out, because an export to GPT-2 adds zeros for missing ones.
    """
    digest = hashlib.sha256()
    for name in sorted(name for name in weights if name.endswith("weight")):
        digest.update(name.encode())
        digest.update(weights[name].detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def recorded_digests(source: PeftSource) -> dict[str, str]:
    """The digests of the base, if this program wrote the file; otherwise empty."""
    path = source.path / WEIGHTS
    read_shards((path,))  # refuses a damaged file
    with safetensors.safe_open(path, "pt", backend="pread") as file:
        metadata = file.metadata() or {}
    return {key: metadata[key] for key in (BASE_DIGEST, BASE_VALUES) if key in metadata}


def require_base(source: PeftSource, base: Mapping[str, Tensor] | None = None) -> None:
    """Raise :class:`llm.errors.Refused` if the file says that it was trained on other weights.

    ``base``: the weights of ``source.base``, if they have been read.
    """
    recorded = recorded_digests(source)
    if not recorded or recorded.get(BASE_DIGEST) == source.base.digest():
        return
    weights = source.base.weights() if base is None else base
    require(
        recorded.get(BASE_VALUES) == weights_digest(weights),
        f"{source.place} is an adapter for another base: it was trained on other weights than "
        f"{source.base.place} has",
    )
