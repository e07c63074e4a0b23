"""A trainer of a tiny network, and a logger that keeps everything in lists."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.checkpoint.checkpoint import Checkpoint
from llm.checkpoint.folder import CheckpointFolder, newest_valid
from llm.data.dataset import Dataset
from llm.errors import Interrupted
from llm.model.gpt import GPT
from llm.training.logger import T
from llm.training.optimizer import adamw
from llm.training.precision import Precision, to_precision
from llm.training.schedule import Cosine, Schedule
from llm.training.trainer import Row, Trainer

MODEL: dict[str, Any] = {"n_layer": 1, "n_embed": 32, "head_size": 16, "block_size": 16}
OPTIONS: dict[str, Any] = {
    "max_steps": 8, "batch_size": 4, "eval_interval": 4, "eval_batches": 2, "log_interval": 2,
    "checkpoint_interval": 4, "device": "cpu",
}  # fmt: skip


class Notebook:
    """A logger that keeps everything in lists; ``on_tick`` is called after each step."""

    run_id = "abcd1234"

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.rows: list[Row] = []
        self.samples: list[tuple[int, str, str, dict[str, float]]] = []
        self.warnings: list[str] = []
        self.done: list[str] = []
        self.on_tick: Callable[[int], object] = lambda step: None
        self.ends: list[tuple[int, str]] = []
        self.seconds: list[float] = []  # of training, while a budget in minutes decides the length

    def tick(self, step: int) -> None:
        self.steps.append(step)
        self.on_tick(step)

    def timed(self, seconds: float, budget: float) -> None:
        self.seconds.append(seconds)

    def ends_at(self, max_steps: int, message: str = "") -> None:
        self.ends.append((max_steps, message))

    def log(self, row: Row) -> None:
        self.rows.append(row)

    def sample(self, step: int, prompt: str, text: str, scores: dict[str, float]) -> None:
        self.samples.append((step, prompt, text, scores))

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        self.done.append(what)
        yield

    def each(self, what: str, items: Iterable[T], count: int = 0) -> Iterator[T]:
        for done, item in enumerate(items, 1):
            self.done.append(f"{what} {done}/{count}")
            yield item

    def warn(self, message: str, kind: str = "") -> None:
        self.warnings.append(message)

    def sync(self) -> None:
        pass

    def rewind(self, step: int) -> None:
        self.rows = [row for row in self.rows if (row["step"] or 0) <= step]
        self.samples = [sample for sample in self.samples if sample[0] <= step]

    def column(self, key: str) -> dict[int, float]:
        """The values of ``key`` by step."""
        return {int(row["step"] or 0): row[key] or 0.0 for row in self.rows if key in row}


class HandBuilt(Trainer):
    """A trainer whose logger is a :class:`Notebook`."""

    logger: Notebook

    @property
    def folder(self) -> Path:
        """Where its checkpoints are."""
        return self.checkpoints.folder

    @property
    def newest(self) -> Checkpoint:
        """The checkpoint that a resume continues from."""
        found, _ = newest_valid(self.folder.parent)
        assert found is not None
        return found

    def everything(self) -> dict[str, torch.Tensor]:
        """Weights, optimizer state and random state."""
        return copied(self.model.state_dict() | self.state_dict()["tensors"])

    def stop_after(self, step: int) -> None:
        """Train until a signal comes after ``step``."""
        self.logger.on_tick = lambda now: signalled() if now == step else None
        with pytest.raises(Interrupted, match=f"at step {step}: the checkpoint is saved"):
            self.fit()


MakeTrainer = Callable[..., HandBuilt]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The last bits of a sum depend on the number of threads that share it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_trainer(dataset: Dataset, tmp_path: Path) -> MakeTrainer:
    """One layer of width 32 over the play; ``weights`` seeds them, options are the trainer's."""

    def inner(
        run: str = "run", *, precision: str = "fp32", lr: float = 1e-2, weights: int = 0,
        schedule: Schedule | None = None, dropout: float = 0.0, optimizer: Any = adamw,
        **options: Any,
    ) -> HandBuilt:  # fmt: skip
        torch.manual_seed(weights)
        (tmp_path / run).mkdir(exist_ok=True)
        kind = Precision(precision, torch.device("cpu"))
        model = GPT(**MODEL, dropout=dropout, vocab_size=dataset.tokenizer.vocab_size)
        to_precision(model, kind.weights)
        return HandBuilt(
            model=model,
            dataset=dataset,
            optimizer=optimizer(model, lr=lr, weight_decay=0.1, betas=[0.9, 0.95]),
            schedule=schedule or Cosine("cosine", warmup_steps=2),
            precision=kind,
            checkpoints=CheckpointFolder(tmp_path / run, 2, model.config, dataset.tokenizer, {}),
            logger=Notebook(),
            seed=7,
            **OPTIONS | options,
        )

    return inner


def signalled() -> None:
    """Send this process a signal, as a terminal or a scheduler does."""
    os.kill(os.getpid(), signal.SIGTERM)


def copied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors as they are now."""
    return {name: tensor.clone() for name, tensor in state.items()}


def assert_same_bits(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Equal in every bit, name by name."""
    assert set(found) == set(wanted)
    different = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    assert not different
