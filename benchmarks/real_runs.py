"""The memory of real runs beside its prediction: rows ``oom_deaths``, ``rss_*``, ``rss_smollm2_*``
and ``compile_headroom_*`` of :mod:`benchmarks.memory`.

Each run is a ``run_train.py`` of a few steps in a process and a folder of its own. Nothing here
imports torch at the top (:mod:`benchmarks.memory` says why).
"""

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rows import Row, row

ROOT = Path(__file__).resolve().parent.parent
MIB = 2**20
SHORT = [
    "trainer.max_steps=3", "trainer.eval_batches=1", "trainer.log_interval=1",
    "trainer.device=cpu",
]  # fmt: skip
# In the output of a process that ran out of memory outside torch, with any exit status.
LACK = ("llocate memory", "out of memory", "MemoryError", "bad_alloc", "start new thread")
OUT_OF_MEMORY = 4  # exit status


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int  # exit status; negative: killed by that signal
    output: str
    peak: int  # bytes of private memory, sampled

    @property
    def of_memory(self) -> bool:
        """Whether the process ran out of memory."""
        says_so = self.status != 0 and any(words in self.output for words in LACK)
        return self.status == OUT_OF_MEMORY or self.status < 0 or says_so


def started(
    arguments: list[str], cwd: Path, limit: int | None = None, settings: Mapping[str, str] = {}
) -> Ended:
    """Run Python with ``arguments`` until it ends.

    ``limit``: bytes of private memory that it may have (RLIMIT_DATA). ``settings``: further
    environment variables.
    """

    def limited() -> None:
        assert limit is not None
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"} | settings
    peak = 0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=cwd, env=environment, stdout=output,
            stderr=subprocess.STDOUT, preexec_fn=limited if limit else None,
        )  # fmt: skip
        try:
            while process.poll() is None:
                peak = max(peak, private_memory(process.pid))
                time.sleep(0.01)
        finally:
            process.kill()  # after an interruption
            process.wait()
        output.seek(0)
        return Ended(process.returncode, output.read(), peak)


