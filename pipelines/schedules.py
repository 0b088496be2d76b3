"""What runs by the clock. Off by default; switch it on under Automation in the UI."""

from collections.abc import Iterator

import dagster as dg


@dg.schedule(
    job_name="data_to_model", cron_schedule="0 2 * * *", execution_timezone="UTC", default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Every night at two: crawl again, and retrain if the snapshot changed; unchanged stages are reused.",
)  # fmt: skip
def nightly(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
    night = context.scheduled_execution_time.strftime("%Y-%m-%d")
    yield dg.RunRequest(run_key=f"nightly-{night}", tags={"trigger": "nightly"})


@dg.schedule(
    job_name="crawl_all_batches", cron_schedule="0 0 * * *", execution_timezone="UTC", default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Every night at twelve: crawl all further sources of params.yaml again, so that `nightly` reads what they hold now.",
)  # fmt: skip
def nightly_sources(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
    night = context.scheduled_execution_time.strftime("%Y-%m-%d")
    yield dg.RunRequest(run_key=f"sources-{night}", tags={"trigger": "nightly_sources"})


@dg.schedule(
    job_name="compact", cron_schedule="0 4 * * 0", execution_timezone="UTC", default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Every Sunday at four: merge the small fragments of the catalog.",
)  # fmt: skip
def weekly_compaction(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
    week = context.scheduled_execution_time.strftime("%G-W%V")
    yield dg.RunRequest(run_key=f"compact-{week}", tags={"trigger": "weekly_compaction"})
