"""Decoding with 8-bit weights, which was tried and not adopted: its speed and its loss.

    python -m benchmarks.int8 [--ckpt outputs/<run> --data data/<name>] [--json FILE]

Every matrix is rounded to 8 bits with one scale per output and multiplied by torch's
``_weight_int8pack_mm`` with bfloat16 activations (docs/design.md says why it was not adopted).
Speed is measured on 124 M random weights; ``--ckpt`` compares the loss of a trained model too.
"""

import argparse
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from benchmarks.decoding import LARGE, ONE, ours, rate, share, size, writing
from benchmarks.rows import Parser, Row, alternate, report, row
from benchmarks.training import validation_loss
from llm.checkpoint.checkpoint import Checkpoint
from llm.checkpoint.find import find_checkpoint
from llm.data.dataset import Dataset
from llm.device import tune_allocator
from llm.errors import Refused
from llm.model.gpt import GPT
from llm.model.layers import Attention


class Linear8(nn.Module):
    """A linear layer whose weights are whole numbers from -127 to 127 times a scale per output."""

    def __init__(self, layers: Sequence[nn.Linear | nn.Embedding]) -> None:
        super().__init__()
        weight = torch.cat([layer.weight for layer in layers]).detach()
        scale = (weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127).bfloat16()
        self.whole = (weight / scale.float()).round().clamp(-127, 127).to(torch.int8)
        self.scale = scale[:, 0]
        biases = [getattr(layer, "bias", None) for layer in layers]
        self.bias = None if biases[0] is None else torch.cat([b for b in biases if b is not None])

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features) in float32."""
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        out = torch._weight_int8pack_mm(rows, self.whole, self.scale).float()
        out = out.view(*x.shape[:-1], -1)
        return out if self.bias is None else out.add_(self.bias)


class Heads8:
    """Queries, keys and values of an attention layer by one product."""

    def __init__(self, attention: Attention) -> None:
        parts = [attention.q, attention.k, attention.v]
        self.qkv, self.head_size = Linear8(parts), attention.head_size
        self.heads = [part.out_features // self.head_size for part in parts]

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        """(B, T, C) -> (B, T, heads, head_size), three times."""
        return self.qkv(x).unflatten(-1, (-1, self.head_size)).split(self.heads, dim=2)


def in_8_bits(model: GPT) -> GPT:
    """A copy of ``model`` with all matrices in 8 bits, except the embedding."""
    found = copy.deepcopy(model)
    head = Linear8([found.embed if found.head is None else found.head])
    for block in found.blocks:
        block.attention.project = Heads8(block.attention)
        block.attention.o = Linear8([block.attention.o])
        for name, layer in list(block.mlp.named_children()):
            setattr(block.mlp, name, Linear8([layer]))
    found.logits = lambda hidden: head(hidden).float()
    return found


def measure(typed: argparse.Namespace) -> Iterator[Row]:
    """Speed at 124 M, and the loss of a trained model if there is ``--ckpt``."""
    full, mine = ours(LARGE, ONE)
    model = in_8_bits(full)
    eight, n = writing(model, ONE), typed.tokens
    for warm_up in (eight, mine):
        warm_up(8)
    pairs = alternate(lambda _: rate(eight, n), lambda _: rate(mine, n), typed.repeats)
    yield row("int8_124M", f"{size(full, 1, n)}; in float32", pairs, share)
    if typed.ckpt:
        checkpoint = Checkpoint.open(find_checkpoint("--ckpt", typed.ckpt))
        dataset = Dataset.open(typed.data)
        trained = checkpoint.load_model(torch.device("cpu"))
        block_size = trained.config.block_size
        losses = [
            validation_loss(SimpleNamespace(logits=model), dataset.val, block_size)
            for model in (in_8_bits(trained), trained)
        ]
        what = f"validation loss of {typed.ckpt}; in float32"
        pair = (losses[0], losses[1])
        yield row("int8_loss", what, [pair], lambda eight, full: eight / full)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print a table."""
    parser = Parser("Decoding with 8-bit weights")
    parser.add_argument("--tokens", type=int, default=256, help="new tokens (256)")
    parser.add_argument("--ckpt", help="a run folder or a checkpoint: its loss is compared, too")
    parser.add_argument("--data", type=Path, help="the prepared folder of its data")
    typed = parser.parse_args(arguments)
    if bool(typed.ckpt) != bool(typed.data):
        parser.error("--ckpt and --data go together")
    tune_allocator(LARGE["n_embed"])
    try:
        report(measure(typed), typed.json)
    except Refused as refusal:
        parser.error(str(refusal))


if __name__ == "__main__":
    main()
