"""Peak memory of a training step beside nanoGPT's: python -m benchmarks.memory --nanogpt CLONE

Both train the same shape (model=small with GPT-2's 50,257 tokens) on the same random batch of 12
sequences in float32, each with its own network and AdamW, in turn and each time in a fresh process.
Memory is what that process held at most, less what it held before the network was built.
"""

import importlib.util
import statistics
import sys
import time
from pathlib import Path
from typing import Any

# The process that starts the others must stay small: on Linux a child's peak starts at its
# parent's, so nothing here imports torch before `measure`.

BATCH_SIZE, BLOCK_SIZE, VOCAB_SIZE, STEPS = 12, 128, 50_257, 4


def build_ours(overrides: list[str]) -> tuple[Any, Any]:
    """Our network and optimizer, as ``run_train.py model=small`` builds them."""
    from llm.config.build import build
    from llm.config.compose import compose_training
    from llm.config.settings import resolve

    settings = compose_training("model=small", "data=shakespeare", *overrides)
    model_settings = resolve(settings, VOCAB_SIZE, "fp32").model
    model_settings.vocab_size = VOCAB_SIZE  # nanoGPT's would be padded likewise
    model = build(model_settings)
    return model, build(settings.optimizer, model=model)


def build_nanogpt(clone: Path) -> tuple[Any, Any]:
    """The same shape of nanoGPT, with its own optimizer."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", clone / "model.py")
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.GPTConfig(
        n_layer=10, n_head=6, n_embd=768, block_size=BLOCK_SIZE, vocab_size=VOCAB_SIZE,
        dropout=0.0, bias=False,
    )  # fmt: skip
    model = module.GPT(config)
    return model, model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")


def measure(which: str, clone: Path, overrides: list[str]) -> dict[str, float]:
    """Peak bytes above the start and tokens/s of some training steps, in this process."""
    import torch

    import llm.config.build
    import llm.config.compose
    import llm.config.settings
    import llm.model.gpt
    import llm.training.optimizer  # noqa: F401
    from llm.model.device import peak_memory_bytes

    before = peak_memory_bytes(torch.device("cpu"))
    model, optimizer = build_ours(overrides) if which == "ours" else build_nanogpt(clone)
    tokens = torch.randint(VOCAB_SIZE, (BATCH_SIZE, BLOCK_SIZE))
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        found = model(tokens, tokens)
        loss = found[1] if isinstance(found, tuple) else found  # nanoGPT returns its logits too
        del found
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    peak = peak_memory_bytes(torch.device("cpu")) - before
    # The first step makes the optimizer's state.
    return {"bytes": peak, "tokens_per_second": tokens.numel() / statistics.median(seconds[1:])}
