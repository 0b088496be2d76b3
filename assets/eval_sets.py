"""Labelled test sets."""

from pathlib import Path

import dagster as dg

from assets.images import embeddings
from assets.shards import shards
from assets.worker import menu, perform
from pipelines.choices import mixed
from pipelines.resources import Launcher

EVAL_SETS, FINGERPRINT = menu("eval-sets"), menu("fingerprint")


def knowing(launcher: Launcher) -> dict[str, Path]:
    """The embeddings as input, if their scorer is a network that was trained on pictures of ours."""
    from vlm_core.data.eval_sets.known import FILE  # late: it brings pyarrow

    folder = launcher.data("embeddings")
    return {"embeddings": folder} if (launcher.at(folder) / FILE).exists() else {}


@dg.asset(group_name="data", owners=["team:data"], kinds={"image", "parquet"}, deps=[shards, embeddings])
def eval_sets(context: dg.AssetExecutionContext, launcher: Launcher, config: EVAL_SETS.form) -> dg.MaterializeResult:
    """Labelled pictures with class names, templates and splits that share nothing with the training shards, those of mixes among them, nor with what a filter network was trained on."""
    inputs = {"shards": launcher.data("shards"), **knowing(launcher), **mixed()}
    return perform(context, launcher, EVAL_SETS, config, inputs, launcher.data("eval_sets"))


@dg.asset(group_name="data", owners=["team:data"], kinds={"parquet"}, deps=[eval_sets, embeddings])
def fingerprints(context: dg.AssetExecutionContext, launcher: Launcher, config: FINGERPRINT.form) -> dg.MaterializeResult:
    """Hashes, vectors and captions of the test sets: a later filter that names them (decontaminate.prints) lets nothing in that resembles a test picture."""
    inputs = {"eval_sets": launcher.data("eval_sets"), "embeddings": launcher.data("embeddings")}
    return perform(context, launcher, FINGERPRINT, config, inputs, launcher.data("fingerprints"))
