"""Which samples stay."""

import dagster as dg

from assets.images import embeddings, images
from assets.sources import DATA, candidate_pairs
from assets.worker import menu, perform
from pipelines.resources import Launcher

FILTER = menu("filter")


@dg.asset(**DATA, kinds={"parquet"}, deps=[candidate_pairs, images, embeddings])
def filtered(context: dg.AssetExecutionContext, launcher: Launcher, config: FILTER.form) -> dg.MaterializeResult:
    """The samples that every rule keeps, and one decision with reason and score per sample and rule."""
    inputs = {"pairs": launcher.data("candidate_pairs"), "images": launcher.data("images"), "embeddings": launcher.data("embeddings")}
    return perform(context, launcher, FILTER, config, inputs, launcher.data("filtered"))
