"""What runs because something happened."""

import json
import os
import time
from collections.abc import Mapping
from typing import NamedTuple

import dagster as dg

from pipelines.choices import batches
from pipelines.partitions import TRUNK, crawl_batches
from pipelines.resources import Launcher

SNAPSHOT = dg.AssetKey("snapshot")
TRAINED = {"models", "reports"}  # the groups that `retrain` makes
ATTEMPTS, PAUSE_S = 3, 1800.0  # for one change of the data
UNFINISHED = [getattr(dg.DagsterRunStatus, name) for name in ("QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING")]


class Change(NamedTuple):
    """The sensor's cursor: a version of the snapshot, the event that brought it, how often a retraining was asked for, and whether nothing is left to ask."""

    version: str = ""
    event: int = 0
    asked: int = 0
    settled: bool = False

    @property
    def run_key(self) -> str:
        """Of the latest request: a version that comes back, and a further attempt, are runs of their own; the same tick twice is not."""
        return f"snapshot-{self.version}-{self.event}-{self.asked}"


@dg.sensor(
    job_name="retrain", minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.STOPPED,
    description="Retrains when the snapshot's data version changed and the models do not stand on it yet. A rebuild with the same bytes asks for nothing.",
)  # fmt: skip
def new_data(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Asks once per change, and up to three times if the retraining fails; never while a run of the main jobs may still bring the models up to date."""
    instance = context.instance
    records = instance.fetch_materializations(SNAPSHOT, limit=1).records
    version = _tags(records[0].event_log_entry).get("dagster/data_version") if records else None
    if not version:
        return dg.SkipReason("there is no snapshot yet")
    change = Change(*json.loads(context.cursor)) if (context.cursor or "").startswith("[") else Change()
    if change.version != version:
        change = Change(version, records[0].storage_id)
    if change.settled:
        return dg.SkipReason(f"the snapshot is still {version}")
    if instance.get_runs(dg.RunsFilter(statuses=UNFINISHED, tags=TRUNK), limit=1):
        return dg.SkipReason("a run that makes the snapshot or the models is not over yet")
    if context.repository_def and not _behind(instance, context.repository_def):
        return _answer(change._replace(settled=True), f"the models stand on {version}")
    return _ask(instance, change)


def _ask(instance: dg.DagsterInstance, change: Change) -> dg.SensorResult:
    """The next attempt, now or after a pause, unless a person or a number of failures spoke against it."""
    records = instance.get_run_records(dg.RunsFilter(tags={"dagster/run_key": change.run_key}), limit=1) if change.asked else []
    if records and records[0].dagster_run.status == dg.DagsterRunStatus.CANCELED:
        return _answer(change._replace(settled=True), f"the retraining on {change.version} was cancelled; launch 'retrain' by hand")
    if change.asked >= ATTEMPTS:
        return _answer(change._replace(settled=True), f"{ATTEMPTS} retrainings on {change.version} failed; read the last one, then launch 'retrain' by hand")
    left = (records[0].end_time or 0) + PAUSE_S - time.time() if records else 0
    if left > 0:
        return _answer(change, f"attempt {change.asked} failed; the next one in {left / 60:.0f} min")
    change = change._replace(asked=change.asked + 1)
    tags = {"trigger": "new_data", "snapshot": change.version, "attempt": str(change.asked)}
    return dg.SensorResult(run_requests=[dg.RunRequest(run_key=change.run_key, tags=tags)], cursor=json.dumps(change))


def _answer(change: Change, why: str) -> dg.SensorResult:
    return dg.SensorResult(skip_reason=why, cursor=json.dumps(change))


def _behind(instance: dg.DagsterInstance, repository: dg.RepositoryDefinition) -> list[str]:
    """Models and reports that were never made, or that read another version of the snapshot, or of a model, than the one that is there."""
    graph = repository.asset_graph
    trained = {key for key in graph.get_all_asset_keys() if graph.get(key).group_name in TRAINED}
    tags = {key: _tags(instance.get_latest_materialization_event(key)) for key in (*trained, SNAPSHOT)}
    return [
        key.to_user_string()
        for key in trained
        for parent in graph.get(key).parent_keys & set(tags)
        if tags[key].get(f"dagster/input_data_version/{parent.to_user_string()}") != tags[parent].get("dagster/data_version")
    ]


def _tags(made: dg.EventLogEntry | None) -> Mapping[str, str]:
    return (made.asset_materialization.tags or {}) if made and made.asset_materialization else {}


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


@dg.sensor(
    job_name="data", minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.STOPPED,
    description="Starts the job data after a takedown or its withdrawal, so that shards, tables and indexes are made without what was taken down.",
)  # fmt: skip
def new_takedown(context: dg.SensorEvaluationContext, launcher: Launcher) -> dg.SensorResult | dg.SkipReason:
    """The cursor is `N DIGEST`: how often this sensor asked, and the list that it saw last (none at all: no digest). N makes the run key of a list that comes back another one."""
    from vlm_core.data.lineage.tombstones import load  # late: it brings pyarrow

    asked, _, seen = (context.cursor or "0 ").partition(" ")
    digest = load(launcher.home()).digest
    if digest == seen:
        return dg.SkipReason(f"the list of takedowns is still {digest[:12] or 'empty'}")
    number = int(asked) + 1
    request = dg.RunRequest(run_key=f"takedowns-{number}-{digest[:12]}", tags={"trigger": "new_takedown", "takedowns": digest[:12] or "none"})
    return dg.SensorResult(run_requests=[request], cursor=f"{number} {digest}")


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
