"""The training loop. Read :meth:`Trainer.fit`; the methods it calls follow in order."""

import math
from contextlib import nullcontext, suppress
from dataclasses import asdict
from typing import Any

import torch
from torch.profiler import profile

from llm import signals
from llm.checkpoint.checkpoint import Checkpoint
from llm.checkpoint.folder import CheckpointFolder, newest_valid
from llm.data.dataset import Dataset
from llm.device import peak_memory_bytes, reserved_memory_bytes, to_device
from llm.errors import Diverged, Interrupted, Refused, require
from llm.evaluation.split import evaluate_split
from llm.functional import IGNORED
from llm.model.config import CHECKPOINTED
from llm.model.gpt import GPT
from llm.model.lora import trained_weights
from llm.options import from_plain
from llm.sampling.generate import generate
from llm.sampling.looping import measure_repeats
from llm.sampling.options import SamplingOptions
from llm.training.budget import StepBudget
from llm.training.guard import Guard, require_finite
from llm.training.logger import Logger, Row
from llm.training.optimizer import Optimizer, layout_bytes
from llm.training.options import TrainerOptions
from llm.training.precision import Precision
from llm.training.profiling import profiler_of
from llm.training.random_state import random_tensors, restore_random
from llm.training.schedule import Schedule
from llm.training.state import PlainState, Progress, environment
from llm.training.throughput import Throughput
from llm.training.update import Update, UpdateInBackward

SAMPLE = SamplingOptions(max_new_tokens=200)


