"""The training loop. Read :meth:`Trainer.fit`; what it calls is below it, in order."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import Tensor

from llm.checkpoint.checkpoint import Checkpoint, CheckpointFolder, load_weights
from llm.data.dataset import Batch, BatchSampler, Dataset, evaluation_batches, read_windows
from llm.device import peak_memory_bytes, synchronize
from llm.errors import Diverged, Interrupted
from llm.evaluation.loss import bits_per_byte, evaluate
from llm.model.gpt import GPT
from llm.model.loss import IGNORED
from llm.sampling.generate import SamplingOptions, generate
from llm.training.interrupt import StopRequest
from llm.training.options import CHECKPOINTED, TrainerOptions
from llm.training.precision import Precision
from llm.training.schedule import Schedule
from llm.training.state import Progress, restore_training, training_tensors
from llm.training.throughput import flops_per_token, peak_flops

SAMPLE = SamplingOptions(max_new_tokens=200)
EVAL_BATCH = 8  # sequences; not batch_size, or runs with different ones would not be comparable
Row = dict[str, float | int | None]


class Logger(Protocol):
    """Where a run's numbers and samples go."""

    run_id: str

    def tick(self, step: int) -> None: ...
    def log(self, row: Row) -> None: ...
    def sample(self, step: int, prompt: str, text: str) -> None: ...


