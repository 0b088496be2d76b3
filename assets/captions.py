"""Captions: what pages say, what models write."""

import dagster as dg

from assets.filtered import filtered
from assets.images import images
from assets.sources import DATA
from assets.worker import menu, perform
from pipelines.resources import Launcher

RECAPTION = menu("recaption")


@dg.asset(**DATA, kinds={"llm", "parquet"}, deps=[filtered, images], pool="llm")
def captions(context: dg.AssetExecutionContext, launcher: Launcher, config: RECAPTION.form) -> dg.MaterializeResult:
    """Captions of every origin: from the page, reworded, translated, seen in the picture, fused; what a model wrote passed its gates or is kept with the reason why not."""
    inputs = {
        "filtered": launcher.data("filtered"),
        "pairs": launcher.data("candidate_pairs"),
        "embeddings": launcher.data("embeddings"),
        "images": launcher.data("images"),
    }
    return perform(context, launcher, RECAPTION, config, inputs, launcher.data("captions"))
