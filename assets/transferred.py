"""The base model adapted to tasks: one partition per method and test set, any number of them in one run."""

from collections.abc import Iterator
from functools import partial

import dagster as dg
from pydantic import create_model

from assets.pretrained import MODEL
from assets.worker import menu, metadata
from pipelines import launchpad
from pipelines.choices import BASE
from pipelines.partitions import METHODS, cells
from pipelines.resources import Launcher
from vlm_core.config import Config
from vlm_core.stage import Report

MENUS = {method: menu("transfer", method) for method in METHODS}
Methods = create_model("Methods", __base__=Config, **{name: (type(m.settings), m.settings) for name, m in MENUS.items()})
SPEC = dg.AssetSpec(
    "transferred", deps=["features", "eval_sets", ["pretrained", BASE]], skippable=True, kinds={"torch"}, partitions_def=cells,
    description="A method's accuracy on a test set over shots and seeds, with intervals; few-shot draws never see test data.", **MODEL,
)  # fmt: skip


@dg.multi_asset(name="transferred", specs=[SPEC], partitions_def=cells, backfill_policy=dg.BackfillPolicy.single_run(), pool="transfer")
def transferred(context: dg.AssetExecutionContext, launcher: Launcher, config: launchpad.form(Methods())) -> Iterator[dg.AssetMaterialization]:
    """Each cell is a process and gets an event of its own, so that its numbers and its picture are its own."""
    wanted = {str(key): key.keys_by_dimension for key in context.partition_keys}
    jobs = {name: partial(_cell, context, launcher, config, **cell) for name, cell in wanted.items()}
    for name, report in launcher.launch_all(jobs):
        tags = {
            "dagster/data_version": report.data_version,
            "dagster/data_version_is_user_provided": "true",
            **{f"dagster/partition/{d}": v for d, v in wanted[name].items()},
        }
        context.log_event(dg.AssetMaterialization("transferred", partition=name, metadata=metadata(report, launcher), tags=tags))
    yield from ()


def _cell(context: dg.AssetExecutionContext, launcher: Launcher, config: dg.Config, *, method: str, dataset: str) -> Report:
    settings = launchpad.read(Methods, config)
    inputs = {"features": launcher.data("features"), "model": launcher.data("pretrained", BASE), "eval_sets": launcher.data("eval_sets")}
    return launcher.launch(
        context,
        "transfer",
        method,
        getattr(settings, method).merged({"dataset": dataset}),
        inputs,
        launcher.data("transferred", method, dataset),
        is_one_of_many=True,
    )
