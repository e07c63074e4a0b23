"""Our networks as a model of lm-eval (``lm_eval``, an optional extra), computed in batches.

Only local task files are used: nothing is downloaded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from llm.data.tokenizer import Tokenizer
from llm.errors import require
from llm.evaluation.scoring import Request, score
from llm.model.gpt import GPT
from llm.sealed import Plain

Scores = list[tuple[float, bool]]


class Adapter(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """A network that scores continuations for lm-eval. ``size``: the tokens of a window; ``rows``:
    requests in a batch.
    """

    backend = "causal"

    def __init__(self, model: GPT, tokenizer: Tokenizer, size: int, rows: int | None) -> None:
        super().__init__()
        require(
            tokenizer.end_of_text is not None,
            f"lm-eval needs a tokenizer with an end-of-text token, and {tokenizer.kind} has none",
        )
        self.model, self.tokenizer, self.size, self.rows = model, tokenizer, size, rows

    @property
    def eot_token_id(self) -> int:
        """The id of the end-of-text token. lm-eval also puts it before a text without context."""
        assert self.tokenizer.end_of_text is not None
        return self.tokenizer.end_of_text

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """The ids of a text."""
        return [int(token) for token in self.tokenizer.encode(string)]

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, **_: Any
    ) -> Scores:
        """Called by lm-eval with (texts, context ids, continuation ids)."""
        mine = [Request(tuple(context), tuple(after)) for _, context, after in requests]
        longest = max((len(one.continuation) for one in mine), default=0)
        require(
            longest <= self.size,
            f"lm_eval: a continuation has {longest:,} tokens, and the window only {self.size:,}",
        )
        found = score(self.model, mine, self.size, self.rows)
        return [(one.logprob, one.is_greedy) for one in found]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-probability of whole texts; the windows of all texts share batches."""
        windows, counts = list[tuple[None, list[int], list[int]]](), list[int]()
        for request in requests:
            found = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]), prefix_token=self.eot_token_id,
                max_seq_len=self.size, context_len=1,
            )  # fmt: skip
            pairs = [make_disjoint_window(window) for window in found]
            windows += [(None, context, after) for context, after in pairs]
            counts.append(len(pairs))
        scores = torch.tensor([one for one, _ in self._loglikelihood_tokens(windows)])
        parts = torch.split(scores.double(), counts)
        return [float(part.sum()) for part in parts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Raises :class:`llm.errors.Refused`: only tasks that score given texts are supported."""
        require(False, "lm_eval: tasks that generate text (generate_until) are not supported")
        return []


def run(adapter: Any, name: str, include_path: Path) -> Plain:
    """The metrics of the task ``name``, defined in a YAML file below ``include_path``.

    Raises :class:`llm.errors.Refused` for an unknown task and for a group of tasks.
    """
    tasks = TaskManager(include_path=str(include_path), include_defaults=False)
    known = sorted(tasks.all_subtasks)
    advice = f"take one of {', '.join(known)}" if known else "give another include_path"
    require(name in known, f"lm_eval:{name} is not a task in {include_path}: {advice}", key="tasks")
    done = simple_evaluate(
        model=adapter, tasks=[name], task_manager=tasks, bootstrap_iters=0, log_samples=False
    )
    found = done["results"][name]
    numbers = {
        key.removesuffix(",none"): float(value)
        for key, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {"n": done["n-samples"][name]["effective"], **numbers}
