"""Write a model for other programs: python run_export.py outputs/<run> format=hf out=FOLDER"""

import llm.start  # noqa: F401  (first: from here on signals are handled)

# isort: split
from pathlib import Path

import hydra
from omegaconf import DictConfig

from llm.answer import answer
from llm.config.cli import command, reported
from llm.config.compose import read_settings
from llm.experiment.console import status
from llm.settings.export import ExportSettings
from llm.signals import delayed
from llm.terminal import require_output
from llm.units import format_bytes


@hydra.main(version_base="1.3", config_path="conf", config_name="export")
@reported
def main(cfg: DictConfig) -> None:
    """Write the files, and print how other programs use them."""
    settings = read_settings(cfg, ExportSettings)
    # After the checks: --help and typing errors need no torch.
    with status("loading torch"), delayed():
        from llm.experiment.introduce import introduce
        from llm.interchange.source import checkpoint_path, open_source
        from llm.interchange.writing import FORMATS

    require_output()
    source, out = open_source("ckpt", str(settings.ckpt)), Path(str(settings.out))
    write, uses_of = FORMATS[settings.format]
    with status(f"writing {out}"):
        files = write(source, out, settings.stored_dtype, settings.overwrite)
    introduce([source])
    sizes = {str(path): path.stat().st_size for path in files}
    uses = uses_of(source, out)
    path = checkpoint_path(source)
    answer(checkpoint=path, format=settings.format, out=out, files=sizes, uses=uses)
    for path, size in sizes.items():
        print(f"{path}  {format_bytes(size)}")
    for program, line in uses.items():
        print(f"{program}: {line}")


if __name__ == "__main__":
    command(main)
