"""Fine-tuning with LoRA: python -m benchmarks.lora [--only ID[,ID]] [--json FILE] [--steps N]

``lora_speed`` and ``lora_memory`` train adapters of rank 4 beside all matrices of a network with
SmolLM2's shape and random weights, on the same 4 x 256 tokens. 39% of these are targets, as in the
rows of ``data=shakespeare_chat``; in ``lora_speed_all`` all are. ``lora_heap`` compares our step
with tensors from the heap with one whose tensors are mapped one by one, as in training from scratch
(``tune_allocator`` in llm/device.py). Each side is a fresh process with 2 threads, and both take
turns. Speeds are of the median step. The other rows train and run SmolLM2
itself, which is downloaded once; ``lora_smollm2`` is a run of run_train.py. ``decode_smollm2``
compares the decoding of transformers with ours on the same random weights, in one process, since
other work on the machine slows down both.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.rows import Pair, Parser, Row, alternate, report, row
from llm.config.cli import others_want_the_cores

ROOT = Path(__file__).resolve().parent.parent
IDS = (
    "lora_speed", "lora_memory", "lora_speed_all", "lora_heap", "decode_smollm2",
    "load_smollm2", "lora_smollm2",
)  # fmt: skip
STEPS, TOKENS = 5, 4 * 256
SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
}  # fmt: skip


def batch(share: float) -> tuple[Any, Any, Any]:
    """Tokens (4, 256), the next token of each, and which of these are targets: a ``share``."""
    import torch

    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(SHAPE["vocab_size"], (4, 257), generator=generator)
    counts = torch.rand(4, 256, generator=generator) < share
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), counts


def our_loss(folder: Path, share: float, from_heap: bool = True) -> tuple[Any, Callable[[], Any]]:
    """Our network with adapters, and its loss."""
    import torch

    from llm.device import tune_allocator
    from llm.interchange.source import load_model, open_source
    from llm.model.finetune import FinetuneOptions
    from llm.model.lora import adapt

    tune_allocator(int(str(SHAPE["hidden_size"])), adapters=from_heap)
    model = load_model(open_source("init_from", str(folder)), torch.device("cpu"))
    adapt(model, FinetuneOptions("lora"))
    x, y, counts = batch(share)
    targets = y.masked_fill(~counts, -1)
    return model.train(), lambda: model(x, targets)


def their_loss(folder: Path, share: float) -> tuple[Any, Callable[[], Any]]:
    """Transformers' network with peft's adapters, and its loss."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    from llm.model.finetune import TARGETS, FinetuneOptions

    targets, ours = [f"{name}_proj" for name in TARGETS], FinetuneOptions("lora")
    config = LoraConfig(
        r=ours.rank, lora_alpha=ours.alpha, target_modules=targets, task_type="CAUSAL_LM"
    )
    model = get_peft_model(LlamaForCausalLM.from_pretrained(folder), config)
    x, y, counts = batch(share)
    ignored = torch.full((4, 1), -100)  # its loss shifts the labels by one
    labels = torch.cat([ignored, y.masked_fill(~counts, -100)], dim=1)[:, :-1]
    return model.train(), lambda: model(input_ids=x, labels=labels).loss


