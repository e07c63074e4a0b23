"""A device is as fast as its sheet says."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from llm.training import throughput
from llm.training.throughput import measured_matmul_flops, peak_flops

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989), ("NVIDIA H20", 148), ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A40", 149.7), ("NVIDIA L4", 121), ("NVIDIA L40S", 362), ("NVIDIA GB200", 2500),
        ("NVIDIA RTX A6000", 154.85), ("NVIDIA GeForce RTX 4090", 165.2),
        # Unknown, and not a namesake:
        ("NVIDIA GeForce GTX 1650", None), ("Tesla T4", None), ("NVIDIA RTX A4000", None),
        ("NVIDIA RTX A3000 Laptop GPU", None), ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA GeForce RTX 3090 Ti", None),
    ],
)  # fmt: skip
def test_a_gpu_has_the_peak_of_its_own_sheet(
    name: str, tflops: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(GPU, "bf16") == (None if tflops is None else pytest.approx(tflops * 1e12))
    assert peak_flops(GPU, "fp32") is None, "the sheets do not give it"


def test_the_peak_of_a_cpu_is_measured_in_float32_only() -> None:
    found = peak_flops(CPU, "fp32")
    assert found is not None and 1e8 < found < 1e14
    assert peak_flops(CPU, "bf16") is None


def test_other_programs_do_not_make_the_cpu_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(0.0, 0.25)  # seconds that this process computed; no other clock
    fake = SimpleNamespace(process_time=lambda: next(ticks))
    monkeypatch.setattr(throughput, "time", fake)
    wanted = 2 * 64**3 / (0.25 / torch.get_num_threads())
    assert measured_matmul_flops(n=64) == pytest.approx(wanted)
