"""A frozen matrix in 8 or 4 bits per number, in plain torch: it works on a CPU and on a GPU.

8 bits: int8, with one scale per row. 4 bits: NF4 in blocks of 64 numbers (Dettmers et al. 2023,
arXiv:2305.14314, section 3 and appendix E), equal to bitsandbytes' nf4 without its second
quantisation of the scales.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.functional.sizes import BLOCK_4BIT
from llm.model.finetune import ADAPTER_WEIGHTS

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


class Quantised(nn.Module):
    """``weight`` (out, in) in ``bits`` bits per number, and its scales in float32.

    ``dtype``: of the adapters and of the merged layer; None: that of ``weight``.

    The tensors are not part of state_dict(): a run quantises its base again when it is resumed.
    """

    packed: Tensor
    scales: Tensor
    pairs: Tensor

    def __init__(self, weight: Tensor, bits: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.bits, self.shape, self.dtype = bits, weight.shape, dtype or weight.dtype
        with torch.no_grad():
            packed, scales = (_to_8_bits if bits == 8 else _to_4_bits)(weight.detach().float())
        table = torch.tensor(NF4, device=weight.device)
        # The two numbers of each byte
        pairs = torch.stack([table.repeat_interleave(16), table.repeat(16)], dim=1)
        for name, tensor in {"packed": packed, "scales": scales, "pairs": pairs}.items():
            self.register_buffer(name, tensor, persistent=False)

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.packed.device

    @torch.no_grad()
    def dense(self) -> Tensor:
        """The matrix (out, in) in float32, rounded to the numbers that its bits can represent."""
        if self.bits == 8:
            return self.packed * self.scales
        blocks = F.embedding(self.packed.int(), self.pairs).view(-1, BLOCK_4BIT)
        numbers = blocks.mul_(self.scales).view(-1)
        return numbers[: self.shape.numel()].view(self.shape)


def n_weights(model: nn.Module) -> int:
    """Number of weights of a network, each counted once: without its adapters, and its matrices in
    8 or 4 bits by their shape, so that it is the same however the network is fine-tuned.
    """
    named = model.named_parameters()
    usual = (p.numel() for name, p in named if name.rpartition(".")[2] not in ADAPTER_WEIGHTS)
    few_bits = (one.shape.numel() for one in model.modules() if isinstance(one, Quantised))
    return sum(usual) + sum(few_bits)


def rounded(weight: Tensor, bits: int | None) -> Tensor:
    """``weight`` quantised and made dense again; unchanged if ``bits`` is None."""
    return weight if bits is None else Quantised(weight, bits).dense()


def _to_8_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 (out, in), and the scale of each row (out, 1)."""
    scales = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127
    return (weight / scales).round_().to(torch.int8), scales


def _to_4_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two numbers per byte, and the largest magnitude of each block (blocks, 1)."""
    flat = weight.flatten()
    blocks = F.pad(flat, (0, -len(flat) % BLOCK_4BIT)).view(-1, BLOCK_4BIT)
    scales = blocks.abs().amax(dim=1, keepdim=True)
    table = torch.tensor(NF4, device=weight.device)
    between = (table[1:] + table[:-1]) / 2
    nearest = torch.bucketize(blocks / scales.clamp(min=1e-30), between, out_int32=True)
    nearest = nearest.to(torch.uint8).view(-1, 2)
    return nearest[:, 0] << 4 | nearest[:, 1], scales
