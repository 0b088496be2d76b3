"""From the web to candidate pairs."""

import dagster as dg

from assets.worker import menu, perform
from pipelines.resources import Launcher

CRAWL, EXTRACT = menu("crawl"), menu("extract")
DATA = {"group_name": "data", "owners": ["team:data"]}


@dg.asset(**DATA, kinds={"html", "parquet"}, pool="network")
def pages(context: dg.AssetExecutionContext, launcher: Launcher, config: CRAWL.form) -> dg.MaterializeResult:
    """Pages of the sites or archives that the recipe names, fetched politely: robots.txt, one request at a time per host."""
    return perform(context, launcher, CRAWL, config, {}, launcher.data("pages"))


@dg.asset(**DATA, kinds={"parquet"}, deps=[pages])
def candidate_pairs(context: dg.AssetExecutionContext, launcher: Launcher, config: EXTRACT.form) -> dg.MaterializeResult:
    """Picture addresses with the text that stood beside them (alt, figcaption, title), each with its content-independent uid."""
    return perform(context, launcher, EXTRACT, config, {"pages": launcher.data("pages")}, launcher.data("candidate_pairs"))
