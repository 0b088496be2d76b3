"""What is done beside the flow, on demand: a snapshot for others, the proof that nothing of what was taken down is left, and a tidy catalog."""

import dagster as dg

from assets.shards import snapshot
from assets.worker import Menu, menu, perform
from pipelines import launchpad
from pipelines.partitions import FORMATS, formats
from pipelines.resources import Launcher
from vlm_core.config import Config

UPKEEP = {"group_name": "upkeep", "owners": ["team:data"]}
PROOF, COMPACT = menu("takedown-proof"), menu("catalog-compact")


class Exported(Config):
    """What a run over formats sets in each of them."""

    name: str = "snapshot"
    despite_takedowns: bool = False


@dg.asset(**UPKEEP, kinds={"json", "parquet"}, deps=[snapshot], partitions_def=formats)
def exports(context: dg.AssetExecutionContext, launcher: Launcher, config: launchpad.form(Exported())) -> dg.MaterializeResult:
    """The snapshot for others, a partition per format: Croissant with the shards, a datasheet, DataComp's metadata and uids, an image folder."""
    settings = FORMATS[context.partition_key].merged(launchpad.read(Exported, config).model_dump())
    what = Menu("export-data", context.partition_key, settings, launchpad.form(settings))
    return perform(context, launcher, what, what.form(), {"shards": launcher.data("shards")}, launcher.data("exports", context.partition_key))


@dg.asset(**UPKEEP, kinds={"json"}, deps=[snapshot])
def takedown_proof(context: dg.AssetExecutionContext, launcher: Launcher, config: PROOF.form) -> dg.MaterializeResult:
    """A scan of every table, shard, text and export for what was taken down, with what is left and what could not be looked at."""
    return perform(context, launcher, PROOF, config, {}, launcher.data("takedown_proof"))


@dg.asset(**UPKEEP, kinds={"parquet"})
def catalog_compact(context: dg.AssetExecutionContext, launcher: Launcher, config: COMPACT.form) -> dg.MaterializeResult:
    """The catalog's small fragments merged into few, which changes no answer."""
    return perform(context, launcher, COMPACT, config, {}, launcher.data("catalog_compact"))
