"""Make a W&B workspace that compares the runs of a sweep (needs an account):

    pip install -c constraints.txt wandb-workspaces
    python docs/wandb_workspace.py ENTITY/PROJECT SWEEP model.n_layer optimizer.lr

SWEEP is the name of the sweep's folder in multirun/, then come the keys that the sweep varies.
With --dry-run the workspace is printed as JSON instead of saved: without an account or a network.
"""

import argparse

import wandb_workspaces.workspaces as ws
from wandb_workspaces.reports.v2 import (
    Config,
    LinePlot,
    ParallelCoordinatesPlot,
    ParallelCoordinatesPlotColumn,
    ParameterImportancePlot,
    ScatterPlot,
)

LOSS = "best/val_loss"


def workspace(entity: str, project: str, sweep: str, keys: list[str]) -> ws.Workspace:
    """A workspace with the runs of one sweep: which settings lower the loss, at what cost."""
    columns = [ParallelCoordinatesPlotColumn(metric=Config(key)) for key in keys]
    columns.append(ParallelCoordinatesPlotColumn(metric=LOSS))
    settings = ws.Section(
        name="Settings",
        panels=[
            ParallelCoordinatesPlot(title="settings and loss", columns=columns),
            ParameterImportancePlot(with_respect_to=LOSS),
            *(ScatterPlot(title=f"loss by {key}", x=Config(key), y=LOSS) for key in keys),
        ],
        is_open=True,
    )
    curves = ws.Section(
        name="Training",
        panels=[
            LinePlot(title="validation loss by tokens", x="tokens", y=["val/loss"]),
            LinePlot(title="training loss by tokens", x="tokens", y=["train/loss"]),
            ScatterPlot(title="loss by memory", x="peak_memory_bytes", y=LOSS),
            ScatterPlot(title="loss by speed", x="tokens_per_second", y=LOSS),
        ],
        is_open=True,
    )
    of_sweep = ws.RunsetSettings(filters=[ws.Metric("Group") == sweep])
    return ws.Workspace(
        entity=entity, project=project, name=sweep, sections=[settings, curves],
        runset_settings=of_sweep,
    )  # fmt: skip


def main() -> None:
    """Save the workspace, or print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("project", metavar="ENTITY/PROJECT")
    parser.add_argument("sweep")
    parser.add_argument("keys", nargs="*", metavar="KEY")
    parser.add_argument("--dry-run", action="store_true")
    typed = parser.parse_args()
    entity, slash, project = typed.project.partition("/")
    if not slash:
        parser.error(f"{typed.project} must be ENTITY/PROJECT, as in the address of your project")
    made = workspace(entity, project, typed.sweep, typed.keys)
    if typed.dry_run:
        # The library has no public way to show a workspace.
        print(made._to_model().model_dump_json(by_alias=True, indent=1))
    else:
        made.save()
        print(made.url)


if __name__ == "__main__":
    main()
