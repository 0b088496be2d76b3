"""A data filtering network (DFN, arXiv 2309.17425): trained on a trusted subset, then the scorer of everything. Launched on demand, by the job `filter_network`."""

from pathlib import Path

import dagster as dg

from assets.captions import captions
from assets.images import embeddings, images
from assets.sources import candidate_pairs
from assets.worker import menu, perform
from pipelines.resources import Launcher

FILTER, SHARD, PRETRAIN = menu("filter", "trusted_filter"), menu("shard"), menu("pretrain", "filter_network")
EVAL_SETS, EVALUATE, PROMOTE = menu("eval-sets"), menu("evaluate"), menu("promote", "register_filter_network")
NETWORK = {"group_name": "filter_network", "owners": ["team:data"]}


@dg.asset(**NETWORK, kinds={"parquet"}, deps=[candidate_pairs, images, embeddings])
def trusted(context: dg.AssetExecutionContext, launcher: Launcher, config: FILTER.form) -> dg.MaterializeResult:
    """The small, clean subset that the filter network learns from: strict rules, well-kept sites, the better half by the present scorer."""
    inputs = {"pairs": launcher.data("candidate_pairs"), "images": launcher.data("images"), "embeddings": launcher.data("embeddings")}
    return perform(context, launcher, FILTER, config, inputs, launcher.data("trusted"))


@dg.asset(**NETWORK, kinds={"webdataset"}, deps=[trusted, captions])
def trusted_shards(context: dg.AssetExecutionContext, launcher: Launcher, config: SHARD.form) -> dg.MaterializeResult:
    """Shards of the trusted subset."""
    inputs = {
        "pairs": launcher.data("candidate_pairs"),
        "images": launcher.data("images"),
        "filtered": launcher.data("trusted"),
        "captions": launcher.data("captions"),
    }
    return perform(context, launcher, SHARD, config, inputs, launcher.data("trusted_shards"))


@dg.asset(**NETWORK, kinds={"image", "parquet"}, deps=[trusted_shards])
def trusted_eval_sets(context: dg.AssetExecutionContext, launcher: Launcher, config: EVAL_SETS.form) -> dg.MaterializeResult:
    """Labelled test sets that share nothing with the trusted subset."""
    return perform(context, launcher, EVAL_SETS, config, {"shards": launcher.data("trusted_shards")}, launcher.data("trusted_eval_sets"))


@dg.asset(**NETWORK, kinds={"lightning", "torch"}, deps=[trusted_shards], pool="train")
def network(context: dg.AssetExecutionContext, launcher: Launcher, config: PRETRAIN.form) -> dg.MaterializeResult:
    """The filter network: a model folder that also holds hashes of the pictures it was trained on."""
    return perform(context, launcher, PRETRAIN, config, {"shards": launcher.data("trusted_shards")}, launcher.data("network"))


def _judged(launcher: Launcher) -> dict[str, Path]:
    return {"model": launcher.data("network"), "shards": launcher.data("trusted_shards"), "eval_sets": launcher.data("trusted_eval_sets")}


@dg.asset(**NETWORK, kinds={"torch"}, deps=[network, trusted_shards, trusted_eval_sets])
def network_evaluation(context: dg.AssetExecutionContext, launcher: Launcher, config: EVALUATE.form) -> dg.MaterializeResult:
    """The evaluator of every model, on what the trusted subset held out."""
    return perform(context, launcher, EVALUATE, config, _judged(launcher), launcher.data("network_evaluation"))


@dg.asset(**NETWORK, kinds={"mlflow"}, deps=[network, network_evaluation], pool="registry")
def registered_network(context: dg.AssetExecutionContext, launcher: Launcher, config: PROMOTE.form) -> dg.MaterializeResult:
    """The filter network as a version of vlm-dfn. No model that was trained on its choice is ever registered under that name."""
    inputs = {**_judged(launcher), "evaluation": launcher.data("network_evaluation")}
    return perform(context, launcher, PROMOTE, config, inputs, launcher.data("registry", "network"), force=True)  # the registry may have moved


ASSETS = [trusted, trusted_shards, trusted_eval_sets, network, network_evaluation, registered_network]
