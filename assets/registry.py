"""Models in the registry: each becomes a challenger, and champion only through the gate."""

import dagster as dg

from assets.distilled import STUDENTS
from assets.worker import menu, perform
from pipelines.choices import BASE, MODELS
from pipelines.resources import Launcher


def registered(family: str, recipe: str, promotion: str, after: list[list[str]]) -> dg.AssetsDefinition:
    promote = menu("promote", promotion)

    @dg.asset(
        key=["registry", recipe], group_name="reports", owners=["team:models"], kinds={"mlflow"}, deps=[[family, recipe], ["evaluation", recipe], *after], pool="registry",
        description=f"{recipe} as a version in the model registry, and what the gate said about it beside the present champion.",
    )  # fmt: skip
    def register(context: dg.AssetExecutionContext, launcher: Launcher, config: promote.form) -> dg.MaterializeResult:
        inputs = {"model": launcher.data(family, recipe), "evaluation": launcher.data("evaluation", recipe)}
        return perform(context, launcher, promote, config, inputs, launcher.data("registry", recipe), force=True)  # the registry may have moved

    return register


# The base model comes last, so that it has to beat the others.
_others = [recipe for recipe in MODELS if recipe != BASE]
registrations = [
    *(registered("pretrained", recipe, "register_base", []) for recipe in _others),
    registered("pretrained", BASE, "register_base", [["registry", recipe] for recipe in _others]),
    *(registered("distilled", recipe, "register_student", [["registry", before] for before in STUDENTS[:place]]) for place, recipe in enumerate(STUDENTS)),
]
