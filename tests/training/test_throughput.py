"""Work per token is counted as one would by hand; a device is as fast as its sheet says."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llm.model.gpt import GPT
from llm.training import throughput
from llm.training.throughput import flops_per_token, measured_matmul_flops, peak_flops

SHAPE: dict[str, Any] = {
    "n_layer": 3, "n_embed": 32, "n_head": 2, "head_size": 16, "block_size": 8, "vocab_size": 50,
}  # fmt: skip
GPU = torch.device("cuda")


@pytest.mark.parametrize("tied", [True, False])
def test_flops_per_token_of_llama_by_hand(tied: bool) -> None:
    layer = 4 * 32 * 32 + 3 * 32 * 128 + 2 * 32  # q k v o, gate up down, two norms
    weights = 3 * layer + 32 + 50 * 32  # the last norm and the head, but no looking up
    attention = 12 * 3 * 2 * 16 * 8
    assert flops_per_token(GPT(**SHAPE, tie_embeddings=tied)) == 6 * weights + attention


def test_flops_per_token_of_grouped_queries_by_hand() -> None:
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 128 + 2 * 32
    weights = 3 * layer + 32 + 50 * 32
    assert flops_per_token(GPT(**SHAPE, n_kv_head=1)) == 6 * weights + 12 * 3 * 2 * 16 * 8


def test_learned_positions_are_looked_up_and_no_work() -> None:
    rotary, learned = GPT(**SHAPE), GPT(**SHAPE, position="learned")
    assert learned.n_parameters() == rotary.n_parameters() + 8 * 32
    assert flops_per_token(learned) == flops_per_token(rotary)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989), ("NVIDIA H20", 148), ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312), ("NVIDIA A40", 149.7), ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362), ("NVIDIA GB200", 2500), ("NVIDIA B200", 2250),
        ("NVIDIA RTX A6000", 154.85), ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)  # fmt: skip
def test_a_known_gpu_has_the_peak_of_its_own_sheet(
    name: str, tflops: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(GPU, "bf16") == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce GTX 1650", "Tesla T4", "NVIDIA RTX A1000 Laptop GPU", "NVIDIA RTX A4000",
        "NVIDIA RTX A3000 Laptop GPU", "NVIDIA L40", "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
    ],
)  # fmt: skip
def test_an_unknown_gpu_has_no_peak_and_not_that_of_a_namesake(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(GPU, "bf16") is None


def test_there_is_no_peak_for_a_format_that_the_sheets_do_not_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert peak_flops(GPU, "fp32") is None
    assert peak_flops(torch.device("cpu"), "bf16") is None
    assert peak_flops(torch.device("mps"), "fp32") is None


def test_the_peak_of_a_cpu_is_measured() -> None:
    found = peak_flops(torch.device("cpu"), "fp32")
    assert found is not None and 1e8 < found < 1e14
    assert 1e8 < measured_matmul_flops(n=128, repeats=2) < 1e14


def test_what_other_programs_take_meanwhile_makes_no_cpu_slower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = {"own": 0.0, "all": 0.0}

    def own() -> float:
        clock["own"] += 0.25  # seconds of the threads here
        return clock["own"]

    def everything() -> float:
        clock["all"] += 60  # while most of the time others computed
        return clock["all"]

    fake = SimpleNamespace(process_time=own, perf_counter=everything)
    monkeypatch.setattr(throughput, "time", fake)
    wanted = 2 * 64**3 / (0.25 / torch.get_num_threads())
    assert measured_matmul_flops(n=64) == pytest.approx(wanted)