def private_memory(pid: int) -> int:
    """Present bytes that count for RLIMIT_DATA (Linux); 0 if the process has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData")), 0)


def text_data(folder: Path) -> list[str]:
    """Overrides for a text of bytes (257 tokens); the first run prepares it in ``folder``."""
    text = folder / "text.txt"
    text.write_text("So it goes on, and on.\n" * 20_000, encoding="utf-8")
    return ["data=text", "data.tokenizer=byte", f"data.path={text}", f"data.dir={folder / 'data'}"]


def trained(
    overrides: list[str], cwd: Path, limit: int | None = None, settings: Mapping[str, str] = {}
) -> tuple[Ended, dict[str, float]]:
    """How a run ended, and its ``summary.json``.

    Raises ``RuntimeError`` if the run failed for another reason than its memory ``limit``.
    """
    folder = cwd / "run"
    arguments = [str(ROOT / "run_train.py"), *overrides, f"run.dir={folder}"]
    ended = started(arguments, cwd, limit, settings)
    if ended.status and not (limit and ended.of_memory):
        raise RuntimeError(f"{' '.join(arguments)} ended with {ended.status}: {ended.output}")
    path = folder / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    shutil.rmtree(folder, ignore_errors=True)  # else many checkpoints fill the disk
    return ended, summary


# Deaths

COUNT = 30
# Few tokens: a CPU without bfloat16 instructions takes seconds for each.
JOB = {
    "model.n_layer": (1, 2, 3, 4),
    "model.n_embed": (512, 192, 640, 768, 384),
    "model.head_size": (64, 128),
    "model.block_size": (32, 64, 256),
    "model.vocab_size": (257, 8192, 20_000),
    "model.loss": ("auto", "full", "chunked"),
    "optimizer": ("adamw", "muon"),
    "optimizer.state_bits": (32, 32, 8),
    "precision": ("fp32", "fp32", "bf16", "bf16_weights"),
    "trainer.batch_size": (1, 2, 4),
    "trainer.max_steps": (2,),
    "trainer.micro_batch_size": ("null", "null", 1),
    "trainer.grad_clip": (1.0, 0.0),
    "trainer.activation_checkpointing": ("none", "full", "every_2"),
    "trainer.step_in_backward": ("false", "false", "true"),
    "memory.fit": ("off", "check"),
    "logger": ("none", "wandb"),
}
BASELINE = (
    "import torch; x = torch.ones(256, 256); (x @ x).sum().item(); "
    "print(next(line for line in open('/proc/self/status') if line.startswith('VmData')))"
)


def jobs() -> list[list[str]]:
    """Overrides of ``COUNT`` runs; all values of a key are used equally often."""
    generator = random.Random(2024)
    columns: dict[str, list[object]] = {}
    for key, values in JOB.items():
        columns[key] = [values[n % len(values)] for n in range(COUNT)]
        generator.shuffle(columns[key])
    found = []
    for n in range(COUNT):
        job = {key: column[n] for key, column in columns.items()}
        if job["trainer.micro_batch_size"] != "null":
            job["trainer.step_in_backward"] = "false"  # it needs the batch in one piece
        found.append([f"{key}={value}" for key, value in job.items()])
    return found


def deaths(count: int = COUNT) -> Row:
    """How many of ``count`` runs run out of memory if each is limited to its prediction, plus the
    memory of a process with torch before its first tensor.
    """
    from llm.config.inside import compose_training
    from llm.memory.predict import predict
    from llm.planning.reserve import measured_reserve
    from llm.planning.setup import setup_of
    from llm.settings.custom import uses_wandb

    died, most = 0, 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = text_data(folder)
        before = int(started(["-c", BASELINE], folder).output.split()[1]) * 1024
        trained([*data, *SHORT, "model.n_layer=1"], folder)  # prepares the data
        for number, job in enumerate(jobs()[:count], 1):
            overrides = [*data, *SHORT, *job]
            settings = compose_training(*overrides)
            reserve = measured_reserve("cpu", 0, uses_wandb(settings.logger))
            predicted = predict(setup_of(settings, "cpu"), reserve).total
            ended, _ = trained(overrides, folder, before + predicted)
            died += ended.of_memory
            fate = "finished"
            if ended.of_memory:  # measure the memory it needs
                fate = f"ran out of memory ({ended.output.strip().splitlines()[-1:]})"
                ended, _ = trained(overrides, folder)
            used = (ended.peak - before) / predicted
            most = max(most, used)
            print(
                f"job {number} {fate}: {used:.1%} of {predicted // MIB} MiB used: {' '.join(job)}",
                file=sys.stderr,
            )
    what = (
        f"of {count} runs limited to their prediction (plus {before // MIB} MiB of a process with"
        f" torch) ran out of memory; at most {most:.1%} of it was used"
    )
    return row("oom_deaths", what, [(died, count)], lambda ours, other: ours / other)


# Memory of a whole process

MODELS = {
    "nano": ["model=nano"],
    "narrow_in_backward": [
        "model=nano",
        "model.n_embed=192",
        "model.block_size=256",
        "trainer.step_in_backward=true",
    ],
    "tiny": ["model=tiny"],
    "tiny_fit": ["model=tiny", "memory.fit=check"],
    "small": ["model=small", "model.vocab_size=50304"],
    "small_fit": ["model=small", "model.n_layer=4", "memory.fit=check"],
}
TUNED = {method: [f"finetune={method}"] for method in ("lora", "dora", "qlora", "head", "full")} | {
    "lora_bf16": ["finetune=lora", "precision=bf16"],
    "qlora_full": ["finetune=qlora", "trainer.activation_checkpointing=full"],
}
WIDER = ["model=nano", "model.n_embed=512", "model.n_layer=4", "model.head_size=64"]


def resident(repeats: int) -> Iterator[Row]:
    """The peak of whole processes beside the prediction."""
    with tempfile.TemporaryDirectory() as name:
        data = text_data(Path(name))
        for model, own in MODELS.items():
            for optimizer in ("adamw", "muon"):
                overrides = [*data, *SHORT, *own, f"optimizer={optimizer}"]
                found = [trained(overrides, Path(name))[1] for _ in range(repeats)]
                pairs = [(s["peak_memory_bytes"], s["predicted_memory_bytes"]) for s in found]
                what = f"peak bytes of a run, {' '.join(own)} optimizer={optimizer}; predicted"
                yield row(f"rss_{model}_{optimizer}", what, pairs, lambda ours, other: ours / other)


def finetuned(repeats: int) -> Iterator[Row]:
    """The peak of whole processes that fine-tune SmolLM2, which is downloaded once."""
    data = ["data=shakespeare_chat", "model.block_size=256", "trainer.batch_size=4"]
    with tempfile.TemporaryDirectory() as name:
        for id, own in TUNED.items():
            overrides = ["init_from=smollm2", *own, *data, *SHORT]
            found = [trained(overrides, Path(name))[1] for _ in range(repeats)]
            pairs = [(s["peak_memory_bytes"], s["predicted_memory_bytes"]) for s in found]
            what = f"peak bytes of a run, SmolLM2 {' '.join(own)}; predicted"
            yield row(f"rss_smollm2_{id}", what, pairs, lambda ours, other: ours / other)


def compiled(repeats: int) -> Iterator[Row]:
    """Bytes that torch.compile adds to the peak of a process with an empty cache."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = text_data(folder)
        for id, own in (("nano", ["model=nano"]), ("wider", WIDER)):
            pairs = []
            for number in range(repeats):
                overrides = [*data, *SHORT, *own]
                cache = {"TORCHINDUCTOR_CACHE_DIR": str(folder / f"{id}-{number}")}
                _, plain = trained(overrides, folder)
                _, fast = trained([*overrides, "trainer.compile=true"], folder, None, cache)
                pairs.append((fast["peak_memory_bytes"], plain["peak_memory_bytes"]))
            what = f"peak bytes compiled; not ({' '.join(own)}); ratio: MiB between them"
            yield row(f"compile_headroom_{id}", what, pairs, lambda a, b: (a - b) / MIB)
