"""Continue a prompt: python run_sample.py ckpt=outputs/<date>/<time> prompt="ROMEO:" """

import llm.start  # noqa: F401  (first: from here on signals are handled)

# isort: split
import sys

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
        from llm.experiment.samples import (
            check_stops,
            print_samples,
            print_speed,
            print_verification,
            read_prompt,
        )  # fmt: skip
        from llm.interchange.source import load_model, open_source
        from llm.sampling.conversation import Conversation
        from llm.sampling.layout import lay_out_for_decoding

    require_output()
    source = open_source("ckpt", str(settings.ckpt))
    tokenizer = source.tokenizer
    tune_allocator(source.model.n_embed)
    if settings.chat:
        manifest = getattr(source, "manifest", None)  # other people's weights have none
        saved = getattr(manifest, "template", {})
        template = choose_template(settings.template, saved, tokenizer)
    prompt = read_prompt(tokenizer, settings.prompt, settings.prompt_file, source.model.block_size)
    check_stops(tokenizer, settings.stops())
    model = load_model(source, select_device(settings.device, key="device"))
    lay_out_for_decoding(model)
    name = source.path.resolve().name
    print(f"{name} of {settings.ckpt}", file=sys.stderr)
    answer(checkpoint=source.path.with_name(name))
    if settings.verify_cache:
        print_verification(model, tokenizer, prompt, settings, settings.seed)
    if settings.benchmark:
        print_speed(model, tokenizer, prompt, settings, settings.num_samples)
    if settings.chat:
        talk = Conversation(model, tokenizer, template, settings.system, settings.stops())
        answer(conversation=Chat(talk, settings, settings.seed).run())
    elif not (settings.verify_cache or settings.benchmark):
        samples = print_samples(
            model, tokenizer, prompt, settings, settings.seeds(), stream=settings.stream,
            echo=settings.echo, logprobs=settings.logprobs, stop=settings.stops(),
        )  # fmt: skip
        answer(samples=samples)


if __name__ == "__main__":
    command(main)
