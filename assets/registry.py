"""Models in the registry: each becomes a challenger, and champion only through the gate."""

import dagster as dg

from assets.worker import menu, perform
from pipelines.choices import BASE, MODELS
from pipelines.resources import Launcher


def registered(name: str, family: str, made_by: list[str], promotion: str, after: list[list[str]]) -> dg.AssetsDefinition:
    promote = menu("promote", promotion)

    @dg.asset(
        key=["registry", name], group_name="reports", owners=["team:models"], kinds={"mlflow"}, deps=[made_by, ["evaluation", name], *after], pool="registry",
        description=f"{name} as a version in the model registry, and what the gate said about it beside the present champion.",
    )  # fmt: skip
    def register(context: dg.AssetExecutionContext, launcher: Launcher, config: promote.form) -> dg.MaterializeResult:
        inputs = {"model": launcher.data(family, name), "evaluation": launcher.data("evaluation", name)}
        return perform(context, launcher, promote, config, inputs, launcher.data("registry", name), force=True)  # the registry may have moved

    return register


# The base model comes last, so that it has to beat the others.
_others = [recipe for recipe in MODELS if recipe != BASE]
registrations = [
    *(registered(recipe, "pretrained", ["pretrained", recipe], "register_base", []) for recipe in _others),
    registered(BASE, "pretrained", ["pretrained", BASE], "register_base", [["registry", recipe] for recipe in _others]),
    registered("student", "distilled", ["distilled"], "register_student", []),
]
