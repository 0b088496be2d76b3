"""The code location: every asset, check, job, schedule and sensor, bound to the resources of this deployment."""

import dagster as dg

from assets import (
    captions,
    checks,
    comparison,
    distilled,
    eval_sets,
    evaluation,
    features,
    filtered,
    images,
    network,
    pretrained,
    registry,
    report,
    shards,
    sources,
    sweep,
    transferred,
    upkeep,
)  # fmt: skip
from pipelines import jobs, schedules, sensors
from pipelines.resources import deployment

defs = dg.Definitions(
    assets=[
        sources.pages, sources.crawl_batches, sources.candidate_pairs, images.images, images.embeddings, filtered.filtered, captions.captions, shards.shards, shards.snapshot,
        eval_sets.eval_sets, eval_sets.fingerprints, report.report, *pretrained.models, features.features, transferred.transferred, distilled.distilled, *evaluation.evaluations, *registry.registrations,
        *network.ASSETS, pretrained.pretrained_recipes, pretrained.pretrained_papers, comparison.comparison, sweep.sweep, upkeep.exports, upkeep.takedown_proof, upkeep.catalog_compact,
    ],
    asset_checks=checks.CHECKS,
    jobs=[jobs.data_to_model, jobs.data_only, jobs.crawl_batch, jobs.crawl_all_batches, jobs.fingerprint, jobs.filter_network, jobs.retrain, jobs.pretrain_recipes, jobs.pretrain_papers, jobs.compare_pretraining, jobs.sweep_filters, jobs.export, jobs.prove_takedowns, jobs.compact],
    schedules=[schedules.nightly, schedules.nightly_sources, schedules.weekly_compaction],
    sensors=[sensors.new_data, sensors.new_takedown, sensors.crawl_sources, sensors.close_failed, sensors.close_cancelled, sensors.close_finished],
    resources=deployment(),
)  # fmt: skip
