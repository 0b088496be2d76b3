"""A smaller student of the base model, and its twin that had no teacher."""

import dagster as dg

from assets.pretrained import MODEL
from assets.shards import snapshot
from assets.worker import menu, perform
from pipelines.choices import BASE
from pipelines.resources import Launcher

DISTIL = menu("distil")
STUDENTS = ["student", *(["twin"] if DISTIL.settings.model_dump()["twin"] else [])]


@dg.asset(**MODEL, kinds={"lightning", "torch"}, deps=[snapshot, ["pretrained", BASE]], pool="train")
def distilled(context: dg.AssetExecutionContext, launcher: Launcher, config: DISTIL.form) -> dg.MaterializeResult:
    """A small model taught by the base model, and the same model trained alike without a teacher."""
    inputs = {"shards": launcher.data("shards"), "teacher": launcher.data("pretrained", BASE)}
    return perform(context, launcher, DISTIL, config, inputs, launcher.data("distilled"))
