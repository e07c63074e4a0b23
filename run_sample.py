"""Continue a prompt: python run_sample.py ckpt=outputs/<date>/<time> prompt="ROMEO:" """

import hydra
from omegaconf import DictConfig

from llm.config.cli import command, reported


@hydra.main(version_base="1.3", config_path="conf", config_name="sample")
@reported
def main(cfg: DictConfig) -> None:
    """Load a checkpoint and print samples."""
    from llm.config.schema import SampleSettings
    from llm.config.settings import read_settings

    settings = read_settings(cfg, SampleSettings)

    import sys

    from llm.checkpoint.checkpoint import Checkpoint, find_checkpoint
    from llm.device import select_device
    from llm.experiment.samples import print_sample, read_prompt
    from llm.sampling.generate import SamplingOptions

    options = SamplingOptions(
        settings.max_new_tokens, settings.temperature, settings.top_k, settings.top_p
    )
    options.check()
    checkpoint = Checkpoint.open(find_checkpoint("ckpt", str(settings.ckpt)))
    prompt = read_prompt(
        checkpoint.tokenizer, settings.prompt, settings.prompt_file, checkpoint.model.block_size
    )
    model = checkpoint.load_model(select_device(settings.device, key="device"))
    print(f"{checkpoint.path.resolve().name} of {settings.ckpt}", file=sys.stderr)
    for number in range(settings.num_samples):
        if number:
            print("-" * 80)
        print_sample(
            model, checkpoint.tokenizer, prompt, options, settings.seed + number,
            stream=settings.stream, echo=settings.echo, logprobs=settings.logprobs,
        )  # fmt: skip


if __name__ == "__main__":
    command(main)
