"""What runs because something happened."""

import os

import dagster as dg

from pipelines.choices import batches
from pipelines.partitions import crawl_batches

SNAPSHOT = dg.AssetKey("snapshot")


@dg.sensor(
    job_name="retrain", minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.STOPPED,
    description="Retrains when the snapshot's data version changes. A rebuild with the same bytes asks for nothing.",
)  # fmt: skip
def new_data(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """The cursor is the version that was seen last; the run key is the version, so that no version is trained on twice by this sensor."""
    made = context.instance.get_latest_materialization_event(SNAPSHOT)
    version = (made.asset_materialization.tags or {}).get("dagster/data_version") if made and made.asset_materialization else None
    if not version:
        return dg.SkipReason("there is no snapshot yet")
    if version == context.cursor:
        return dg.SkipReason(f"the snapshot is still {version}")
    request = dg.RunRequest(run_key=f"snapshot-{version}", tags={"trigger": "new_data", "snapshot": version})
    return dg.SensorResult(run_requests=[request], cursor=version)


@dg.sensor(
    minimum_interval_seconds=30, default_status=dg.DefaultSensorStatus.RUNNING,
    description="Keeps the partitions of crawl_batches in step with the sources that params.yaml lists. It runs nothing.",
)  # fmt: skip
def crawl_sources(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    listed, known = set(batches()), set(context.instance.get_dynamic_partitions(crawl_batches.name or ""))
    new, gone = sorted(listed - known), sorted(known - listed)
    if not new and not gone:
        return dg.SkipReason(f"params.yaml lists {len(listed)} further sources, and all are known")
    requests = [*([crawl_batches.build_add_request(new)] if new else []), *([crawl_batches.build_delete_request(gone)] if gone else [])]
    return dg.SensorResult(dynamic_partitions_requests=requests)


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.FAILURE,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Closes the MLflow runs of a Dagster run that failed or was killed.",
)
def close_failed(context: dg.RunStatusSensorContext) -> None:
    _close(context, "FAILED")


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.CANCELED, default_status=dg.DefaultSensorStatus.RUNNING, description="Closes the MLflow runs of a cancelled Dagster run."
)
def close_cancelled(context: dg.RunStatusSensorContext) -> None:
    _close(context, "KILLED")


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.SUCCESS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Closes the MLflow run that stands for a finished Dagster run.",
)
def close_finished(context: dg.RunStatusSensorContext) -> None:
    _close(context, "FINISHED")


def _close(context: dg.RunStatusSensorContext, status: str) -> None:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        from vlm_core.track import end_runs  # late: MLflow takes two seconds to import

        context.log.info(f"closed {end_runs(uri, context.dagster_run.run_id, status)} MLflow runs as {status}")