def train(side: str, folder: Path, share: float) -> None:
    """Train; prints tokens per second and the process's peak memory in bytes."""
    import resource

    import torch

    torch.set_num_threads(2)
    losses = {"ours": our_loss, "mapped": partial(our_loss, from_heap=False), "theirs": their_loss}
    model, loss_of = losses[side](folder, share)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    times = []
    for _ in range(1 + STEPS):
        start = time.perf_counter()
        loss_of().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    speed = TOKENS / statistics.median(times[1:])
    print(speed, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def fresh(side: str, folder: Path, share: float) -> Pair:
    """Tokens per second and peak bytes of one side, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.lora", "--side", side, str(folder), f"{share}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    speed, peak = done.stdout.split()[-2:]
    return float(speed), float(peak)


def random_llama(folder: Path) -> None:
    """Write a network of SmolLM2's shape."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder)


# Names of two rows, the side that ours is compared with, and the share of targets
COMPARED = (
    ("lora_speed", "lora_memory", "theirs", 0.39),
    ("lora_speed_all", "lora_memory_all", "theirs", 1.0),
    ("lora_heap", "lora_heap_memory", "mapped", 0.39),
)
OTHERS = {"theirs": "peft + transformers", "mapped": "ours with mapped tensors"}


def compared(only: list[str], repeats: int) -> Iterator[Row]:
    """Speed and memory of the same steps."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random_llama(folder)
        for speed, memory, other, share in COMPARED:
            if not {speed, memory} & set(only):
                continue
            pairs = alternate(
                lambda _, share=share: fresh("ours", folder, share),
                lambda _, other=other, share=share: fresh(other, folder, share),
                repeats,
            )
            what = f"tokens/s, {share:.0%} are targets; {OTHERS[other]}; ratio: speedup"
            speeds = [(ours[0], theirs[0]) for ours, theirs in pairs]
            yield row(speed, what, speeds, lambda ours, theirs: ours / theirs)
            what = f"peak bytes of the process; {OTHERS[other]}; ratio: the first / the second"
            peaks = [(ours[1], theirs[1]) for ours, theirs in pairs]
            yield row(memory, what, peaks, lambda ours, theirs: ours / theirs)


def decodes(repeats: int, new_tokens: int = 32) -> Row:
    """Greedy decoding of one text in float32 with caches; several short turns per repeat."""
    import torch
    from transformers import LlamaForCausalLM

    from benchmarks.decoding import rate, share, writing
    from llm.device import tune_allocator
    from llm.interchange.source import load_model, open_source
    from llm.sampling.layout import lay_out_for_decoding

    tune_allocator(int(str(SHAPE["hidden_size"])))
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        random_llama(Path(folder))
        model = load_model(open_source("ckpt", folder), torch.device("cpu"))
        other = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    lay_out_for_decoding(model)
    prompt = torch.arange(32)[None]

    def theirs(new_tokens: int) -> None:
        other.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, use_cache=True,
            pad_token_id=0, min_new_tokens=new_tokens, max_new_tokens=new_tokens,
        )  # fmt: skip

    ours = writing(model, prompt.tolist())
    for warm_up in (ours, theirs):
        warm_up(4)
    pairs = alternate(
        lambda _: rate(ours, new_tokens), lambda _: rate(theirs, new_tokens), 4 * repeats
    )
    return row("decode_smollm2", "tokens/s of decoding; transformers; speedup", pairs, share)


def typed(command: str, *words: str, cwd: Path) -> str:
    """The standard output of one of our commands."""
    arguments = [sys.executable, str(ROOT / f"{command}.py"), *words]
    done = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def loads(repeats: int) -> Row:
    """Seconds from the command to the first token."""
    pairs = []
    with tempfile.TemporaryDirectory() as name:
        words = ("ckpt=smollm2", "prompt=Once", "max_new_tokens=1", "stream=false")
        typed("run_sample", *words, cwd=Path(name))  # downloads and unpacks
        for _ in range(repeats):
            start = time.perf_counter()
            typed("run_sample", *words, cwd=Path(name))
            pairs.append((time.perf_counter() - start, 8.0))
    what = "seconds from the command to a token; the goal; ratio: the first"
    return row("load_smollm2", what, pairs, lambda ours, _: ours)


def finetunes(steps: int) -> Iterator[Row]:
    """Steps of 4 x 256 tokens on dialogues of Shakespeare: loss, memory and bytes of adapters."""
    with tempfile.TemporaryDirectory() as name:
        typed(
            "run_train", "init_from=smollm2", "finetune=lora", "data=shakespeare_chat",
            "model.block_size=256", "trainer.batch_size=4", f"trainer.max_steps={steps}",
            f"trainer.eval_interval={steps}", "trainer.checkpoint_interval=null",
            "trainer.device=cpu", "logger=none", "run.name=lora", cwd=Path(name),
        )  # fmt: skip
        run = Path(name) / "outputs/lora"
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        text = (run / "metrics.jsonl").read_text(encoding="utf-8")
        losses = [r["val/loss"] for r in map(json.loads, text.splitlines()) if "val/loss" in r]
        size = (run / "checkpoints/last/model.safetensors").stat().st_size
    targets, what = summary["evaluation"]["tokens"], f"held-out loss after {steps} steps; before"
    training, whole = (summary[f"{part}_seconds"] / 60 for part in ("train", "wall"))
    what += f" ({targets} targets; {training:.1f} minutes of training, {whole:.1f} in all)"
    yield row("lora_smollm2", what, [(losses[-1], losses[0])], lambda ours, other: ours / other)
    peak, planned = summary["peak_memory_bytes"], summary["predicted_memory_bytes"]
    what = "peak bytes; predicted; ratio: the first / the second"
    yield row("lora_smollm2_memory", what, [(peak, planned)], lambda ours, other: ours / other)
    what = "bytes of the adapters; the goal; ratio: the first / the second"
    yield row("lora_smollm2_bytes", what, [(size, 5e6)], lambda ours, other: ours / other)


def rows(options: Namespace) -> Iterator[Row]:
    """All rows that were asked for."""
    if any(one.startswith(("lora_speed", "lora_memory", "lora_heap")) for one in options.only):
        yield from compared(options.only, options.repeats)
    if "decode_smollm2" in options.only:
        yield decodes(options.repeats)
    if "load_smollm2" in options.only:
        yield loads(options.repeats)
    if "lora_smollm2" in options.only:
        yield from finetunes(options.steps)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print a table."""
    parser = Parser("Fine-tuning with LoRA", IDS)
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="of lora_smollm2")
    parser.add_argument("--side", nargs=3, help="ours, mapped or theirs; weights; targets")
    options = parser.parse_args(arguments)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if others_want_the_cores():  # as our commands do, before torch is imported
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if options.side:
        train(options.side[0], Path(options.side[1]), float(options.side[2]))
        return
    report(rows(options), options.json)


if __name__ == "__main__":
    main()
