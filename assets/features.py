"""The base model's features of the test sets, computed once."""

import dagster as dg

from assets.eval_sets import eval_sets
from assets.pretrained import MODEL
from assets.worker import menu, perform
from pipelines.choices import BASE
from pipelines.resources import Launcher

FEATURES = menu("features")


@dg.asset(**MODEL, kinds={"torch"}, deps=[eval_sets, ["pretrained", BASE]])
def features(context: dg.AssetExecutionContext, launcher: Launcher, config: FEATURES.form) -> dg.MaterializeResult:
    """Embeddings of all pictures and class texts of the test sets by the base model; every adaptation method reads them."""
    inputs = {"model": launcher.data("pretrained", BASE), "eval_sets": launcher.data("eval_sets")}
    return perform(context, launcher, FEATURES, config, inputs, launcher.data("features"))
