"""All settings of ``run_export.py``."""

from dataclasses import dataclass

from llm.checkpoint.find import newest_folders
from llm.disk import check_path
from llm.errors import require
from llm.options import option

# The types of numbers that each format stores, the default first.
FLOATS = ("fp32", "fp16", "bf16")
DTYPES = {"hf": FLOATS, "gguf": (*FLOATS, "q8_0"), "peft": FLOATS, "merged": FLOATS}


@dataclass
class ExportSettings:
    """All settings of ``run_export.py``."""

    ckpt: str | None = None
    format: str = option("hf", one_of=DTYPES)
    out: str | None = None
    dtype: str | None = None
    overwrite: bool = False

    @property
    def stored_dtype(self) -> str:
        """The type of the stored numbers."""
        return self.dtype or DTYPES[self.format][0]

    def cross_check(self) -> None:
        """Raise :class:`llm.errors.Refused` naming the first values that cannot work together."""
        newest = [] if self.ckpt else [f"ckpt={run}" for run in newest_folders()]
        require(
            self.ckpt,
            "ckpt is missing: give a run or other weights, as in ckpt=outputs/<date>/<time>",
            key="ckpt", suggestions=newest,
        )  # fmt: skip
        folder = self.format != "gguf"
        kind, example = ("folder", "exported") if folder else ("file", "exported.gguf")
        require(
            self.out, f"out is missing: give the {kind} to write, as in out={example}",
            key="out", suggestions=[f"out={example}"],
        )  # fmt: skip
        check_path("out", self.out or "")
        name = str(self.out)
        require(
            not folder or not name.lower().endswith(".gguf"),
            f"out={name} is named like a GGUF file, and format={self.format} writes a folder: add "
            "format=gguf, or give a folder",
            key="format", suggestions=["format=gguf", f"out={name[:-5]}"],
        )  # fmt: skip
        known = DTYPES[self.format]
        require(
            self.stored_dtype in known,
            f"dtype={self.dtype} must be one of {', '.join(known)} for format={self.format}",
            key="dtype", suggestions=[f"dtype={one}" for one in known],
        )  # fmt: skip
