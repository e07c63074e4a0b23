"""Continue a prompt: python run_sample.py ckpt=outputs/<date>/<time> prompt="ROMEO:" """

import llm.start  # noqa: F401  (first: from here on signals are handled)

# isort: split
import hydra
from omegaconf import DictConfig

from llm.answer import answer
from llm.config.cli import command, reported
from llm.config.compose import read_settings
from llm.experiment.console import status
from llm.settings.sample import SampleSettings
from llm.signals import delayed
from llm.terminal import require_output


@hydra.main(version_base="1.3", config_path="conf", config_name="sample")
@reported
def main(cfg: DictConfig) -> None:
    """Load a checkpoint and print samples."""
    settings = read_settings(cfg, SampleSettings)
    # After the checks: --help and typing errors need no torch.
    with status("loading torch"), delayed():
        from llm.device import select_device, tune_allocator
        from llm.experiment.chat import Chat, choose_template
        from llm.experiment.introduce import introduce
        from llm.experiment.networks import Networks
        from llm.experiment.samples import (
            check_stops,
            print_samples,
            print_speed,
            print_verification,
            read_prompt,
        )  # fmt: skip
        from llm.interchange.source import checkpoint_path, open_source
        from llm.sampling.conversation import Conversation

    require_output()
    source = open_source("ckpt", str(settings.ckpt))
    tokenizer = source.tokenizer
    tune_allocator(source.model.n_embed)
    networks = Networks(source, settings.places())
    first, *_ = names = networks.names
    if settings.chat:
        templates = {
            name: choose_template(settings.template, networks.saved_template(name), tokenizer)
            for name in names
        }
    prompt = read_prompt(tokenizer, settings.prompt, settings.prompt_file, networks.block_size)
    check_stops(tokenizer, settings.stops())
    networks.load(select_device(settings.device, key="device"))
    introduce([source, *networks.adapters.values()])
    answer(checkpoint=checkpoint_path(source))
    if settings.verify_cache:
        print_verification(networks.take(first), tokenizer, prompt, settings, settings.seed)
    if settings.benchmark:
        print_speed(networks.take(first), tokenizer, prompt, settings, settings.num_samples)
    if settings.chat:
        model, stops = networks.take(first), settings.stops()
        talk = Conversation(model, tokenizer, templates[first], settings.system, stops)
        chat = Chat(
            talk, settings, settings.seed, settings.places(),
            lambda name: (networks.take(name), templates[name]),
        )  # fmt: skip
        answer(conversation=chat.run())
    elif not (settings.verify_cache or settings.benchmark):
        samples = []
        for name in names:
            samples += print_samples(
                networks.take(name), tokenizer, prompt, settings, settings.seeds(), title=name,
                stream=settings.stream, echo=settings.echo, logprobs=settings.logprobs,
                stop=settings.stops(),
            )  # fmt: skip
        answer(samples=samples)


if __name__ == "__main__":
    command(main)
