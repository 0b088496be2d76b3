"""One evaluator for every model."""

from collections.abc import Iterator

import dagster as dg

from assets.distilled import STUDENTS
from assets.worker import menu, perform
from pipelines.choices import BASE, MODELS
from pipelines.resources import Launcher

EVALUATE = menu("evaluate")


def evaluation(name: str, family: str, made_by: list[str]) -> dg.AssetsDefinition:
    @dg.asset(
        key=["evaluation", name], group_name="reports", owners=["team:models"], kinds={"torch"}, deps=["shards", "eval_sets", made_by, *(["features"] if name == BASE else [])],
        output_required=name != "twin",
        description=f"Zero-shot, retrieval and linear probe of {name} with 95 % intervals and per-sample results, each under a protocol card.",
    )  # fmt: skip
    def evaluate(context: dg.AssetExecutionContext, launcher: Launcher, config: EVALUATE.form) -> Iterator[dg.MaterializeResult]:
        if name == "twin" and not launcher.at(launcher.data(family, name)).exists():
            context.log.warning("There is no twin: this student was distilled with distil.twin=false, so nothing says what its teacher was worth; skipped.")
            return
        inputs = {"model": launcher.data(family, name), "shards": launcher.data("shards"), "eval_sets": launcher.data("eval_sets")}
        if name == BASE:  # its pictures are encoded already
            inputs["features"] = launcher.data("features")
        yield perform(context, launcher, EVALUATE, config, inputs, launcher.data("evaluation", name))

    return evaluate


evaluations = [
    *(evaluation(recipe, "pretrained", ["pretrained", recipe]) for recipe in MODELS),
    *(evaluation(student, "distilled", ["distilled"]) for student in STUDENTS),
]
