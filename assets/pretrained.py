"""Vision-language models trained on the snapshot: one asset per recipe that params.yaml lists."""

import dagster as dg

from assets.shards import snapshot
from assets.worker import menu, perform
from pipelines.choices import MODELS
from pipelines.resources import Launcher

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


models = [pretrained(recipe) for recipe in MODELS]
