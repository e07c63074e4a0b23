"""How much of a network is trained: plain numbers and names, without torch."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any

from llm.errors import Refused, require
from llm.options import option

METHODS = ("none", "full", "head", "lora", "dora", "qlora")
ADAPTERS = ("lora", "dora", "qlora")  # methods that train A and B, and freeze all other weights
ADAPTER_WEIGHTS = ("lora_A", "lora_B", "magnitude")
LARGEST_ALPHA = 1_000_000  # larger ones may overflow float32
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")  # the matrices of a layer


def has_part(name: str, parts: Iterable[str]) -> bool:
    """Whether the name of a weight has one of ``parts``, whole names between dots: ``blocks.1`` is
    a part of ``blocks.1.mlp.up.weight``, and not of ``blocks.10.mlp.up.weight``. In a part ``*``
    stands for any text, ``?`` for one character, and ``[13]`` for 1 or 3.
    """
    return any(fnmatchcase(f".{name}.", f"*.{part.strip('.')}.*") for part in parts)


@dataclass
class FinetuneOptions:
    """``finetune``. ``none`` and ``full`` train all weights. ``head`` trains the last norm and the
    head, which is the embedding if they are tied. ``lora`` trains two thin matrices A and B beside
    each target matrix W.

    LoRA (Hu et al. 2021, arXiv:2106.09685): the output is x W^T + s (x A^T) B^T with
    s = alpha / rank, or alpha / sqrt(rank) with ``rslora`` (arXiv:2312.03732). ``dora`` also trains
    the length of each row of W + s B A (arXiv:2402.09353). ``qlora`` stores W in ``bits`` bits
    (arXiv:2305.14314).
    """

    name: str = option("none", one_of=METHODS)
    rank: int = option(4, at_least=1, at_most=1024)
    alpha: float = option(8.0, more_than=0, at_most=LARGEST_ALPHA)
    rslora: bool = False
    dropout: float = option(0.0, at_least=0, less_than=1)  # of the input of A
    targets: Any = field(default_factory=lambda: [*TARGETS])  # parts of names of matrices
    bits: int | None = option(None, one_of=(4, 8))  # of qlora's frozen matrices; None: 4
    freeze: Any = field(default_factory=list)  # parts of names of frozen weights

    @property
    def has_adapters(self) -> bool:
        """Whether A and B are trained."""
        return self.name in ADAPTERS

    @property
    def is_partial(self) -> bool:
        """Whether some weights are frozen, so that a checkpoint needs its base."""
        return self.name in (*ADAPTERS, "head") or (self.name == "full" and bool(self.frozen))

    @property
    def scale(self) -> float:
        """s in the output x W^T + s (x A^T) B^T."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    @property
    def stored_bits(self) -> int | None:
        """Bits per number of the target matrices W; None: they are not quantised."""
        return self.bits or 4 if self.name == "qlora" else None

    @property
    def target_names(self) -> tuple[str, ...]:
        """``targets`` as a tuple."""
        return tuple(map(str, self.targets if isinstance(self.targets, list) else [self.targets]))

    @property
    def frozen(self) -> tuple[str, ...]:
        """``freeze`` as a tuple."""
        return tuple(map(str, self.freeze if isinstance(self.freeze, list) else [self.freeze]))

    @property
    def treats_layers_alike(self) -> bool:
        """Whether no part of a name chooses among the layers."""
        return not any(re.search(r"[\d*?[]", part) for part in (*self.target_names, *self.frozen))

    def adapts(self, matrix: str) -> bool:
        """Whether ``matrix`` (such as ``blocks.0.attention.q``) gets an A and a B."""
        is_target = self.has_adapters and matrix.rpartition(".")[2] in TARGETS
        is_target = is_target and has_part(matrix, self.target_names)
        return is_target and not has_part(f"{matrix}.weight", self.frozen)

    def trains(self, name: str, is_tied: bool) -> bool:
        """Whether the weight ``name`` is trained. ``is_tied``: the embedding is also the head."""
        if self.has_adapters:
            return name.rpartition(".")[2] in ADAPTER_WEIGHTS
        head = ("norm.weight", "norm.bias", "embed.weight" if is_tied else "head.weight")
        in_method = self.name != "head" or name in head
        return in_method and not has_part(name, self.frozen)

    def cross_check(self) -> None:
        """Raise :class:`llm.errors.Refused` without targets, and for frozen weights without
        fine-tuning.
        """
        require(
            self.name != "none" or not self.frozen,
            f"finetune.freeze={self.freeze} has no effect with finetune=none: add finetune=full",
            key="finetune.freeze", suggestions=["finetune=full"],
        )  # fmt: skip
        known = ", ".join(TARGETS)
        require(self.target_names, f"finetune.targets is empty: take some of {known}")

    def check_names(self, names: Collection[str]) -> None:
        """Raise :class:`llm.errors.Refused` for a part of ``freeze`` or ``targets`` that occurs in
        none of the ``names`` of the network's weights. It may lack some of :data:`TARGETS`.
        """
        for part in self.frozen:
            require(
                any(has_part(name, [part]) for name in names),
                f"finetune.freeze={part} must be a part of a weight's name, such as embed or "
                "blocks.0",
            )
        matrices = [name.removesuffix(".weight") for name in names]
        matrices = [name for name in matrices if name.rpartition(".")[2] in TARGETS]
        for part in self.target_names if self.has_adapters else ():
            require(
                part in TARGETS or any(has_part(name, [part]) for name in matrices),
                f"finetune.targets={part} must be some of {', '.join(TARGETS)}, or a part of a "
                "matrix's name, such as blocks.0.mlp",
            )

    def check_typed(self, typed: Collection[str]) -> None:
        """Raise :class:`llm.errors.Refused` for a key among ``typed`` that has no effect, such as
        ``finetune.rank`` without adapters.
        """
        methods = {"name": METHODS, "freeze": METHODS[1:], "bits": ("qlora",)}
        for one in fields(self):
            key, used_by = f"finetune.{one.name}", methods.get(one.name, ADAPTERS)
            if key in typed and self.name not in used_by:
                raise Refused(
                    f"{key} has no effect with finetune={self.name}: add finetune={used_by[0]}",
                    key=key, suggestions=[f"finetune={used_by[0]}"],
                )  # fmt: skip
