"""Train a language model: python run_train.py model=small data=shakespeare

Hydra composes conf/train.yaml with what is typed. Below, in order, that becomes a dataset, a run
folder, a network, an optimizer and the loop; the loop itself is in llm/training/trainer.py.
"""

import hydra
from omegaconf import DictConfig

from llm.config.cli import command, reported


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@reported
def main(cfg: DictConfig) -> float | None:
    """Train as configured; returns the lowest validation loss (nats per token)."""
    from llm.config.schema import TrainSettings
    from llm.config.settings import read_settings, resolve, to_plain

    settings = read_settings(cfg, TrainSettings)  # plain and checked from here on

    import torch  # this late, so that --help, completion and a mistyped key need not wait for it

    from llm.checkpoint.checkpoint import CheckpointFolder, start_from
    from llm.config.build import build
    from llm.config.run import open_run
    from llm.data.dataset import Dataset
    from llm.data.prepare import prepare
    from llm.device import select_device, tune_allocator
    from llm.experiment.console import byte_progress
    from llm.experiment.loggers import open_logger
    from llm.experiment.panels import show_already_finished, show_end, show_start
    from llm.experiment.rundir import recording
    from llm.training.precision import Precision, resolve_precision

    tune_allocator(settings.model.n_embed)
    device = select_device(settings.trainer.device)
    with byte_progress(f"preparing {settings.data.name}") as on_progress:
        dataset = Dataset.open(prepare(settings.data, on_progress))
    precision, why = resolve_precision(settings.precision.name, device)
    settings = resolve(settings, dataset.tokenizer.vocab_size, precision)
    dataset.check(settings.model.block_size, settings.model.vocab_size or 0)

    # The first thing that is written; what can be refused was refused above.
    run = open_run(settings, dataset.digest)
    if run.is_finished:
        show_already_finished(run.folder)
        return run.best_val_loss
    alone = run.is_new and not settings.run.sweep
    with recording(run.folder, run.identity, remove_if_refused=alone) as summary:
        torch.manual_seed(settings.seed)
        model = build(settings.model).to(device)
        if settings.init_from and run.checkpoint is None:
            start_from(model, settings.init_from)
        sweep = run.folder.parent if settings.run.sweep else None
        options, max_steps = settings.trainer, settings.trainer.max_steps
        checkpoints = CheckpointFolder(
            run.folder, options.keep_last, model.config, dataset.tokenizer, run.identity
        )
        with open_logger(run, settings.logger, to_plain(settings), max_steps, sweep) as logger:
            trainer = build(
                options,
                model=model,
                dataset=dataset,
                optimizer=build(settings.optimizer, model=model),
                schedule=build(settings.schedule),
                precision=Precision(precision, device),
                checkpoints=checkpoints,
                logger=logger,
                seed=settings.seed,
                pretrained=settings.init_from is not None,
            )
            if run.checkpoint is not None:
                trainer.resume(run.checkpoint)
            show_start(run.folder, trainer, dataset, f"{precision}, {why}")
            try:
                with logger.screen:
                    trainer.fit()
            finally:
                summary |= trainer.outcome()
    show_end(run.folder, trainer.progress, summary)
    return trainer.progress.best_val_loss


if __name__ == "__main__":
    command(main)
