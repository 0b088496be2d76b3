"""From the web, tables and folders to candidate pairs."""

from pathlib import Path

import dagster as dg
from pydantic import create_model

from assets.worker import menu, perform
from pipelines import launchpad, partitions
from pipelines.choices import batches
from pipelines.resources import Launcher
from vlm_core.config import Config

CRAWL, EXTRACT = menu("crawl"), menu("extract")
BATCHES = {name: menu("crawl", recipe) for name, recipe in batches().items()}
Sources = create_model("Sources", __base__=Config, **{name: (type(m.settings), m.settings) for name, m in BATCHES.items()})
DATA = {"group_name": "data", "owners": ["team:data"]}


@dg.asset(**DATA, kinds={"html", "parquet"}, pool="network")
def pages(context: dg.AssetExecutionContext, launcher: Launcher, config: CRAWL.form) -> dg.MaterializeResult:
    """Pages of the sites or archives that the recipe names, fetched politely: robots.txt, one request at a time per host."""
    return perform(context, launcher, CRAWL, config, {}, launcher.data("pages"))


@dg.asset(**DATA, kinds={"html", "parquet"}, partitions_def=partitions.crawl_batches, pool="network")
def crawl_batches(context: dg.AssetExecutionContext, launcher: Launcher, config: launchpad.form(Sources())) -> dg.MaterializeResult:
    """Further sources: every recipe of crawl that params.yaml lists after the first is a partition, crawled by itself."""
    name = context.partition_key
    if name not in BATCHES:
        raise dg.Failure(
            f"Found no source {name!r} under 'crawl' in params.yaml, expected RECIPE@{name}; add it, or delete the partition.", allow_retries=False
        )
    return perform(context, launcher, BATCHES[name], getattr(config, name), {}, launcher.data("crawl_batches", name))


@dg.asset(**DATA, kinds={"parquet"}, deps=[pages, crawl_batches])
def candidate_pairs(context: dg.AssetExecutionContext, launcher: Launcher, config: EXTRACT.form) -> dg.MaterializeResult:
    """Picture addresses of all sources, each pair once with every text and place it was seen with, under its content-independent uid."""
    return perform(context, launcher, EXTRACT, config, crawled(launcher), launcher.data("candidate_pairs"))


def crawled(launcher: Launcher) -> dict[str, Path]:
    """The pages, and those further sources that were crawled already, as inputs of a verb."""
    further = {f"pages.{name}": launcher.data("crawl_batches", name) for name in BATCHES}
    return {"pages": launcher.data("pages"), **{name: path for name, path in further.items() if launcher.at(path).exists()}}
