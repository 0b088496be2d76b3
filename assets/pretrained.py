"""Vision-language models trained on the snapshot: an asset per recipe that params.yaml lists, and a partition for every recipe there is."""

import dagster as dg
from pydantic import Field

from assets.shards import snapshot
from assets.worker import Menu, menu, perform
from pipelines import launchpad
from pipelines.choices import MODELS, chosen
from pipelines.partitions import papers, tiny
from pipelines.resources import Launcher
from vlm_core.config import Config

MODEL = {"group_name": "models", "owners": ["team:models"]}


def pretrained(recipe: str) -> dg.AssetsDefinition:
    pretrain = menu("pretrain", recipe)

    @dg.asset(
        **MODEL, key=["pretrained", recipe], kinds={"lightning", "torch"}, deps=[snapshot], pool="train",
        description=f"A vision-language model trained on the snapshot by the recipe {recipe}: weights, settings and card in one folder.",
    )  # fmt: skip
    def train(context: dg.AssetExecutionContext, launcher: Launcher, config: pretrain.form) -> dg.MaterializeResult:
        return perform(context, launcher, pretrain, config, {"shards": launcher.data("shards")}, launcher.data("pretrained", recipe))

    return train


class Changes(Config):
    """What a run over recipes changes in each of them."""

    changes: list[str] = Field(default=[], description="settings laid over every recipe, as --set takes them, such as fit.samples=40000")


def by_recipe(name: str, partitions: dg.PartitionsDefinition, description: str) -> dg.AssetsDefinition:
    """A partition for every recipe of a set; models of both sets lie in one folder."""

    @dg.asset(
        name=name, group_name="searches", owners=["team:models"], kinds={"lightning", "torch"}, deps=[snapshot], pool="train", partitions_def=partitions,
        description=description,
    )  # fmt: skip
    def train(context: dg.AssetExecutionContext, launcher: Launcher, config: launchpad.form(Changes())) -> dg.MaterializeResult:
        recipe = context.partition_key
        settings = chosen("pretrain", recipe)[1].but(*launchpad.read(Changes, config).changes)
        what = Menu("pretrain", recipe, settings, launchpad.form(settings))
        return perform(context, launcher, what, what.form(), {"shards": launcher.data("shards")}, launcher.data("pretrained_recipes", recipe))

    return train


pretrained_recipes = by_recipe(
    "pretrained_recipes", tiny, "The snapshot's model by any recipe that two cores train: a partition each; all of them are a click on All."
)
pretrained_papers = by_recipe(
    "pretrained_papers", papers, "The same in the papers' sizes: a recipe that this machine cannot hold is refused with what would fit."
)


models = [pretrained(recipe) for recipe in MODELS]
