"""Smaller students of the base model: one asset per recipe that params.yaml lists."""

import dagster as dg

from assets.pretrained import MODEL
from assets.shards import snapshot
from assets.worker import menu, perform
from pipelines.choices import BASE, listed
from pipelines.resources import Launcher

STUDENTS = listed("distil")


def distilled(recipe: str) -> dg.AssetsDefinition:
    distil = menu("distil", recipe)

    @dg.asset(
        **MODEL, key=["distilled", recipe], kinds={"lightning", "torch"}, deps=[snapshot, ["pretrained", BASE]], pool="train",
        description=f"A smaller model taught by the base model with the recipe {recipe}.",
    )  # fmt: skip
    def teach(context: dg.AssetExecutionContext, launcher: Launcher, config: distil.form) -> dg.MaterializeResult:
        inputs = {"shards": launcher.data("shards"), "teacher": launcher.data("pretrained", BASE)}
        return perform(context, launcher, distil, config, inputs, launcher.data("distilled", recipe))

    return teach


students = [distilled(recipe) for recipe in STUDENTS]
