"""All settings of ``run_eval.py``."""

import os
from dataclasses import dataclass, field
from typing import Any

from llm.checkpoint.find import newest_folders
from llm.errors import require
from llm.options import option

SPLITS = ("train", "val", "test")


@dataclass
class EvalSettings:
    """All settings of ``run_eval.py``."""

    ckpt: str | None = None
    # Names and paths; OmegaConf has no type for one text or a list of them.
    tasks: Any = field(default_factory=lambda: ["loss"])
    split: str = option("val", one_of=SPLITS)
    data_path: str | None = None
    window: int | None = option(None, at_least=1, at_most=2**20)
    stride: int | None = option(None, at_least=1, at_most=2**20)
    batch_size: int | None = option(None, at_least=1, at_most=2**16)
    as_in_training: bool = False
    include_path: str | None = None
    int8: bool = False
    verify_causal: bool = False
    device: str = "auto"

    def names(self) -> list[str]:
        """The tasks as typed."""
        return self.tasks if isinstance(self.tasks, list) else [self.tasks]

    def cross_check(self) -> None:
        """Raise :class:`llm.errors.Refused` naming the first values that cannot work together."""
        newest = [] if self.ckpt else [f"ckpt={run}" for run in newest_folders()]
        require(
            self.ckpt,
            "ckpt is missing: give a run, a sweep or weights, as in ckpt=outputs/<date>/<time>",
            key="ckpt",
            suggestions=newest,
        )
        require(self.names(), "tasks is empty: take some, as in tasks=[loss,grammar]")
        for name in self.names():
            is_text = isinstance(name, str) and name
            require(is_text, f"tasks={name!r:.60} must be names of tasks or paths of files")
        require(
            self.data_path != "",
            "data_path is empty: give a text file or a prepared folder, or leave it out",
        )
        is_default = self.split == "val" or self.verify_causal
        measures_loss = "loss" in self.names()
        require(
            is_default or not measures_loss or not os.path.isfile(self.data_path or ""),
            f"split={self.split} has no effect: data_path={self.data_path} is one text without "
            "splits; leave split out",
            key="split",
        )
        require(
            is_default or measures_loss,
            f"split={self.split} has no effect: of these tasks none is measured on a split, as "
            "tasks=[loss] is; leave it out",
            key="split",
        )
        require(
            self.window is None or self.stride is None or self.stride <= self.window,
            f"stride={self.stride} is larger than window={self.window}, so it would skip tokens",
        )
        typed = [
            key for key in ("window", "stride", "batch_size", "data_path") if getattr(self, key)
        ]
        require(
            not (self.as_in_training and typed),
            f"as_in_training=true takes the values of the run: leave out {', '.join(typed)}",
        )
        # It may round the weights to bfloat16, which would change the other results.
        others = [name for name in self.names() if name != "loss"]
        require(
            not (self.as_in_training and others),
            f"as_in_training=true is for tasks=[loss]: evaluate {', '.join(others)} without it",
        )