class Trainer:
    """Fits ``model`` to ``dataset``. Options are the fields of :class:`TrainerOptions`."""

    def __init__(
        self,
        *,
        model: GPT,
        dataset: Dataset,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        precision: Precision,
        checkpoints: CheckpointFolder,
        logger: Logger,
        seed: int,
        pretrained: bool = False,  # the weights come from another run: even step 0 may be the best
        **options: Any,
    ) -> None:
        self.options = TrainerOptions(**options)
        self.model, self.dataset, self.seed = model, dataset, seed
        self.optimizer, self.schedule, self.precision = optimizer, schedule, precision
        self.checkpoints, self.logger, self.pretrained = checkpoints, logger, pretrained
        self.device = model.embed.weight.device
        self.block_size, self.batch_size = model.config.block_size, self.options.batch_size
        self.sampler = BatchSampler(
            dataset.train, self.block_size, self.batch_size, seed, self.options.overfit_batches
        )
        model.checkpoint_every = CHECKPOINTED[self.options.activation_checkpointing]
        # Compiled, it has the same weights and fused kernels.
        self.network = torch.compile(model) if self.options.compile else model
        self.progress = Progress()
        self.at_end = False  # whether this step is the last one
        self.saved_step: int | None = None
        self.flops_per_token = flops_per_token(model)
        self.peak_flops = peak_flops(self.device, precision.name)
        self.logged = (0, 0.0)  # tokens and train_seconds at the last logged step

    def fit(self) -> Progress:
        """Train until ``max_steps``, ``max_minutes`` or ``patience``; returns the counters reached.

        Raises :class:`llm.errors.Diverged` when the loss is no longer finite and
        :class:`llm.errors.Interrupted` after a signal, with a checkpoint to continue from saved.
        """
        options, progress = self.options, self.progress
        with StopRequest() as stop:
            if progress.val_loss is None or options.eval_only:
                self.log(self.evaluate())
            self.at_end = options.eval_only or self.is_over()
            while not (self.at_end or stop.received or self.is_out_of_patience()):
                with self.clock("train_seconds"):
                    loss, grad_norm = self.optimizer_step(progress.step + 1)
                    progress.step += 1
                    self.at_end = self.is_over()
                    self.wait_for_device()
                self.logger.tick(progress.step)
                row: Row = {}
                if self.is_due(options.log_interval):
                    row |= self.training_row(loss, grad_norm)
                if self.is_due(options.eval_interval):
                    row |= self.evaluate()
                self.log(row)
                if self.is_due(options.sample_interval, at_end=False):
                    self.sample()
                if self.is_due(options.checkpoint_interval):
                    self.save(loss)
            if stop.received and options.eval_only:
                raise Interrupted(f"{stop.received.name} while evaluating")
            if self.saved_step != progress.step and not options.eval_only:
                self.save()  # patience or a signal ended it
            if stop.received and not self.at_end:
                name = stop.received.name
                raise Interrupted(f"{name} at step {progress.step}: the checkpoint is saved")
        return progress

    def is_due(self, interval: int | None, at_end: bool = True) -> bool:
        """Whether what happens every ``interval`` steps is due now; at the last step all is."""
        due = interval is not None and self.progress.step % interval == 0
        return due or (at_end and self.at_end)

    def is_over(self) -> bool:
        """Whether the steps or the minutes are used up."""
        minutes = self.options.max_minutes
        out_of_time = minutes is not None and self.progress.seconds >= 60 * minutes
        return out_of_time or self.progress.step >= self.options.max_steps

    def is_out_of_patience(self) -> bool:
        """Whether the validation loss has not improved for too many evaluations."""
        patience = self.options.patience
        return patience is not None and self.progress.evaluations_since_best >= patience

    def wait_for_device(self) -> None:
        """Let what a GPU has queued finish, where the time is read next; not after every step."""
        options = self.options
        intervals = (options.log_interval, options.eval_interval, options.checkpoint_interval)
        if any(self.is_due(interval) for interval in intervals):
            synchronize(self.device)

    def optimizer_step(self, step: int) -> tuple[Tensor, Tensor]:
        """One update from one batch, in micro-batches: its mean loss and gradient norm."""
        inputs, targets = self.sampler.batch(step)
        n_targets = int((targets != IGNORED).sum())
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * self.schedule(step, self.options.max_steps)
        self.model.train()
        mean_loss = torch.zeros((), device=self.device)
        for start in range(0, self.batch_size, self.options.micro_batch):
            part = slice(start, start + self.options.micro_batch)
            x, y = self.to_device((inputs[part], targets[part]))
            with self.precision.autocast:
                # A sum over the micro-batch by the count of the whole batch: every token weighs the
                # same, however the batch is cut (transformers PR 34191 tells what goes wrong
                # otherwise).
                loss = self.network(x, y, reduction="sum") / n_targets
            self.precision.scaler.scale(loss).backward()
            mean_loss += loss.detach()
        self.precision.scaler.unscale_(self.optimizer)
        grad_norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.options.grad_clip or math.inf
        )
        self.precision.scaler.step(self.optimizer)  # not where float16 gradients overflowed
        self.precision.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.tokens += n_targets
        return mean_loss, grad_norm

    def to_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Both arrays as tensors on the device; pinned for CUDA, so that copying overlaps work."""
        x, y = (torch.from_numpy(array) for array in batch)
        if self.device.type == "cuda":
            x, y = x.pin_memory(), y.pin_memory()
        overlap = self.device.type == "cuda"  # elsewhere it could be read before it has arrived
        return x.to(self.device, non_blocking=overlap), y.to(self.device, non_blocking=overlap)

    def training_row(self, loss: Tensor, grad_norm: Tensor) -> Row:
        """The numbers of this step. Reading them waits for the device: not done at every step."""
        mean_loss, norm = self.finite(loss), float(grad_norm)
        tokens, seconds = self.progress.tokens, self.progress.train_seconds
        rate = (tokens - self.logged[0]) / max(1e-9, seconds - self.logged[1])
        self.logged = (tokens, seconds)
        return {
            "train/loss": mean_loss,
            "lr": self.optimizer.param_groups[0]["lr"],
            "grad_norm": norm if math.isfinite(norm) else None,  # None: the scaler left it out
            "tokens_per_second": rate,
            "mfu": rate * self.flops_per_token / self.peak_flops if self.peak_flops else None,
            "peak_memory_bytes": peak_memory_bytes(self.device),
        }

    def evaluate(self) -> Row:
        """Loss on a fixed set of validation windows; the lowest so far keeps the weights."""
        options, progress = self.options, self.progress
        sequences = None if options.eval_batches is None else options.eval_batches * EVAL_BATCH
        starts = evaluation_batches(
            self.dataset.val, self.block_size, options.micro_batch, sequences
        )
        with self.clock("eval_seconds"):
            self.model.eval()
            batches = (
                self.to_device(read_windows(self.dataset.val, s, self.block_size)) for s in starts
            )
            found = evaluate(self.network, batches, self.precision.autocast)
        progress.val_loss = found.loss
        if not math.isfinite(found.loss):
            raise Diverged(
                f"the validation loss is {found.loss} at step {progress.step}: "
                "try a lower optimizer.lr"
            )
        progress.evaluations_since_best += 1
        if progress.best_val_loss is None or found.loss < progress.best_val_loss:
            progress.best_val_loss, progress.best_step = found.loss, progress.step
            progress.evaluations_since_best = 0
            if not options.eval_only and (progress.step > 0 or self.pretrained):
                with self.clock("checkpoint_seconds"):
                    self.checkpoints.save_best(progress.step, self.model.state_dict(), self.state())
        return {
            "val/loss": found.loss,
            "val/perplexity": found.perplexity,
            "val/bits_per_byte": bits_per_byte(found.loss, self.dataset.bytes_per_token),
        }

    def log(self, row: Row) -> None:
        """Hand a row to the logger, with the axes it is plotted over."""
        if row:
            self.logger.log({"step": self.progress.step, "tokens": self.progress.tokens} | row)

    def sample(self) -> None:
        """Some text from the model as it is now, drawn without touching the random state."""
        tokenizer = self.dataset.tokenizer
        prompt = [tokenizer.end_of_text] if tokenizer.end_of_text is not None else [0]
        seed = self.seed + self.progress.step
        with self.clock("eval_seconds"):
            self.model.eval()
            drawn = generate(
                self.model, prompt, SAMPLE, seed, tokenizer.vocab_size, tokenizer.end_of_text
            )
            text = tokenizer.decode([token for token, _ in drawn])
        self.logger.sample(self.progress.step, tokenizer.decode(prompt), text)

    def save(self, loss: Tensor | None = None) -> None:
        """Publish a checkpoint to continue from; the last sound one is worth more than NaN."""
        if loss is not None:
            self.finite(loss)
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise Diverged(
                f"the weights are no longer finite at step {self.progress.step}: "
                "try a lower optimizer.lr"
            )
        with self.clock("checkpoint_seconds"):
            tensors = training_tensors(self.model, self.optimizer, self.device)
            self.checkpoints.save(
                self.progress.step, self.model.state_dict(), tensors, self.state()
            )
        self.saved_step = self.progress.step

    def state(self) -> dict[str, Any]:
        """The plain values of a checkpoint."""
        scaler = self.precision.scaler.state_dict()
        return {"progress": asdict(self.progress), "scaler": scaler, "run_id": self.logger.run_id}

    def outcome(self) -> dict[str, Any]:
        """What ``summary.json`` says of the run; ``bits_per_byte`` is that of the best loss."""
        progress, best = self.progress, self.progress.best_val_loss
        return {
            "step": progress.step,
            "tokens": progress.tokens,
            "parameters": self.model.n_parameters(),
            "best_val_loss": best,
            "val_loss": progress.val_loss,
            "bits_per_byte": None
            if best is None
            else bits_per_byte(best, self.dataset.bytes_per_token),
            "tokens_per_second": progress.tokens / (progress.train_seconds or math.inf),
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "train_seconds": progress.train_seconds,
        }

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of :meth:`save`."""
        load_weights(self.model, checkpoint.weights(), str(checkpoint.path))
        restore_training(checkpoint.training(), self.model, self.optimizer, self.device)
        self.precision.scaler.load_state_dict(checkpoint.state["scaler"])
        self.progress = Progress(**checkpoint.state["progress"])
        self.saved_step = checkpoint.step
        self.logged = (self.progress.tokens, self.progress.train_seconds)

    def finite(self, loss: Tensor) -> float:
        """The loss as a number; :class:`llm.errors.Diverged` if it is none."""
        value = float(loss)
        if not math.isfinite(value):
            raise Diverged(
                f"the training loss is {value} at step {self.progress.step}: "
                "try a lower optimizer.lr"
            )
        return value

    @contextlib.contextmanager
    def clock(self, counter: str) -> Iterator[None]:
        """Add the seconds spent inside to a counter of the progress."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = getattr(self.progress, counter) + time.perf_counter() - start
            setattr(self.progress, counter, spent)
