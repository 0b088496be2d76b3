"""From the web, tables and folders to candidate pairs."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
from pydantic import create_model

from assets.worker import menu, metadata, perform
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


@dg.op(pool="network")
def crawl_every_batch(context: dg.OpExecutionContext, launcher: Launcher) -> Iterator[dg.AssetMaterialization | dg.Output[None]]:
    """Crawls all further sources that params.yaml lists now, one after the other, each into its partition; one that fails does not keep the others back."""
    failed = dict[str, str]()
    for name, recipe in batches().items():
        what = menu("crawl", recipe)
        try:
            report = launcher.launch(context, what.verb, what.recipe, what.settings, {}, launcher.data("crawl_batches", name))
        except (dg.Failure, dg.RetryRequested) as error:
            failed[name] = str(getattr(error, "description", "") or error.__cause__)
            context.log.error(f"{name}: {failed[name]}")
            continue
        tags = {"dagster/data_version": report.data_version, "dagster/data_version_is_user_provided": "true"}
        # at once: what is only logged as an event would be lost with a later failure
        yield dg.AssetMaterialization("crawl_batches", partition=name, metadata=metadata(report, launcher), tags=tags)
    if failed:
        raise dg.Failure(
            f"Found {len(failed)} of {len(batches())} sources that failed ({', '.join(failed)}), expected all to be crawled; read their lines above.",
            allow_retries=False,
        )
    yield dg.Output(None)


@dg.asset(**DATA, kinds={"parquet"}, deps=[pages, crawl_batches])
def candidate_pairs(context: dg.AssetExecutionContext, launcher: Launcher, config: EXTRACT.form) -> dg.MaterializeResult:
    """Picture addresses of all sources, each pair once with every text and place it was seen with, under its content-independent uid."""
    return perform(context, launcher, EXTRACT, config, crawled(launcher), launcher.data("candidate_pairs"))


def crawled(launcher: Launcher) -> dict[str, Path]:
    """The pages, and those further sources that were crawled already, as inputs of a verb."""
    further = {f"pages.{name}": launcher.data("crawl_batches", name) for name in BATCHES}
    return {"pages": launcher.data("pages"), **{name: path for name, path in further.items() if launcher.at(path).exists()}}
