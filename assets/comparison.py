"""Recipes of pre-training against each other on the snapshot."""

import dagster as dg

from assets.worker import menu, perform
from pipelines.resources import Launcher

COMPARE = menu("compare-pretraining")
SEARCH = {"group_name": "searches", "owners": ["team:models"]}


@dg.asset(**SEARCH, kinds={"torch"}, deps=["shards", "eval_sets"], pool="train")
def comparison(context: dg.AssetExecutionContext, launcher: Launcher, config: COMPARE.form) -> dg.MaterializeResult:
    """Every recipe at the same pairs seen and over the same seeds, judged by one evaluator: who beats plain CLIP, with paired intervals."""
    inputs = {"shards": launcher.data("shards"), "eval_sets": launcher.data("eval_sets")}
    return perform(context, launcher, COMPARE, config, inputs, launcher.data("comparison"))
