"""Train only a part of a network: adapters beside its matrices, the head, or all but a few weights.

An adapter's parameters belong to the layer that they change, ``blocks.0.attention.q.lora_A``, so
the weights of the base keep their names.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.errors import require
from llm.functional.low_rank import adapted, dense, narrowed
from llm.model.finetune import ADAPTER_WEIGHTS, FinetuneOptions
from llm.model.gpt import GPT
from llm.model.layers import Linear
from llm.model.quantised import Quantised, rounded

A, B, MAGNITUDE = ADAPTER_WEIGHTS
TINY = 1e-24  # a row of zeros stays zero instead of becoming NaN


class Adapted(Linear):
    """A linear layer with frozen weight W and bias, and a trained A (rank, in) and B (out, rank).

    Computes x W^T + s (x A^T) B^T, and DoRA scales each output by magnitude / |row of W + s B A|.
    """

    weight: Any  # a Parameter, or Quantised

    def __init__(self, layer: nn.Linear, options: FinetuneOptions) -> None:
        nn.Module.__init__(self)  # the layer's own weight and bias are used, not new ones
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        is_dense = not isinstance(
            layer.weight, Quantised
        )  # already quantised by llm.interchange.source.fill
        if options.stored_bits and is_dense and not layer.weight.is_meta:
            del self.weight
            self.weight = Quantised(layer.weight, options.stored_bits)
        self.scale, self.dropout = options.scale, options.dropout
        self.train(layer.training)
        like = torch.empty(0, dtype=layer.weight.dtype, device=layer.weight.device)
        self.lora_A = nn.Parameter(like.new_empty(options.rank, self.in_features))
        self.lora_B = nn.Parameter(like.new_zeros(self.out_features, options.rank))
        self.magnitude: nn.Parameter | None = None
        if options.name == "dora":
            self.magnitude = nn.Parameter(like.new_empty(self.out_features))
        if not like.is_meta:  # on meta there are only shapes
            self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """With B = 0 the output equals the base's. A is drawn as in peft."""
        # torch's generator for the CPU: the same numbers on every device.
        drawn = torch.empty(self.lora_A.shape)
        nn.init.kaiming_uniform_(drawn, a=5**0.5)  # uniform within 1 / sqrt(in)
        self.lora_A.copy_(drawn)
        if self.magnitude is not None:
            self.magnitude.copy_(self._norms())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        shape, x = x.shape[:-1], x.flatten(0, -2)
        if self.dropout and self.training:
            low = F.linear(F.dropout(x, self.dropout), self.lora_A)
        else:
            low, x = narrowed(x, self.lora_A)
        bias = self.bias if self.magnitude is None else None
        out = adapted(x, self.weight, low * self.scale, self.lora_B, bias).view(*shape, -1)
        if self.magnitude is None:
            return out
        out = out * (self.magnitude / self._norms()).to(out.dtype)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    @torch.no_grad()
    def _norms(self) -> Tensor:
        """The length of each row of W + s B A, (out,). Without a gradient (arXiv:2402.09353, 4.3).

        |w + s b A|^2 = |w|^2 + 2 s b (w A^T) + s^2 b (A A^T) b needs no matrix as large as W.
        """
        with torch.autocast(self.weight.device.type, enabled=False):
            W, a, b = (
                dense(self.weight).float(),
                self.lora_A.float(),
                self.scale * self.lora_B.float(),
            )
            squares: Tensor = torch.linalg.vector_norm(W, dim=1).square()
            squares += (b * torch.addmm(2 * (W @ a.t()), b, a @ a.t())).sum(1)
            return squares.clamp(min=TINY).sqrt().to(self.lora_A.dtype)

    @torch.no_grad()
    def merged(self) -> Linear:
        """A plain layer that computes the same."""
        plain = Linear(1, 1, bias=False, device="meta")
        plain.in_features, plain.out_features = self.in_features, self.out_features
        weight = merged_weight(
            dense(self.weight), self.lora_A, self.lora_B, self.magnitude, self.scale
        )
        plain.weight, plain.bias = nn.Parameter(weight.to(self.weight.dtype)), self.bias
        return plain.train(self.training)


@torch.no_grad()
def merged_weight(
    weight: Tensor, a: Tensor, b: Tensor, magnitude: Tensor | None, scale: float
) -> Tensor:
    """W + s B A (out, in) in float32, its rows scaled to ``magnitude`` if there is one."""
    merged = torch.addmm(weight.float(), b.float(), a.float(), alpha=scale)
    if magnitude is not None:
        squares = torch.linalg.vector_norm(merged, dim=1, keepdim=True).square()
        merged *= magnitude.float()[:, None] / squares.clamp(min=TINY).sqrt()
    return merged


def adapt(model: GPT, options: FinetuneOptions) -> GPT:
    """Prepare ``model`` in place for what ``finetune`` trains, and return it.

    Adds the adapters, whose A is drawn from torch's generator, and freezes all other weights that
    are not trained. Raises :class:`llm.errors.Refused` if nothing would be trained, and for a part
    in ``finetune.freeze`` or ``finetune.targets`` that no name has.
    """
    options.check_names([name for name, _ in model.named_parameters()])
    for name, layer in list(model.named_modules()):
        if isinstance(layer, Linear) and options.adapts(name):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, Adapted(layer, options))
    is_tied = model.head is None
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(options.trains(name, is_tied))
    targets = ", ".join(options.target_names)
    reason = "finetune.freeze: every weight is frozen"
    if options.has_adapters:
        reason = f"finetune.targets={targets}: the network has no such matrix, or all are frozen"
    require(trained_weights(model), reason)
    return model


def merge(model: GPT) -> GPT:
    """Replace each adapted layer of ``model`` by a plain one that computes the same; returns it.

    All weights can be trained again.
    """
    for name, layer in list(model.named_modules()):
        if isinstance(layer, Adapted):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, layer.merged())
    return model.requires_grad_(True)


def merged_weights(
    base: Mapping[str, Tensor], trained: Mapping[str, Tensor], options: FinetuneOptions
) -> dict[str, Tensor]:
    """The base's weights with the trained ones merged in.

    The tensors of ``base`` stay as they are; an unchanged one is the same object.
    """
    weights = dict(base)
    for name, tensor in trained.items():
        layer, _, parameter = name.rpartition(".")
        if parameter == A:
            matrix = f"{layer}.weight"
            weights[matrix] = merged_weight(
                rounded(base[matrix], options.stored_bits), tensor, trained[f"{layer}.{B}"],
                trained.get(f"{layer}.{MAGNITUDE}"), options.scale,
            )  # fmt: skip
        elif parameter not in (B, MAGNITUDE):
            weights[name] = tensor
    return weights


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights that are trained, by name: for most networks the whole ``state_dict()``."""
    named = model.named_parameters()
    return {name: weight.detach() for name, weight in named if weight.requires_grad}


def adapted_layers(model: nn.Module) -> Iterator[Any]:
    """The layers that have an adapter."""
    return (layer for layer in model.modules() if isinstance(layer, Adapted))