class Trainer:
    """Fits ``model`` to ``dataset``. Options are the fields of :class:`TrainerOptions`."""

    def __init__(
        self, *, model: GPT, dataset: Dataset, optimizer: Optimizer, schedule: Schedule,
        precision: Precision, checkpoints: CheckpointFolder, logger: Logger, seed: int,
        pretrained: bool = False,  # starts from trained weights: even step 0 may be the best
        **options: Any,
    ) -> None:  # fmt: skip
        self.options = TrainerOptions(**options)
        self.model, self.dataset, self.seed = model, dataset, seed
        self.optimizer, self.schedule, self.precision = optimizer, schedule, precision
        self.budget = StepBudget(self.options, schedule, logger)
        self.checkpoints, self.logger, self.pretrained = checkpoints, logger, pretrained
        self.device = model.embed.weight.device
        self.block_size, self.batch_size = model.config.block_size, self.options.batch_size
        self.sampler = dataset.sampler(
            self.block_size, self.batch_size, seed, self.options.overfit_batches
        )
        model.checkpoint_every = CHECKPOINTED[self.options.activation_checkpointing]
        # The compiled network shares the weights and has fused kernels.
        self.network = torch.compile(model) if self.options.compile else model
        update = UpdateInBackward if self.options.step_in_backward else Update
        self.update = update(model, optimizer, precision, self.options.grad_clip)
        self.guard = Guard(
            self.options.max_skipped, self.options.skip_spikes, logger.warn,
            precision.scaler.is_enabled(),
        )  # fmt: skip
        self.progress = Progress()
        self.throughput = Throughput(model, checkpoints.finetune, precision.name)
        self.stop = signals.listener  # ``received`` is the first signal

    def fit(self) -> Progress:
        """Train until ``max_steps``, ``max_minutes`` or ``patience``; returns the counters reached.

        Raises :class:`llm.errors.Diverged` when too many steps are not finite, after ``rollbacks``
        returns to a checkpoint, and :class:`llm.errors.Interrupted` after a signal, once a
        checkpoint to continue from is saved.
        """
        self.compile_ahead()
        steps = self.progress.steps_left(self.options)
        is_profiled = self.options.profile and steps > 0
        run = self.checkpoints.folder.parent
        profiling = profiler_of(steps, self.device, run) if is_profiled else nullcontext()
        with signals.remembered(), profiling as profiler:
            while True:
                try:
                    self.train(profiler)
                    return self.progress
                except Diverged as diverged:
                    self.roll_back(diverged)

    def train(self, profiler: profile | None) -> None:
        """The loop, from the current step to the end."""
        options, progress, stop = self.options, self.progress, self.stop
        self.throughput.start(progress.tokens, progress.train_seconds)
        self.budget.start(progress)
        saved_step = None
        is_last = options.eval_only or progress.is_over(options)
        if progress.row is not None:  # step 0, or the report that a signal interrupted
            self.report(is_last)
        while not (is_last or stop.received or progress.is_out_of_patience(options)):
            with progress.clock("train_seconds"):
                loss, grad_norm = self.optimizer_step(progress.step + 1)
                progress.step += 1
            self.budget.update(progress)
            is_last = progress.is_over(options)
            if profiler is not None:
                profiler.step()
            self.logger.tick(progress.step)
            is_logged = progress.is_due(options.log_interval, is_last)
            progress.row = self.training_row(loss, grad_norm) if is_logged else {}
            self.report(is_last)
            # A rollback must return to a step before the first one that is not finite.
            is_failing = self.guard.recent.skipped_in_a_row > 0
            if progress.is_due(options.checkpoint_interval) and not is_failing:
                self.save()
                saved_step = progress.step
        if saved_step != progress.step and not options.eval_only:
            self.save()
        if stop.received and (progress.row is not None or not is_last):
            saved = "nothing is written" if options.eval_only else "the checkpoint is saved"
            raise Interrupted(f"{stop.received.name} at step {progress.step}: {saved}")

    def report(self, is_last: bool) -> None:
        """Evaluate and write a sample where they are due, and log all numbers of this step.

        When a signal interrupts this, ``progress.row`` keeps the numbers so far, and the resumed
        run finishes the report first.
        """
        options, progress, row = self.options, self.progress, self.progress.row
        assert row is not None
        try:
            if progress.is_due(options.eval_interval, is_last) and "val/loss" not in row:
                row |= self.evaluate()
            is_trained = progress.step > 0 and not options.eval_only
            if is_trained and progress.is_due(options.sample_interval):
                row |= self.sample()
        except signals.Signalled:
            return
        progress.row = None
        if row:
            self.logger.log(progress.counts | row)

    def compile_ahead(self) -> None:
        """Compile the network, which may take minutes, while a signal still ends the process.

        Compiling needs one batch. The random state is restored afterwards.
        """
        if not self.options.compile or self.options.eval_only:
            return
        before = random_tensors(self.device)
        self.model.train()
        size = self.options.micro_batch
        batch = [array[:size] for array in self.sampler.batch(1)]
        x, y, *documents = to_device(batch, self.device)
        with self.logger.doing("compiling"):
            with self.precision.autocast:
                loss = self.network(x, y, *documents, reduction="sum")
            loss.backward()
        self.optimizer.zero_grad()
        restore_random(before, self.device)

    def optimizer_step(self, step: int) -> tuple[float, float]:
        """One update from one batch, in micro-batches: its mean loss and gradient norm.

        Reading these waits for the device at every step, because NaN must not reach the weights.
        """
        batch = self.sampler.batch(step)
        n_targets = int((batch[1] != IGNORED).sum())
        rate = self.budget.share(step, self.progress) * 0.5**self.progress.rollbacks
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * rate
        self.model.train()
        mean_loss = torch.zeros((), device=self.device)
        for start in range(0, self.batch_size, self.options.micro_batch):
            part = slice(start, start + self.options.micro_batch)
            x, y, *documents = to_device([array[part] for array in batch], self.device)
            with self.precision.autocast:
                # Divided by the count of the whole batch: every token weighs the same, however the
                # batch is cut (transformers PR 34191 shows the usual mistake).
                part_loss = self.network(x, y, *documents, reduction="sum") / n_targets
            mean_loss += part_loss.detach()
            self.update.backward(part_loss)
            del part_loss
        loss, grad_norm = torch.stack((mean_loss, self.update.norm())).tolist()
        admitted = self.guard.admits(step, loss, grad_norm, self.sampler.positions(step))
        if admitted:
            self.update.step()
        self.update.drop()
        self.progress.skipped += not admitted
        self.precision.adapt_scale(step, grad_norm)
        self.progress.tokens += batch[0].size
        return loss, grad_norm

    def training_row(self, loss: float, grad_norm: float) -> Row:
        """The numbers of this step; None in place of NaN and infinity."""
        progress = self.progress
        row: Row = {
            "train/loss": loss if math.isfinite(loss) else None,
            "lr": self.optimizer.param_groups[0]["lr"],
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
            **self.throughput.measure(progress.tokens, progress.train_seconds),
            "peak_memory_bytes": peak_memory_bytes(self.device),
        }
        return row | ({"skipped_steps": progress.skipped} if progress.skipped else {})

    def evaluate(self) -> Row:
        """Loss on fixed validation windows; saves the weights if it is the lowest so far."""
        options, progress = self.options, self.progress
        with progress.clock("eval_seconds"):
            # Not the compiled network: compiling it again for this would take longer than it saves.
            result, protocol = evaluate_split(
                self.model, self.dataset, "val", self.precision.autocast, options.micro_batch,
                options.eval_batches,
                lambda batches, count: self.logger.each(
                    "evaluating", self.stop.each(batches), count
                ),
            )  # fmt: skip
        require_finite(result.loss, "validation loss", progress.step)
        progress.evaluation = protocol
        is_best = progress.record(result.loss, result.bits_per_byte)
        if is_best and not options.eval_only and (progress.step > 0 or self.pretrained):
            with progress.clock("checkpoint_seconds"):
                weights, plain = trained_weights(self.model), self.plain_state()
                self.checkpoints.save_best(progress.step, weights, plain)
        return {
            "val/loss": result.loss,
            "val/perplexity": result.perplexity,
            "val/bits_per_byte": result.bits_per_byte,
            "best/val_loss": progress.best_val_loss,
        }

    def sample(self) -> Row:
        """Let the model write a text and log it; returns scores of how much it repeats itself."""
        step, tokenizer = self.progress.step, self.dataset.tokenizer
        end = tokenizer.end_of_text
        prompt = [0 if end is None else end]
        self.model.eval()
        drawn = generate(self.model, prompt, SAMPLE, self.seed + step, tokenizer.vocab_size, end)
        with self.progress.clock("eval_seconds"):
            tokens = [token for token, _ in self.logger.each("sampling", self.stop.each(drawn))]
        text = tokenizer.decode(tokens)
        scores = measure_repeats(text).scores
        scores["end_of_text"] = float(len(tokens) < SAMPLE.max_new_tokens)
        self.logger.sample(step, tokenizer.decode(prompt), text, scores)
        return {f"sample/{name}": score for name, score in scores.items()}

    def save(self) -> None:
        """Publish a checkpoint to continue from. Weights with NaN must not replace a good one."""
        weights = trained_weights(self.model)
        for name, weight in weights.items():
            require_finite(float(weight.sum()), f"sum of {name}", self.progress.step)
        with self.progress.clock("checkpoint_seconds"), self.logger.doing("saving"):
            self.logger.sync()
            state = self.state_dict()
            self.checkpoints.save(self.progress.step, weights, state.pop("tensors"), state)

    def state_dict(self) -> dict[str, Any]:
        """All that training changes except the weights: plain values, and ``tensors`` of the
        optimizer and random generators.
        """
        tensors = self.optimizer.state_dict() | random_tensors(self.device)
        return {"tensors": tensors, **self.plain_state()}

    def plain_state(self) -> dict[str, Any]:
        """The plain values of :meth:`state_dict`."""
        return asdict(PlainState(
            self.progress, self.guard.recent, self.precision.loss_scale,
            self.optimizer.group_values(), self.logger.run_id, environment(self.device),
        ))  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a :meth:`state_dict`; :class:`llm.errors.Refused` if it does not fit."""
        tensors, values = state["tensors"], {k: v for k, v in state.items() if k != "tensors"}
        plain = from_plain(PlainState, values, "the checkpoint's ")
        self.optimizer.load_group_values(plain.groups)
        self.optimizer.load_state_dict(tensors)
        restore_random(tensors, self.device)
        self.progress, self.guard.recent = plain.progress, plain.guard
        self.precision.loss_scale = plain.loss_scale
        before, now = plain.environment, environment(self.device)
        if before != now:
            self.logger.warn(f"trained with {before} so far, now {now}: the last bits may differ")

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of :meth:`save`; raises :class:`llm.errors.Refused`."""
        checkpoint.load_into(self.model)
        tensors = checkpoint.training(self.optimizer.custom_layout())
        self.load_state_dict(checkpoint.state | {"tensors": tensors})
        require(self.progress.step == checkpoint.step, f"{checkpoint.path} has two step counts")

    def roll_back(self, cause: Diverged) -> None:
        """Return to the last checkpoint and halve the learning rate.

        Raises ``cause`` if ``trainer.rollbacks`` are used up or there is no checkpoint.
        """
        before = self.progress
        cause.facts |= {"scale": self.precision.loss_scale.scale, "skipped_steps": before.skipped}
        if before.rollbacks >= self.options.rollbacks:
            raise cause
        checkpoint = None
        with suppress(Refused):
            checkpoint, _ = newest_valid(self.checkpoints.folder.parent)
        if checkpoint is None:
            self.logger.warn("no checkpoint to return to: lower trainer.checkpoint_interval")
            raise cause
        self.logger.warn(f"{cause}; back to step {checkpoint.step}, at half the learning rate")
        self.update.drop()
        self.optimizer.state.clear()  # free its memory before the saved state is read
        self.resume(checkpoint)
        self.progress.rolled_back_from(before)
        # The checkpoint may hold a report that a signal interrupted, which is then logged again.
        self.logger.rewind(checkpoint.step - (self.progress.row is not None))

    def outcome(self) -> dict[str, Any]:
        """The trainer's part of ``summary.json``."""
        return self.progress.summary() | {
            "parameters": self.model.n_parameters(),
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "reserved_memory_bytes": reserved_memory_bytes(self.device),
            "reason": self.progress.why_ended(self.options),
        }

    def check_room(self) -> None:
        """Raise :class:`llm.errors.DiskError` unless the disk has room for the checkpoints."""
        if not self.options.eval_only:
            weights = sum(weight.nbytes for weight in trained_weights(self.model).values())
            self.checkpoints.check_room(weights, layout_bytes(self.optimizer.full_layout()))
