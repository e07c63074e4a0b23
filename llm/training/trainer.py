"""The training loop. Read :meth:`Trainer.fit`; what it calls is below it, in order."""

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from llm.checkpoint.checkpoint import Checkpoint, CheckpointFolder, load_weights
from llm.data.dataset import BatchSampler, Dataset, evaluation_batches, read_windows
from llm.device import peak_memory_bytes, synchronize, to_device
from llm.errors import Diverged, Interrupted
from llm.evaluation.loss import bits_per_byte, evaluate
from llm.functional.loss import IGNORED
from llm.model.gpt import GPT
from llm.sampling.generate import SamplingOptions, generate
from llm.sampling.looping import measure_repeats
from llm.training.interrupt import StopRequest
from llm.training.logger import Logger, Row
from llm.training.options import CHECKPOINTED, TrainerOptions
from llm.training.precision import Precision
from llm.training.profiling import profiling
from llm.training.schedule import Schedule
from llm.training.state import Progress, outcome, restore_training, training_tensors
from llm.training.throughput import flops_per_token, peak_flops

SAMPLE = SamplingOptions(max_new_tokens=200)
EVAL_BATCH = 8  # sequences; not batch_size, or runs with different ones would not be comparable


class Trainer:
    """Fits ``model`` to ``dataset``. Options are the fields of :class:`TrainerOptions`."""

    def __init__(
        self, *, model: GPT, dataset: Dataset, optimizer: torch.optim.Optimizer, schedule: Schedule,
        precision: Precision, checkpoints: CheckpointFolder, logger: Logger, seed: int,
        pretrained: bool = False,  # the weights come from another run: even step 0 may be the best
        **options: Any,
    ) -> None:  # fmt: skip
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
        folder = self.checkpoints.folder.parent if options.profile else None
        with StopRequest() as stop, profiling(folder, self.device) as step_done:
            if progress.val_loss is None or options.eval_only:
                self.log(self.evaluate())
            self.at_end = options.eval_only or self.is_over()
            while not (self.at_end or stop.received or self.is_out_of_patience()):
                with self.progress.clock("train_seconds"):
                    loss, grad_norm = self.optimizer_step(progress.step + 1)
                    progress.step += 1
                    self.at_end = self.is_over()
                    self.wait_for_device()
                step_done()
                self.logger.tick(progress.step)
                row: Row = {}
                if self.is_due(options.log_interval):
                    row |= self.training_row(loss, grad_norm)
                if self.is_due(options.eval_interval):
                    row |= self.evaluate()
                if self.is_due(options.sample_interval, at_end=False):
                    self.finite(loss, "training loss")
                    row |= self.sample()
                self.log(row)
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
            x, y = to_device((inputs[part], targets[part]), self.device)
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

    def training_row(self, loss: Tensor, grad_norm: Tensor) -> Row:
        """The numbers of this step. Reading them waits for the device: not done at every step."""
        mean_loss, norm = self.finite(loss, "training loss"), float(grad_norm)
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
        with self.progress.clock("eval_seconds"):
            self.model.eval()
            batches = (read_windows(self.dataset.val, s, self.block_size) for s in starts)
            # Not the compiled network: compiling it again for this would take longer than it saves.
            found = evaluate(
                self.model, (to_device(b, self.device) for b in batches), self.precision.autocast
            )
        progress.val_loss = found.loss
        self.finite(found.loss, "validation loss")
        progress.evaluations_since_best += 1
        if progress.best_val_loss is None or found.loss < progress.best_val_loss:
            progress.best_val_loss, progress.best_step = found.loss, progress.step
            progress.evaluations_since_best = 0
            if not options.eval_only and (progress.step > 0 or self.pretrained):
                with self.progress.clock("checkpoint_seconds"):
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

    def sample(self) -> Row:
        """Some text from the model as it is now, drawn without touching the random state.

        Returns how much it repeats itself.
        """
        tokenizer = self.dataset.tokenizer
        prompt = [tokenizer.end_of_text] if tokenizer.end_of_text is not None else [0]
        seed = self.seed + self.progress.step
        with self.progress.clock("eval_seconds"):
            self.model.eval()
            drawn = generate(
                self.model, prompt, SAMPLE, seed, tokenizer.vocab_size, tokenizer.end_of_text
            )
            tokens = [token for token, _ in drawn]
            text = tokenizer.decode(tokens)
        scores = measure_repeats(text).scores
        scores["end_of_text"] = float(len(tokens) < SAMPLE.max_new_tokens)
        self.logger.sample(self.progress.step, tokenizer.decode(prompt), text, scores)
        return {f"sample/{name}": score for name, score in scores.items()}

    def save(self, loss: Tensor | None = None) -> None:
        """Publish a checkpoint to continue from; the last sound one is worth more than NaN."""
        if loss is not None:
            self.finite(loss, "training loss")
        for name, parameter in self.model.named_parameters():
            self.finite(parameter.detach().sum(), f"sum of {name}")
        with self.progress.clock("checkpoint_seconds"):
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
        """What ``summary.json`` says of the run."""
        return outcome(self.progress, self.model, self.dataset.bytes_per_token, self.device)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of :meth:`save`."""
        load_weights(self.model, checkpoint.weights(), str(checkpoint.path))
        restore_training(checkpoint.training(), self.model, self.optimizer, self.device)
        self.precision.scaler.load_state_dict(checkpoint.state["scaler"])
        self.progress = Progress(**checkpoint.state["progress"])
        self.saved_step = checkpoint.step
        self.logged = (self.progress.tokens, self.progress.train_seconds)

    def finite(self, value: Tensor | float, what: str) -> float:
        """The value as a number; :class:`llm.errors.Diverged` if it is none."""
        number = float(value)
        if not math.isfinite(number):
            step = self.progress.step
            raise Diverged(f"the {what} is {number} at step {step}: try a lower optimizer.lr")
        return number
