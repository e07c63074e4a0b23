"""Turn text into token files: python run_prepare.py data=shakespeare"""

import llm.start  # noqa: F401  (first: from here on signals are handled)

# isort: split
import hydra
from omegaconf import DictConfig

from llm.answer import answer
from llm.commands import typed_command
from llm.config.cli import command, reported
from llm.config.compose import read_settings
from llm.data.config import TOKENIZERS
from llm.data.conversation_dataset import conversation_counts, facts_of
from llm.data.dataset import Dataset
from llm.data.meta import read_meta
from llm.data.prepare import prepare
from llm.experiment.console import byte_progress, panel, say, warn
from llm.settings.schema import PrepareSettings


@hydra.main(version_base="1.3", config_path="conf", config_name="prepare")
@reported
def main(cfg: DictConfig) -> None:
    """Prepare the dataset unless it exists, and check it."""
    settings = read_settings(cfg, PrepareSettings)
    with byte_progress("preparing") as on_progress:
        dataset = Dataset.open(prepare(settings.data, on_progress))
    with byte_progress("checking") as on_progress:
        dataset.verify(on_progress)
    for note in dataset.notes:
        warn(note)
    facts = {
        "folder": str(dataset.folder),
        "tokenizer": f"{dataset.tokenizer.kind}, {dataset.tokenizer.vocab_size:,} tokens",
        "train": f"{len(dataset.train):,} tokens",
        "val": f"{len(dataset.val):,} tokens, {dataset.bytes_per_token:.2f} bytes each",
    }
    if dataset.test is not None:
        facts["test"] = f"{len(dataset.test):,} tokens, which training never reads"
    facts |= facts_of(dataset.folder)
    panel("dataset", facts)
    meta = read_meta(dataset.folder).plain()
    answer(
        folder=dataset.folder,
        tokenizer=dataset.tokenizer.kind,
        digest=dataset.digest,
        **{key: meta[key] for key in ("vocab_size", "tokens", "bytes")},
        **conversation_counts(dataset.folder),
    )
    place = str(settings.data.tokenizer)
    # Data in the tokens of other weights is for training from these weights.
    more = [] if place in TOKENIZERS else [f"init_from={place}", "finetune=lora"]
    say(f"next: {typed_command(*more, name='run_train.py')}")


if __name__ == "__main__":
    command(main)
