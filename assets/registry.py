"""Models in the registry: each becomes a challenger, and champion only through the gate."""

import dagster as dg

from assets.worker import Menu, menu, perform
from pipelines.choices import BASE, MODELS
from pipelines.resources import Launcher


def registered(name: str, family: str, made_by: list[str], promote: Menu) -> dg.AssetsDefinition:
    @dg.asset(
        key=["registry", name], group_name="reports", owners=["team:models"], kinds={"mlflow"}, deps=[made_by, ["evaluation", name], "shards", "eval_sets"], pool="registry",
        description=f"{name} as a version in the model registry, and what the gate said about it beside the present champion.",
    )  # fmt: skip
    def register(context: dg.AssetExecutionContext, launcher: Launcher, config: promote.form) -> dg.MaterializeResult:
        inputs = {
            "model": launcher.data(family, name),
            "evaluation": launcher.data("evaluation", name),
            "shards": launcher.data("shards"),
            "eval_sets": launcher.data("eval_sets"),
        }
        return perform(context, launcher, promote, config, inputs, launcher.data("registry", name), force=True)  # the registry may have moved

    return register


def _named(recipe: str) -> Menu:
    """The base model is vlm-base; a model of another kind has a name of its own, because no protocol card fits both."""
    return menu("promote", "register_base") if recipe == BASE else menu("promote", "register_base", f"name=vlm-{recipe.replace('_', '-')}")


registrations = [
    *(registered(recipe, "pretrained", ["pretrained", recipe], _named(recipe)) for recipe in MODELS),
    registered("student", "distilled", ["distilled"], menu("promote", "register_student")),
]
