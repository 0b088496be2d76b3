"""Vision-language models trained on the snapshot: an asset per recipe that params.yaml lists, and a partition for every recipe there is."""

import dagster as dg
from pydantic import Field

from assets.shards import snapshot
from assets.worker import Menu, menu, perform
from pipelines import launchpad
from pipelines.choices import MODELS, chosen
from pipelines.partitions import pretraining
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


@dg.asset(
    group_name="searches", owners=["team:models"], kinds={"lightning", "torch"}, deps=[snapshot], pool="train", partitions_def=pretraining,
    description="The snapshot's model by any recipe: a partition each, a backfill for many. Recipes in a paper's size are refused where the machine is too small.",
)  # fmt: skip
def pretrained_recipes(context: dg.AssetExecutionContext, launcher: Launcher, config: launchpad.form(Changes())) -> dg.MaterializeResult:
    recipe = context.partition_key
    settings = chosen("pretrain", recipe)[1].but(*launchpad.read(Changes, config).changes)
    what = Menu("pretrain", recipe, settings, launchpad.form(settings))
    return perform(context, launcher, what, what.form(), {"shards": launcher.data("shards")}, launcher.data("pretrained_recipes", recipe))


models = [pretrained(recipe) for recipe in MODELS]
