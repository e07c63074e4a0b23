"""Tokens per second, and model FLOPs utilisation: the share of the FLOP/s the device can reach."""

import re
import time

import torch

from llm.functional.linear import product
from llm.memory.weights import flops_per_token
from llm.model.finetune import FinetuneOptions
from llm.model.gpt import GPT
from llm.training.logger import Row

# Dense bf16 / fp16 TFLOP/s from vendors' sheets, as collected by nanochat and torchtitan (figures
# with sparsity are twice as high). The more specific name comes first.
PEAK_TFLOPS = {
    "GB200": 2500.0, "GB300": 2500.0, "B200": 2250.0, "B300": 2250.0, "B100": 1800.0,
    "H200 NVL": 836.0, "H200": 989.0, "H100 NVL": 835.0, "H100 PCIe": 756.0, "H100": 989.0,
    "H20": 148.0,
    "A100": 312.0, "A800": 312.0, "A40": 149.7, "A30": 165.0, "RTX A6000": 154.85,
    "L40S": 362.0, "L4": 121.0, "RTX 5090": 209.5, "RTX 4090": 165.2, "RTX 3090": 71.0,
}  # fmt: skip


class Throughput:
    """Measures the speed of a run from one call of :meth:`measure` to the next."""

    def __init__(self, model: GPT, finetune: FinetuneOptions, precision: str) -> None:
        self.flops_per_token = flops_per_token(model.config, finetune)
        self.device, self.precision = model.embed.weight.device, precision
        self.peak = peak_flops(self.device, precision)  # FLOP/s; None: unknown
        self.start(0, 0.0)

    def start(self, tokens: int, seconds: float) -> None:
        """Measure from these counts on."""
        self.tokens, self.seconds = tokens, seconds

    def measure(self, tokens: int, seconds: float) -> Row:
        """``tokens_per_second`` since the last call, and ``mfu``, the share of the peak; None where
        the peak is unknown.

        A run that exceeds the peak shows that the peak was measured on a busy machine. It is then
        measured again, and ``mfu`` is None while the run still exceeds it.
        """
        rate = (tokens - self.tokens) / max(1e-9, seconds - self.seconds)
        self.start(tokens, seconds)
        achieved = rate * self.flops_per_token
        if self.peak is not None and achieved > self.peak:
            self.peak = peak_flops(self.device, self.precision)
        mfu = None if self.peak is None or achieved > self.peak else achieved / self.peak
        return {"tokens_per_second": rate, "mfu": mfu}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Dense FLOP/s of a known GPU in 16 bits (from the table) or a CPU (measured); else None."""
    if device.type == "cuda" and precision != "fp32":
        name = torch.cuda.get_device_name(device)
        # Whole words only: an RTX A1000 is not an A100, nor an RTX 4090 Laptop GPU an RTX 4090.
        for key, tflops in PEAK_TFLOPS.items():
            if re.search(rf"\b{key}\b(?! (Laptop|Ti|D)\b)", name):
                return 1e12 * tflops
        return None
    return measured_matmul_flops() if device.type == "cpu" and precision == "fp32" else None


def measured_matmul_flops(n: int = 1024, repeats: int = 5) -> float:
    """FLOP/s that the CPU can reach in float32: the fastest of some products of (n, n) matrices.

    Counts CPU seconds, not wall time, so that other programs do not change the result.
    """
    a = torch.ones(n, n)
    fastest = float("inf")
    for _ in range(repeats + 1):  # the first one warms up
        start = time.process_time()  # of all threads together
        product(a, a)
        fastest = min(fastest, time.process_time() - start)
    return 2 * n**3 * torch.get_num_threads() / max(fastest, 1e-9)
