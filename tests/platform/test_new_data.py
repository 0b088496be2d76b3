"""The sensor `new_data` against a real instance: assets that are really made, runs that really fail, and what the sensor asks for then."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest

from pipelines import sensors
from pipelines.definitions import defs as platform
from pipelines.partitions import TRUNK
from pipelines.sensors import new_data


class World:
    """Snapshot, model and registry as in the platform, with versions and failures at will; and a daemon's memory of cursor and run keys."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance, self.version, self.breaks, self.cursor = instance, "A", "", None
        self.keys: list[str] = []

        @dg.asset(group_name="data")
        def snapshot() -> dg.MaterializeResult:
            return dg.MaterializeResult(data_version=dg.DataVersion(self.version))

        @dg.asset(key=["pretrained", "lit"], group_name="models", deps=[snapshot])
        def model() -> dg.MaterializeResult:
            return self._made("model", f"trained on {self.version}")

        @dg.asset(key=["registry", "lit"], group_name="reports", deps=[model])
        def registered() -> dg.MaterializeResult:
            return self._made("registry", "the verdict")

        jobs = {"data": dg.AssetSelection.groups("data"), "retrain": dg.AssetSelection.groups("models", "reports"), "data_to_model": dg.AssetSelection.all()}
        self.defs = dg.Definitions([snapshot, model, registered], jobs=[dg.define_asset_job(name, what, tags=TRUNK) for name, what in jobs.items()])

    def _made(self, name: str, version: str) -> dg.MaterializeResult:
        if self.breaks == name:
            raise dg.Failure(f"{name} fails")
        return dg.MaterializeResult(data_version=dg.DataVersion(version))

    def run(self, job: str, **tags: str) -> None:
        self.defs.resolve_job_def(job).execute_in_process(instance=self.instance, raise_on_error=False, tags=tags)

    def new_snapshot(self, version: str) -> None:
        self.version = version
        self.run("data")

    def tick(self) -> str:
        """What one tick says; what it asks for is run as the daemon does, once per run key."""
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor, definitions=self.defs)
        found: Any = new_data(context)
        if isinstance(found, dg.SkipReason):
            return str(found.skip_message)
        self.cursor = found.cursor
        for request in found.run_requests or []:
            if request.run_key not in self.keys:
                self.keys.append(request.run_key)
                self.run("retrain", **{"dagster/run_key": request.run_key}, **request.tags)
        return f"asked for {len(found.run_requests or [])}" if found.run_requests else str(found.skip_reason.skip_message)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(sensors, "PAUSE_S", -60.0)  # a second attempt at once
    with dg.DagsterInstance.ephemeral() as instance:
        yield World(instance)


def test_a_new_version_is_trained_once_and_a_rebuild_with_the_same_bytes_never(world: World) -> None:
    assert world.tick() == "there is no snapshot yet"
    world.new_snapshot("A")
    assert world.tick() == "asked for 1"
    assert world.tick() == "the models stand on A"
    world.new_snapshot("A")  # the same bytes, made again
    assert world.tick() == "the snapshot is still A"
    assert len(world.keys) == 1


def test_a_version_that_comes_back_is_trained_again(world: World) -> None:
    said = []
    for version in ("A", "B", "A"):
        world.new_snapshot(version)
        said += [world.tick(), world.tick()]
    assert said == [word for version in "ABA" for word in ("asked for 1", f"the models stand on {version}")]
    assert len(set(world.keys)) == 3


def test_a_failed_retraining_is_asked_for_again_and_not_for_ever(world: World) -> None:
    world.breaks = "registry"  # the last step: the model itself stands on the new snapshot
    world.new_snapshot("A")
    assert [world.tick() for _ in range(3)] == ["asked for 1"] * 3
    assert world.tick().startswith("3 retrainings on A failed")
    assert world.tick() == "the snapshot is still A"
    world.breaks = ""
    world.new_snapshot("B")
    assert [world.tick(), world.tick()] == ["asked for 1", "the models stand on B"]


def test_between_two_attempts_there_is_a_pause(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "PAUSE_S", 1800.0)
    world.breaks = "model"
    world.new_snapshot("A")
    assert world.tick() == "asked for 1"
    assert world.tick() == "attempt 1 failed; the next one in 30 min"
    assert len(world.keys) == 1


def test_the_same_tick_twice_as_after_a_crash_of_the_daemon_is_one_run(world: World) -> None:
    world.breaks = "model"
    world.new_snapshot("A")
    before = world.cursor
    assert world.tick() == "asked for 1"
    world.cursor = before  # the daemon died before it wrote the cursor
    assert world.tick() == "asked for 1"
    assert len(world.keys) == 1


def test_the_main_job_leaves_nothing_to_ask_unless_it_fails_after_the_snapshot(world: World) -> None:
    world.run("data_to_model")
    assert world.tick() == "the models stand on A"
    world.version, world.breaks = "B", "registry"
    world.run("data_to_model")
    world.breaks = ""
    assert world.tick() == "asked for 1"


def test_nothing_is_asked_while_a_main_job_is_not_over_and_not_after_a_person_cancelled(world: World) -> None:
    world.new_snapshot("A")
    running = dg.DagsterRun(job_name="data_to_model", run_id=dg._core.utils.make_new_run_id(), tags=TRUNK, status=dg.DagsterRunStatus.STARTED)
    world.instance.add_run(running)
    assert world.tick() == "a run that makes the snapshot or the models is not over yet"
    world.instance.delete_run(running.run_id)
    world.breaks = "model"
    assert world.tick() == "asked for 1"
    (run,) = world.instance.get_runs(dg.RunsFilter(tags={"dagster/run_key": world.keys[0]}))
    world.instance.delete_run(run.run_id)
    world.instance.add_run(run.with_status(dg.DagsterRunStatus.CANCELED))
    assert world.tick() == "the retraining on A was cancelled; launch 'retrain' by hand"


def test_the_sensor_looks_at_the_models_and_reports_of_the_platform() -> None:
    graph = platform.resolve_asset_graph()
    trained = {key for key in graph.get_all_asset_keys() if graph.get(key).group_name in sensors.TRAINED}
    assert trained == set(platform.resolve_job_def("retrain").asset_layer.selected_asset_keys)
    assert new_data.job_name == "retrain"
