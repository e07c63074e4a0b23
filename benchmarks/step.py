"""Training speed of the presets on this machine: python -m benchmarks.step [--json FILE]

For each preset, the share of the measured matrix-product peak that full training steps reach
(forward, backward, clipping, AdamW; float32, eager, random tokens). Peak and steps are measured in
turn, several times, because other work on the machine disturbs both.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from llm.config.build import build
from llm.config.compose import compose_training
from llm.config.settings import resolve
from llm.training.throughput import flops_per_token, measured_matmul_flops

CASES = [  # preset, data option (for its vocabulary), sequences per step
    ("nano", "shakespeare_char", 8),
    ("tiny", "shakespeare_char", 8),
    ("small", "shakespeare", 4),
]


def training_step(preset: str, data: str, batch_size: int) -> tuple[Callable[[], None], int, float]:
    """A function that makes one step, the tokens in it, and its FLOP per token."""
    settings = compose_training(f"model={preset}", f"data={data}")
    settings = resolve(settings, settings.data.declared_vocab_size() or 0, "fp32")
    model = build(settings.model)
    optimizer = build(settings.optimizer, model=model)
    size = (batch_size, settings.model.block_size)
    tokens = torch.randint(settings.model.vocab_size or 0, size)

    def step() -> None:
        model(tokens, tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, tokens.numel(), flops_per_token(model)


def seconds(step: Callable[[], None], at_least: float = 1.5) -> float:
    """Median time of a step, over as many as fill ``at_least`` seconds."""
    step()
    times: list[float] = []
    while sum(times) < at_least or len(times) < 3:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(preset: str, data: str, batch_size: int, repeats: int) -> dict[str, object]:
    """One row of the benchmark; ``ratio`` is FLOP/s reached over FLOP/s of a matrix product."""
    step, tokens, flops = training_step(preset, data, batch_size)
    pairs = [(measured_matmul_flops(), tokens / seconds(step)) for _ in range(repeats)]
    shares = sorted(rate * flops / peak for peak, rate in pairs)
    return {
        "id": f"peak_share_{preset}",
        "what": f"model={preset}, {batch_size} sequences: tokens/s; FLOP/s of a matrix product",
        "ours": statistics.median(rate for _, rate in pairs),
        "other": statistics.median(peak for peak, _ in pairs),
        "ratio": statistics.median(shares),
        "low": shares[0],
        "high": shares[-1],
    }


def main() -> None:
    """Measure all presets and print a table."""
    parser = argparse.ArgumentParser(description="Training speed of the presets on this machine")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--repeats", type=int, default=3, help="measurements per preset")
    arguments = parser.parse_args()
    rows = []
    print(f"{'preset':<8}{'tokens/s':>12}{'share of peak':>16}{'(spread)':>18}")
    for preset, data, batch_size in CASES:
        row = measure(preset, data, batch_size, arguments.repeats)
        rows.append(row)
        spread = f"({row['low']:.0%} to {row['high']:.0%})"
        print(f"{preset:<8}{row['ours']:>12,.0f}{row['ratio']:>16.0%}{spread:>18}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
