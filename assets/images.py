"""From addresses to pictures and their embeddings."""

import dagster as dg

from assets.sources import DATA, candidate_pairs, crawled
from assets.worker import menu, perform
from pipelines.resources import Launcher

DOWNLOAD, EMBED = menu("download"), menu("embed")


@dg.asset(**DATA, kinds={"image", "parquet"}, deps=[candidate_pairs], pool="network")
def images(context: dg.AssetExecutionContext, launcher: Launcher, config: DOWNLOAD.form) -> dg.MaterializeResult:
    """Pictures behind the candidate pairs, checked, resized and hashed; every address ends in exactly one status."""
    from vlm_core.data.crawl.local_source import LIST  # late: it brings pyarrow

    pictures = {name: path for name, path in crawled(launcher).items() if (launcher.at(path) / LIST).exists()}  # of sources that need no network
    return perform(context, launcher, DOWNLOAD, config, {"pairs": launcher.data("candidate_pairs"), **pictures}, launcher.data("images"))


@dg.asset(**DATA, kinds={"numpy", "faiss"}, deps=[candidate_pairs, images])
def embeddings(context: dg.AssetExecutionContext, launcher: Launcher, config: EMBED.form) -> dg.MaterializeResult:
    """Unit vectors of pictures and captions by the scorer, in clip-retrieval's layout, with the index that search answers from."""
    inputs = {"images": launcher.data("images"), "pairs": launcher.data("candidate_pairs")}
    scorer = EMBED.read(config).scorer
    if (
        scorer.kind == "model" and not scorer.model
    ):  # the filter network; test sets are made apart from what it knows, so the present ones are none of its business
        inputs["scorer"] = launcher.data("network")
    return perform(context, launcher, EMBED, config, inputs, launcher.data("embeddings"))
