"""Labelled test sets."""

import dagster as dg

from assets.shards import shards
from assets.worker import menu, perform
from pipelines.resources import Launcher

EVAL_SETS = menu("eval-sets")


@dg.asset(group_name="data", owners=["team:data"], kinds={"image", "parquet"}, deps=[shards])
def eval_sets(context: dg.AssetExecutionContext, launcher: Launcher, config: EVAL_SETS.form) -> dg.MaterializeResult:
    """Labelled pictures with class names, templates and splits that share nothing with the training shards."""
    return perform(context, launcher, EVAL_SETS, config, {"shards": launcher.data("shards")}, launcher.data("eval_sets"))
