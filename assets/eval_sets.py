"""Labelled test sets."""

import dagster as dg

from assets.images import embeddings
from assets.shards import shards
from assets.worker import menu, perform
from pipelines.resources import Launcher

EVAL_SETS, FINGERPRINT = menu("eval-sets"), menu("fingerprint")


@dg.asset(group_name="data", owners=["team:data"], kinds={"image", "parquet"}, deps=[shards])
def eval_sets(context: dg.AssetExecutionContext, launcher: Launcher, config: EVAL_SETS.form) -> dg.MaterializeResult:
    """Labelled pictures with class names, templates and splits that share nothing with the training shards."""
    return perform(context, launcher, EVAL_SETS, config, {"shards": launcher.data("shards")}, launcher.data("eval_sets"))


@dg.asset(group_name="data", owners=["team:data"], kinds={"parquet"}, deps=[eval_sets, embeddings])
def fingerprints(context: dg.AssetExecutionContext, launcher: Launcher, config: FINGERPRINT.form) -> dg.MaterializeResult:
    """Hashes, vectors and captions of the test sets: a later filter that names them (decontaminate.prints) lets nothing in that resembles a test picture."""
    inputs = {"eval_sets": launcher.data("eval_sets"), "embeddings": launcher.data("embeddings")}
    return perform(context, launcher, FINGERPRINT, config, inputs, launcher.data("fingerprints"))
