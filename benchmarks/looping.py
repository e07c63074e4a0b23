"""How often a model's texts loop, setting by setting:

    python -m benchmarks.looping --ckpt outputs/<run> --data data/<name> [--json FILE] [overrides]

Each setting (with top_k=200, the default) continues the same 16 stretches of the validation text.
The validation text itself is scored too, as text without loops. Overrides such as top_k=50 change
the defaults of all settings. In the rows, ``ours`` is the share of texts that loop, ``other`` the
share of the first setting, and ``ratio`` the mean of distinct-2.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
import yaml

from benchmarks.rows import Parser, Row, write_json
from llm.checkpoint.checkpoint import Checkpoint
from llm.checkpoint.find import find_checkpoint
from llm.data.dataset import Dataset
from llm.data.tokenizer import Tokenizer
from llm.errors import Refused, require
from llm.model.gpt import GPT
from llm.options import from_plain
from llm.sampling.cache import KVCache
from llm.sampling.generate import generate_batch
from llm.sampling.looping import Repeats, measure_repeats
from llm.sampling.options import SamplingOptions

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 16, 32, 300
SETTINGS = [
    "temperature=0",
    "temperature=0.4",
    "temperature=0.8",
    "temperature=1.0",
    "temperature=1.0 min_p=0.05",
    "temperature=0 repetition_penalty=1.1",
    "temperature=0 repetition_penalty=1.2",
    "temperature=0 frequency_penalty=0.3",
    "temperature=0 presence_penalty=0.6",
    "temperature=0 no_repeat_ngram=4",
    "temperature=0 no_repeat_ngram=16",
    "temperature=0.4 repetition_penalty=1.2",
]


def options(typed: list[str]) -> SamplingOptions:
    """Settings that are typed as for ``run_sample.py``."""
    values = {
        key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in typed)
    }
    return from_plain(SamplingOptions, {"max_new_tokens": NEW_TOKENS} | values, "")


def show(name: str, found: list[Repeats]) -> None:
    """A line of the table in Markdown."""
    looping = sum(each.loops for each in found)
    mean = {key: statistics.fmean(each.scores[key] for each in found) for key in found[0].scores}
    print(
        f"| {name} | {looping} of {len(found)} | {mean['distinct_1']:.2f} | "
        f"{mean['distinct_2']:.2f} | {mean['repeated_4']:.2f} | {mean['longest_loop']:.0f} |",
        flush=True,
    )


def main(typed: list[str] | None = None) -> None:
    """Measure all settings and print a table in Markdown."""
    parser = Parser("How often a model's texts loop", repeats=0)
    parser.add_argument("--ckpt", required=True, help="a run folder or a checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="the prepared folder of its data")
    parser.add_argument("overrides", nargs="*", help="settings for all rows, as for run_sample.py")
    arguments = parser.parse_args(typed)
    try:
        compare(arguments)
    except Refused as refusal:
        parser.error(str(refusal))


def continued(
    model: GPT, prompts: list[list[int]], chosen: SamplingOptions, tokenizer: Tokenizer
) -> list[list[int]]:
    """The new tokens after each prompt."""
    said: list[list[int]] = [[] for _ in prompts]
    for pairs in generate_batch(
        KVCache(model), prompts, chosen, range(len(prompts)), tokenizer.vocab_size,
        tokenizer.end_of_text,
    ):  # fmt: skip
        for text, pair in zip(said, pairs, strict=True):
            if pair is not None:
                text.append(pair[0])
    return said


def compare(arguments: argparse.Namespace) -> None:
    """Print the table; :class:`llm.errors.Refused` if model and data do not go together."""
    checkpoint = Checkpoint.open(find_checkpoint("--ckpt", arguments.ckpt))
    dataset, tokenizer = Dataset.open(arguments.data), checkpoint.tokenizer
    require(
        dataset.tokenizer.to_json() == tokenizer.to_json(),
        f"{arguments.data} has other tokens than {arguments.ckpt}",
    )
    length = PROMPT_TOKENS + NEW_TOKENS
    require(len(dataset.val) >= length, f"{arguments.data} has less than {length} tokens in val")
    setups = [options([*arguments.overrides, *setting.split()]) for setting in SETTINGS]
    model = checkpoint.load_model(torch.device("cpu"))
    places = np.linspace(0, len(dataset.val) - length, PROMPTS, dtype=int)
    prompts = [dataset.val[at : at + PROMPT_TOKENS].tolist() for at in places]
    print(
        "| setting | texts that loop | distinct-1 | distinct-2 | repeated 4-grams | longest loop |"
    )
    print("|---|---|---|---|---|---|")
    after = [dataset.val[at + PROMPT_TOKENS :][:NEW_TOKENS].tolist() for at in places]
    show("the text itself", [measure_repeats(tokenizer.decode(tokens)) for tokens in after])
    rows: list[Row] = []
    for setting, chosen in zip(SETTINGS, setups, strict=True):
        said = continued(model, prompts, chosen, tokenizer)
        found = [measure_repeats(tokenizer.decode(tokens)) for tokens in said]
        show(f"`{setting}`", found)
        share = sum(each.loops for each in found) / PROMPTS
        scores = [each.distinct_2 for each in found]
        rows.append(
            Row(
                id=f"looping: {setting}",
                what="share of texts that loop; the first setting's; mean distinct-2 as the ratio",
                ours=share,
                other=rows[0].ours if rows else share,
                ratio=statistics.fmean(scores),
                low=min(scores),
                high=max(scores),
            )
        )
        write_json(rows, arguments.json)


if __name__ == "__main__":
    main()
