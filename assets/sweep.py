"""Recipes and ways to filter against plain CLIP on the crawl as it is."""

import dagster as dg

from assets.comparison import SEARCH
from assets.worker import menu, perform
from pipelines.resources import Launcher

SWEEP = menu("sweep")


@dg.asset(**SEARCH, kinds={"torch", "parquet"}, deps=["candidate_pairs", "images", "embeddings", "captions"], pool="train")
def sweep(context: dg.AssetExecutionContext, launcher: Launcher, config: SWEEP.form) -> dg.MaterializeResult:
    """Recipes times training data within a budget of pairs, all apart from one set of test samples: what beats plain CLIP on the unfiltered crawl."""
    inputs = {"pairs": launcher.data("candidate_pairs"), **{name: launcher.data(name) for name in ("images", "embeddings", "captions")}}
    return perform(context, launcher, SWEEP, config, inputs, launcher.data("sweep"))
