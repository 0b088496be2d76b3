"""How one asset stands for many results: adaptation methods x test sets, recipes of pre-training, and sources that params.yaml may add at any time."""

import dagster as dg

from pipelines.choices import chosen, listed
from vlm_core.run import recipes

CHOSEN_METHODS = listed("transfer")
METHODS = [*CHOSEN_METHODS, *(name for name in recipes("transfer") if name not in CHOSEN_METHODS)]  # a new method is here by existing
DATASETS = list(chosen("eval-sets")[1].model_dump()["datasets"])

cells = dg.MultiPartitionsDefinition({"dataset": dg.StaticPartitionsDefinition(DATASETS), "method": dg.StaticPartitionsDefinition(METHODS)})

crawl_batches = dg.DynamicPartitionsDefinition(name="crawl_batches")  # kept in step with params.yaml by the sensor `crawl_sources`

# Recipes of pre-training, in two sets, so that all that two cores train are one click: those of params.yaml first.
RECIPES = sorted(recipes("pretrain"), key=lambda name: name not in listed("pretrain"))
tiny = dg.StaticPartitionsDefinition([name for name in RECIPES if name.endswith(("_tiny", "_packaged"))])
papers = dg.StaticPartitionsDefinition([name for name in RECIPES if not name.endswith(("_tiny", "_packaged"))])

FORMATS = {name: chosen("export-data", name)[1] for name in listed("export-data")}
formats = dg.StaticPartitionsDefinition(list(FORMATS))

# One run materialises the whole grid that params.yaml lists: a range from its first to its last cell, in each dimension.
WHOLE_GRID = {
    "dagster/asset_partition_range_start": f"{DATASETS[0]}|{CHOSEN_METHODS[0]}",
    "dagster/asset_partition_range_end": f"{DATASETS[-1]}|{CHOSEN_METHODS[-1]}",
}

# Jobs that write the same folders share one value of this tag, and infra/dagster limits each value to one run: the others wait in the queue.
TRUNK = {"stage": "trunk"}
