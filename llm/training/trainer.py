"""The training loop. Read :meth:`Trainer.fit`; what it calls is below it, in order."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llm import signals
from llm.checkpoint.checkpoint import Checkpoint
from llm.checkpoint.folder import CheckpointFolder
from llm.data.dataset import Dataset
from llm.device import peak_memory_bytes, to_device
from llm.errors import Diverged, Interrupted
from llm.evaluation.loss import evaluate
from llm.functional.targets import IGNORED
from llm.model.config import CHECKPOINTED
from llm.model.gpt import GPT
from llm.sampling.generate import generate
from llm.sampling.looping import measure_repeats
from llm.sampling.options import SamplingOptions
from llm.training.guard import Guard
from llm.training.logger import Logger, Row
from llm.training.optimizer import Optimizer
from llm.training.options import TrainerOptions
from llm.training.precision import Precision
from llm.training.profiling import profiling
from llm.training.random_state import random_tensors, restore_random
from llm.training.resume import plain_state, resume, roll_back
from llm.training.schedule import Schedule
from llm.training.state import Progress, outcome, training_bytes, training_tensors, why_ended
from llm.training.throughput import Utilisation
from llm.training.update import Update, UpdateInBackward

SAMPLE = SamplingOptions(max_new_tokens=200)
EVAL_BATCH = 8  # sequences; not batch_size, or runs with different ones would not be comparable


class Trainer:
    """Fits ``model`` to ``dataset``. Options are the fields of :class:`TrainerOptions`."""

    def __init__(
        self, *, model: GPT, dataset: Dataset, optimizer: Optimizer, schedule: Schedule,
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
        self.sampler = dataset.sampler(
            self.block_size, self.batch_size, seed, self.options.overfit_batches
        )
        model.checkpoint_every = CHECKPOINTED[self.options.activation_checkpointing]
        # Compiled, it has the same weights and fused kernels.
        self.network = torch.compile(model) if self.options.compile else model
        kind = UpdateInBackward if self.options.step_in_backward else Update
        self.update = kind(model, optimizer, precision, self.options.grad_clip)
        self.progress = Progress()
        self.guard = Guard(
            self.options.max_skipped, self.options.skip_spikes, logger.warn,
            scaled=precision.is_scaled,
        )  # fmt: skip
        self.unreported: Row | None = {}  # numbers of this step that are not logged yet
        self.stop = signals.listener  # has it received one?
        self.at_end = False  # whether this step is the last one
        self.saved_step: int | None = None
        self.utilisation = Utilisation(model, self.device, precision.name)
        self.logged = (0, 0.0)  # tokens and train_seconds at the last logged step

    def fit(self) -> Progress:
        """Train until ``max_steps``, ``max_minutes`` or ``patience``; returns the counters reached.

        Raises :class:`llm.errors.Diverged` when too many steps are not finite, after going back
        ``rollbacks`` times, and :class:`llm.errors.Interrupted` after a signal, with a checkpoint
        to continue from saved.
        """
        self.compile_ahead()
        with signals.remembered(), profiling(self) as step_done:
            while True:
                try:
                    self.train(step_done)
                    return self.progress
                except Diverged as end:
                    roll_back(self, end)

    def train(self, step_done: Callable[[], object]) -> None:
        """The loop, from where the counters stand to the end."""
        options, progress, stop = self.options, self.progress, self.stop
        self.at_end = options.eval_only or self.is_over()
        if self.unreported is not None:  # step 0, or where a signal came in between
            self.report(self.unreported)
            self.saved_step = None
        while not (self.at_end or stop.received or progress.is_out_of_patience(options)):
            with progress.clock("train_seconds"):
                loss, grad_norm = self.optimizer_step(progress.step + 1)
                progress.step += 1
                self.at_end = self.is_over()
            step_done()
            self.logger.tick(progress.step)
            logged = self.is_due(options.log_interval)
            self.report(self.training_row(loss, grad_norm) if logged else {})
            if self.is_due(options.checkpoint_interval) and not self.guard.in_a_row:
                self.save()  # not between failing steps: a run goes back to before them
        if self.saved_step != progress.step and not options.eval_only:
            self.save()  # patience or a signal ended it
        if stop.received and (self.unreported is not None or not self.at_end):
            saved = "nothing is written" if options.eval_only else "the checkpoint is saved"
            raise Interrupted(f"{stop.received.name} at step {progress.step}: {saved}")

    def report(self, row: Row) -> None:
        """Evaluate and write a sample where they are due, and log all numbers of this step.

        When a signal comes meanwhile, the rest is put off: the checkpoint holds the row, and the
        run that goes on from it finishes it first.
        """
        options, step = self.options, self.progress.step
        self.unreported = row
        try:
            if self.is_due(options.eval_interval) and "val/loss" not in row:
                row |= self.evaluate()
            trained = step > 0 and not options.eval_only
            if trained and self.is_due(options.sample_interval, at_end=False):
                row |= self.sample()
        except signals.Signalled:
            return
        self.unreported = None
        if row:
            self.logger.log({"step": step, "tokens": self.progress.tokens} | row)

    def compile_ahead(self) -> None:
        """Compile the network, which may take minutes, while a signal still ends it at once.

        One batch goes through it; what that changes is put back.
        """
        if self.options.compile and not self.options.eval_only:
            before = random_tensors(self.device)
            self.model.train()
            inputs, targets = self.sampler.batch(1)
            size = self.options.micro_batch
            x, y = to_device((inputs[:size], targets[:size]), self.device)
            with self.logger.doing("compiling"):
                with self.precision.autocast:
                    loss = self.network(x, y, reduction="sum")
                loss.backward()
            self.optimizer.zero_grad()
            restore_random(before, self.device)

    def is_due(self, interval: int | None, at_end: bool = True) -> bool:
        """Whether what happens every ``interval`` steps is due now; at the last step all is."""
        due = interval is not None and self.progress.step % interval == 0
        return due or (at_end and self.at_end)

    def is_over(self) -> bool:
        """Whether the steps or the minutes are used up."""
        out_of_steps = self.progress.step >= self.options.max_steps
        return out_of_steps or self.progress.is_out_of_time(self.options)

    def optimizer_step(self, step: int) -> tuple[float, float]:
        """One update from one batch, in micro-batches: its mean loss and gradient norm.

        Reading these waits for the device at every step, because NaN must not reach the weights.
        """
        inputs, targets = self.sampler.batch(step)
        n_targets = int((targets != IGNORED).sum())
        rate = self.schedule(step, self.options.max_steps) * 0.5**self.progress.rollbacks
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * rate
        self.model.train()
        mean_loss = torch.zeros((), device=self.device)
        for start in range(0, self.batch_size, self.options.micro_batch):
            part = slice(start, start + self.options.micro_batch)
            x, y = to_device((inputs[part], targets[part]), self.device)
            with self.precision.autocast:
                # A sum over the micro-batch by the count of the whole batch: every token weighs the
                # same, however the batch is cut (transformers PR 34191 tells what goes wrong
                # otherwise).
                part_loss = self.network(x, y, reduction="sum") / n_targets
            mean_loss += part_loss.detach()
            self.update.backward(part_loss)
            del part_loss
        loss, grad_norm = torch.stack((mean_loss, self.update.norm())).tolist()
        admitted = self.guard.admits(step, loss, grad_norm, self.sampler.positions(step))
        if admitted:
            self.update.step()
        self.update.drop()
        self.progress.skipped += not admitted
        if self.precision.is_scaled:
            self.precision.loss_scale.update(step, math.isfinite(grad_norm))
        self.progress.tokens += n_targets
        return loss, grad_norm

    def training_row(self, loss: float, grad_norm: float) -> Row:
        """The numbers of this step; None in place of NaN and infinity."""
        tokens, seconds = self.progress.tokens, self.progress.train_seconds
        rate = (tokens - self.logged[0]) / max(1e-9, seconds - self.logged[1])
        self.logged = (tokens, seconds)
        return {
            "train/loss": loss if math.isfinite(loss) else None,
            "lr": self.optimizer.param_groups[0]["lr"],
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
            "tokens_per_second": rate,
            "mfu": self.utilisation(rate),
            "peak_memory_bytes": peak_memory_bytes(self.device),
        } | ({"skipped_steps": self.progress.skipped} if self.progress.skipped else {})

    def evaluate(self) -> Row:
        """Loss on a fixed set of validation windows; the lowest so far keeps the weights."""
        options, progress = self.options, self.progress
        sequences = None if options.eval_batches is None else options.eval_batches * EVAL_BATCH
        count, batches = self.dataset.validation(self.block_size, options.micro_batch, sequences)
        with self.progress.clock("eval_seconds"):
            self.model.eval()
            reading = self.logger.each("evaluating", self.stop.each(batches), count)
            moved = (to_device(batch, self.device) for batch in reading)
            token_bytes = torch.from_numpy(self.dataset.tokenizer.byte_lengths).to(self.device)
            # Not the compiled network: compiling it again for this would take longer than it saves.
            found = evaluate(self.model, moved, self.precision.autocast, token_bytes)
        progress.val_loss = self.finite(found.loss, "validation loss")
        progress.evaluations_since_best += 1
        if progress.best_val_loss is None or found.loss < progress.best_val_loss:
            progress.best_val_loss, progress.best_step = found.loss, progress.step
            progress.best_bits_per_byte = found.bits_per_byte
            progress.evaluations_since_best = 0
            if not options.eval_only and (progress.step > 0 or self.pretrained):
                with self.progress.clock("checkpoint_seconds"):
                    self.checkpoints.save_best(
                        progress.step, self.model.state_dict(), plain_state(self)
                    )
        return {
            "val/loss": found.loss,
            "val/perplexity": found.perplexity,
            "val/bits_per_byte": found.bits_per_byte,
        }

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
            tokens = [token for token, _ in self.logger.each("sampling", self.stop.each(drawn))]
            text = tokenizer.decode(tokens)
        scores = measure_repeats(text).scores
        scores["end_of_text"] = float(len(tokens) < SAMPLE.max_new_tokens)
        self.logger.sample(self.progress.step, tokenizer.decode(prompt), text, scores)
        return {f"sample/{name}": score for name, score in scores.items()}

    def save(self) -> None:
        """Publish a checkpoint to continue from; the last sound one is worth more than NaN."""
        for name, parameter in self.model.named_parameters():
            self.finite(parameter.detach().sum(), f"sum of {name}")
        with self.progress.clock("checkpoint_seconds"), self.logger.doing("saving"):
            self.logger.sync()
            tensors = training_tensors(self.model, self.optimizer, self.device)
            self.checkpoints.save(
                self.progress.step, self.model.state_dict(), tensors, plain_state(self)
            )
        self.saved_step = self.progress.step

    def outcome(self) -> dict[str, Any]:
        """What ``summary.json`` says of the run."""
        reason = why_ended(self.progress, self.options)
        return outcome(self.progress, self.model, self.device) | {"reason": reason}

    def check_room(self) -> None:
        """Raise :class:`llm.errors.DiskError` unless the disk has room for the checkpoints."""
        if not self.options.eval_only:
            weights = sum(tensor.nbytes for tensor in self.model.state_dict().values())
            self.checkpoints.check_room(weights, training_bytes(self.optimizer))

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of :meth:`save`; else :class:`llm.errors.Refused`."""
        resume(self, checkpoint)

    def finite(self, value: Tensor | float, what: str) -> float:
        """The value as a number; :class:`llm.errors.Diverged` if it is not finite."""
        number, step = float(value), self.progress.step
        if not math.isfinite(number):
            raise Diverged(
                f"the {what} is {number} at step {step}: try a lower optimizer.lr", step=step
            )
        return number
