"""The jobs. The main one materialises everything in one launch, the grid of methods x test sets included."""

import dagster as dg

from assets.sources import crawl_every_batch
from pipelines.partitions import TRUNK, WHOLE_GRID, crawl_batches, formats, papers, tiny

BATCHES = dg.AssetSelection.assets("crawl_batches")  # each source is a run of its own
FINGERPRINTS = dg.AssetSelection.assets("fingerprints")  # of test sets that are there, for the filter of a later run
SEARCHES = dg.AssetSelection.groups("searches")  # hours, on demand
UPKEEP = dg.AssetSelection.groups("upkeep")  # beside the flow
NETWORK = dg.AssetSelection.groups("filter_network")  # what a later run may take as its scorer

# No job bears the name of an asset: Dagster keeps one book of names, and its servers load nothing when two things share one.
# Each step only waits for the process of its verb, which uses all cores itself: steps side by side would share two cores
# and pay a second interpreter with the definitions each, so they run one after the other inside the run's own process.
data_to_model = dg.define_asset_job(
    "data_to_model", selection=dg.AssetSelection.all() - BATCHES - FINGERPRINTS - SEARCHES - UPKEEP - NETWORK, executor_def=dg.in_process_executor,
    description="From crawled pages to registered, adapted and distilled models. What has not changed is reused.",
    tags={**WHOLE_GRID, **TRUNK, "dagster/max_runtime": str(6 * 3600)},
)  # fmt: skip

data_only = dg.define_asset_job(
    "data", selection=dg.AssetSelection.groups("data") - BATCHES - FINGERPRINTS, executor_def=dg.in_process_executor,
    description="From crawled pages to the recorded snapshot and the test sets.", tags={**TRUNK, "dagster/max_runtime": str(6 * 3600)},
)  # fmt: skip

crawl_batch = dg.define_asset_job(
    "crawl_batch", selection=BATCHES, partitions_def=crawl_batches, executor_def=dg.in_process_executor,
    description="Crawls one further source of params.yaml: a partition. The next run of candidate_pairs reads it beside the others.",
    tags={"dagster/max_runtime": str(24 * 3600), "stage": "batch"},
)  # fmt: skip


@dg.job(
    executor_def=dg.in_process_executor, tags={"dagster/max_runtime": str(24 * 3600), "stage": "batch"},
    description="Crawls every further source that params.yaml lists when it runs, also one that the form of crawl_batches does not know yet.",
)  # fmt: skip
def crawl_all_batches() -> None:
    crawl_every_batch()


fingerprint = dg.define_asset_job(
    "fingerprint", selection=FINGERPRINTS, executor_def=dg.in_process_executor,
    description="Fingerprints of the test sets that are there, so that what is crawled from now on can be kept clear of them (decontaminate.prints).",
    tags={"dagster/max_runtime": str(6 * 3600), "stage": "fingerprint"},
)  # fmt: skip

filter_network = dg.define_asset_job(
    "filter_network", selection=NETWORK, executor_def=dg.in_process_executor,
    description="Trains a data filtering network on a trusted subset of what is there and registers it as vlm-dfn. A later run of 'data' may score with it (scorer.kind: model).",
    tags={"dagster/max_runtime": str(24 * 3600), "stage": "network"},
)  # fmt: skip

retrain = dg.define_asset_job(
    "retrain", selection=dg.AssetSelection.groups("models", "reports"), executor_def=dg.in_process_executor,
    description="Models, adaptations, reports and registry from the snapshot that is there.", tags={**WHOLE_GRID, **TRUNK, "dagster/max_runtime": str(6 * 3600)},
)  # fmt: skip

pretrain_recipes = dg.define_asset_job(
    "pretrain_recipes", selection=dg.AssetSelection.assets("pretrained_recipes"), partitions_def=tiny, executor_def=dg.in_process_executor,
    description="Trains the snapshot by any recipe that two cores train: a partition each, all of them with one click on All.",
    tags={"dagster/max_runtime": str(24 * 3600), "stage": "recipes"},
)  # fmt: skip

pretrain_papers = dg.define_asset_job(
    "pretrain_papers", selection=dg.AssetSelection.assets("pretrained_papers"), partitions_def=papers, executor_def=dg.in_process_executor,
    description="Trains the snapshot by any recipe in its paper's size: a partition each. They want GPUs; one that this machine cannot hold fails at once and says what would.",
    tags={"dagster/max_runtime": str(24 * 3600), "stage": "papers"},
)  # fmt: skip

compare_pretraining = dg.define_asset_job(
    "compare_pretraining", selection=dg.AssetSelection.assets("comparison"), executor_def=dg.in_process_executor,
    description="Recipes at equal pairs and seeds against plain CLIP: a leaderboard. Runs that are there already are reused.",
    tags={"dagster/max_runtime": str(48 * 3600), "stage": "comparison"},
)  # fmt: skip

sweep_filters = dg.define_asset_job(
    "sweep_filters", selection=dg.AssetSelection.assets("sweep"), executor_def=dg.in_process_executor,
    description="Recipes times data filters within a budget, against plain CLIP on the unfiltered crawl.",
    tags={"dagster/max_runtime": str(48 * 3600), "stage": "sweep"},
)  # fmt: skip

export = dg.define_asset_job(
    "export", selection=dg.AssetSelection.assets("exports"), partitions_def=formats, executor_def=dg.in_process_executor,
    description="The snapshot for others: a partition for each format.", tags={"dagster/max_runtime": str(6 * 3600), "stage": "export"},
)  # fmt: skip

prove_takedowns = dg.define_asset_job(
    "prove_takedowns", selection=dg.AssetSelection.assets("takedown_proof"), executor_def=dg.in_process_executor,
    description="Looks for everything that was taken down in every live product, and says what is left.",
    tags={"dagster/max_runtime": str(6 * 3600), "stage": "proof"},
)  # fmt: skip

compact = dg.define_asset_job(
    "compact", selection=dg.AssetSelection.assets("catalog_compact"), executor_def=dg.in_process_executor,
    description="Merges the small fragments of the catalog.", tags={"dagster/max_runtime": str(6 * 3600), "stage": "compact"},
)  # fmt: skip
