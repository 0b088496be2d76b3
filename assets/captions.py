"""Reworded captions."""

import dagster as dg

from assets.filtered import filtered
from assets.sources import DATA
from assets.worker import menu, perform
from pipelines.resources import Launcher

RECAPTION = menu("recaption")


@dg.asset(**DATA, kinds={"llm", "parquet"}, deps=[filtered], pool="llm")
def captions(context: dg.AssetExecutionContext, launcher: Launcher, config: RECAPTION.form) -> dg.MaterializeResult:
    """Rewordings by a language model within a budget; each passed its gates or is kept with the reason why not."""
    inputs = {"filtered": launcher.data("filtered"), "pairs": launcher.data("candidate_pairs"), "embeddings": launcher.data("embeddings")}
    return perform(context, launcher, RECAPTION, config, inputs, launcher.data("captions"))
