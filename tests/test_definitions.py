"""The code location: what is in it, what it depends on, what it costs to load, when it acts by itself."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
import yaml

from pipelines.choices import BASE, MODELS, PARAMS, ROOT, listed, mixed
from pipelines.definitions import defs
from pipelines.partitions import CHOSEN_METHODS, DATASETS, METHODS, RECIPES, papers, tiny
from pipelines.resources import Launcher
from pipelines.schedules import nightly, nightly_sources, weekly_compaction
from pipelines.sensors import crawl_sources, new_data, new_takedown
from vlm_core.data.lineage.takedown import take_down, withdraw
from vlm_core.run import VERBS, load, recipes

GRAPH = defs.resolve_asset_graph()
EDGES = {
    "candidate_pairs": {"pages", "crawl_batches"},
    "images": {"candidate_pairs"},
    "embeddings": {"candidate_pairs", "images"},
    "filtered": {"candidate_pairs", "embeddings", "images"},
    "captions": {"filtered", "images"},
    "shards": {"captions", "filtered"},
    "snapshot": {"shards"},
    "eval_sets": {"embeddings", "shards"},
    "fingerprints": {"embeddings", "eval_sets"},
    "report": {"snapshot"},
    "exports": {"snapshot"},
    "takedown_proof": {"snapshot"},
    "catalog_compact": set(),
    "pretrained/lit_packaged": {"snapshot"},
    "pretrained/clip_tiny": {"snapshot"},
    "features": {"eval_sets", "pretrained/lit_packaged"},
    "transferred": {"eval_sets", "features", "pretrained/lit_packaged"},
    "pretrained_recipes": {"snapshot"},
    "pretrained_papers": {"snapshot"},
    "comparison": {"eval_sets", "shards"},
    "sweep": {"candidate_pairs", "captions", "embeddings", "images"},
    "distilled": {"pretrained/lit_packaged", "snapshot"},
    "evaluation/lit_packaged": {"eval_sets", "features", "pretrained/lit_packaged", "shards"},
    "evaluation/clip_tiny": {"eval_sets", "pretrained/clip_tiny", "shards"},
    "evaluation/student": {"distilled", "eval_sets", "shards"},
    "evaluation/twin": {"distilled", "eval_sets", "shards"},
    "trusted": {"candidate_pairs", "embeddings", "images"},
    "trusted_shards": {"captions", "trusted"},
    "trusted_eval_sets": {"trusted_shards"},
    "network": {"trusted_shards"},
    "network_evaluation": {"network", "trusted_eval_sets", "trusted_shards"},
    "registered_network": {"network", "network_evaluation"},
    "registry/clip_tiny": {"eval_sets", "evaluation/clip_tiny", "pretrained/clip_tiny", "shards"},
    "registry/lit_packaged": {"eval_sets", "evaluation/lit_packaged", "pretrained/lit_packaged", "shards"},
    "registry/student": {"distilled", "eval_sets", "evaluation/student", "shards"},
}


def test_loading_the_definitions_imports_neither_torch_nor_lightning_nor_mlflow() -> None:
    code = "import sys, pipelines.definitions; print(sorted({'torch', 'lightning', 'mlflow', 'dvc', 'transformers', 'img2dataset'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_code_server_can_load_the_whole_location() -> None:
    repository = defs.get_repository_def()
    repository.load_all_definitions()  # what the server does at its start: names of jobs, ops and assets must not clash
    assert {"data_to_model", "retrain", "sweep_filters"} <= set(repository.job_names)


def test_the_assets_and_their_edges_are_the_flow() -> None:
    found = {key.to_user_string(): {parent.to_user_string() for parent in GRAPH.get(key).parent_keys} for key in GRAPH.get_all_asset_keys()}
    assert found == {"pages": set(), "crawl_batches": set(), **EDGES}


def test_every_asset_has_an_owner_a_group_and_a_sentence() -> None:
    for key in GRAPH.get_all_asset_keys():
        node = GRAPH.get(key)
        assert node.owners, key
        assert node.group_name in {"data", "filter_network", "models", "reports", "searches", "upkeep"}, key
        assert node.description, key
        assert node.description.strip().endswith("."), key


def test_the_main_job_covers_every_asset_check_and_listed_cell_in_one_run() -> None:
    job = defs.resolve_job_def("data_to_model")
    steps = {key.split(".")[0] for key in job.graph.node_dict}
    apart = {
        "crawl_batches",
        "fingerprints",
        *(key.to_python_identifier() for key in GRAPH.get_all_asset_keys() if GRAPH.get(key).group_name in {"filter_network", "searches", "upkeep"}),
    }
    assert {key.to_python_identifier() for key in GRAPH.get_all_asset_keys()} - apart <= steps
    assert not apart & steps, "further sources, fingerprints, searches and upkeep are runs of their own"
    assert set(defs.resolve_job_def("fingerprint").graph.node_dict) == {"fingerprints"}
    network = {key.to_python_identifier() for key in GRAPH.get_all_asset_keys() if GRAPH.get(key).group_name == "filter_network"}
    assert set(defs.resolve_job_def("filter_network").graph.node_dict) == network
    first, last = (job.tags[f"dagster/asset_partition_range_{end}"] for end in ("start", "end"))
    parts = job.partitions_def
    assert parts is not None
    keys = parts.get_partition_keys_in_range(dg.PartitionKeyRange(first, last))
    assert sorted(keys) == sorted(f"{dataset}|{method}" for dataset in DATASETS for method in CHOSEN_METHODS)


def test_a_method_and_a_recipe_are_partitions_by_existing() -> None:
    assert set(METHODS) == set(recipes("transfer"))
    assert set(RECIPES) == set(recipes("pretrain"))
    assert set(RECIPES[: len(MODELS)]) == set(MODELS)
    sets = [list(keys.get_partition_keys()) for keys in (tiny, papers)]
    assert sorted(sets[0] + sets[1]) == sorted(RECIPES)
    assert [name for name in RECIPES if name.endswith("_tiny")] == [name for name in sets[0] if name.endswith("_tiny")]
    assert not [name for name in sets[1] if name.endswith("_tiny")]


def test_a_backfill_over_recipes_is_one_run_for_each_and_searches_are_jobs_of_their_own() -> None:
    job = defs.resolve_job_def("pretrain_recipes")
    assert job.partitions_def is not None
    assert list(job.partitions_def.get_partition_keys()) == list(tiny.get_partition_keys())
    assert defs.resolve_assets_def("pretrained_recipes").backfill_policy is None  # Dagster's default: a run per partition
    assert set(defs.resolve_job_def("compare_pretraining").graph.node_dict) == {"comparison"}
    assert set(defs.resolve_job_def("sweep_filters").graph.node_dict) == {"sweep"}


MADE_BY_ASSETS = set(VERBS) - {"compare-models"}  # called by whoever has evaluations of his own
SEARCHES = {"compare-pretraining", "sweep"}  # hours, on demand: no part of `dvc repro`
UPKEEP = {"export-data", "takedown-proof", "catalog-compact"}


def test_params_yaml_lists_known_recipes_whose_settings_resolve() -> None:
    for verb in VERBS:
        names = listed(verb)
        assert names or verb not in MADE_BY_ASSETS, f"params.yaml lists no recipe of {verb}"
        for name in names:
            assert load(verb, name, PARAMS)[0] == name


def test_test_sets_are_made_apart_from_every_snapshot_that_a_listed_recipe_mixes_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = tmp_path / "params.yaml"
    web, more = ({"mix": {"web": {"shards": folder}}} for folder in ("data/web", "data/more"))
    params.write_text(
        yaml.safe_dump({"pretrain": {"clip_tiny": {"loader": web}, "siglip_tiny": {"loader": more}}, "distil": {"clip_kd_tiny": {"student": {"loader": web}}}})
    )
    monkeypatch.setattr("pipelines.choices.PARAMS", params)
    assert mixed() == {"shards.web": Path("data/web"), "shards.pretrain.siglip_tiny.web": Path("data/more")}


def test_dvc_yaml_has_the_stages_of_the_assets_with_the_choices_of_params_yaml() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert set(stages) == MADE_BY_ASSETS - {"promote", "fingerprint"} - SEARCHES - UPKEEP  # fingerprints serve the filter of a later run
    assert stages["pretrain"]["foreach"] == MODELS
    assert stages["transfer"]["matrix"] == {"method": CHOSEN_METHODS, "dataset": DATASETS}
    assert set(stages["evaluate"]["foreach"]) == {key.path[1] for key in GRAPH.get_all_asset_keys() if key.path[0] == "evaluation"}
    for name, stage in stages.items():
        body = stage.get("do", stage)
        assert all(next(iter(out.values())) == {"persist": True} for out in body["outs"]), name
        assert all(f"--in {word}=" in body["cmd"] for word in VERBS[name].inputs), name
        assert ("lit_packaged" in body["cmd"]) == (name in {"features", "distil", "transfer"}), name
    assert BASE == "lit_packaged"


def test_the_partitions_of_crawl_batches_follow_params_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = tmp_path / "params.yaml"
    monkeypatch.setattr("pipelines.choices.PARAMS", params)
    with dg.DagsterInstance.ephemeral() as instance:
        for listed in (["table_crawl@laion", "warc_crawl"], ["warc_crawl", "site_crawl@shop"], []):
            params.write_text(yaml.safe_dump({"crawl": dict.fromkeys(["demo_crawl", *listed], {})}, sort_keys=False))
            found = crawl_sources(dg.build_sensor_context(instance=instance, definitions=defs))
            assert isinstance(found, dg.SensorResult)
            assert not found.run_requests
            for request in found.dynamic_partitions_requests or []:
                if isinstance(request, dg.AddDynamicPartitionsRequest):
                    instance.add_dynamic_partitions("crawl_batches", request.partition_keys)
                else:
                    for key in request.partition_keys:
                        instance.delete_dynamic_partition("crawl_batches", key)
            assert set(instance.get_dynamic_partitions("crawl_batches")) == {name.rpartition("@")[2] for name in listed}
            assert isinstance(crawl_sources(dg.build_sensor_context(instance=instance, definitions=defs)), dg.SkipReason)


def test_the_takedown_sensor_starts_the_data_job_once_for_every_list_of_takedowns_even_one_that_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    launcher = Launcher(root=str(tmp_path))

    def tick(cursor: str | None) -> dg.SensorResult | dg.SkipReason:
        found = new_takedown(dg.build_sensor_context(cursor=cursor), launcher=launcher)
        assert isinstance(found, dg.SensorResult | dg.SkipReason)
        return found

    assert isinstance(tick(None), dg.SkipReason)
    keys, cursor = [], None
    for _ in range(2):
        stone = take_down(tmp_path, "domain", "example.org")["takedown"][0]
        taken = tick(cursor)
        assert isinstance(taken, dg.SensorResult)
        assert isinstance(tick(taken.cursor), dg.SkipReason)
        withdraw(tmp_path, stone["takedown_id"], "a mistake")
        withdrawn = tick(taken.cursor)
        assert isinstance(withdrawn, dg.SensorResult)
        cursor = withdrawn.cursor
        keys += [request.run_key for result in (taken, withdrawn) for request in result.run_requests or []]
    assert len(keys) == len(set(keys)) == 4
    assert new_takedown.job_name == "data"


def test_the_nightly_schedule_asks_for_the_main_job_once_a_night() -> None:
    keys = []
    for minute in (0, 0, 1):
        context = dg.build_schedule_context(scheduled_execution_time=datetime(2026, 11, 23 + minute, 2, tzinfo=UTC))
        data = nightly.evaluate_tick(context)
        keys += [request.run_key for request in data.run_requests or []]
    assert keys == ["nightly-2026-11-23", "nightly-2026-11-23", "nightly-2026-11-24"]
    assert nightly.job_name == "data_to_model"


def test_what_starts_work_by_itself_is_off_by_default() -> None:
    assert nightly.default_status == nightly_sources.default_status == weekly_compaction.default_status == dg.DefaultScheduleStatus.STOPPED
    assert new_data.default_status == new_takedown.default_status == dg.DefaultSensorStatus.STOPPED


@pytest.mark.parametrize("file", ["dagster.yaml", "dagster-server.yaml"])
def test_of_the_jobs_that_write_the_same_folders_one_runs_and_the_others_wait(file: str) -> None:
    from dagster._utils.tags import TagConcurrencyLimitsCounter

    limits = yaml.safe_load((ROOT / "infra" / "dagster" / file).read_text())["concurrency"]["runs"]["tag_concurrency_limits"]
    jobs = {job.name: defs.resolve_job_def(job.name) for job in defs.jobs or [] if job.name != "crawl_all_batches"}  # of an op: each batch has a lease
    runs = {name: dg.DagsterRun(job_name=name, run_id=name, tags=dict(job.tags)) for name, job in jobs.items()}
    writes = {name: set(job.asset_layer.selected_asset_keys) for name, job in jobs.items()}
    for running, keys in writes.items():
        counter = TagConcurrencyLimitsCounter(limits, [runs[running]])
        waiting = {name for name in jobs if counter.is_blocked(runs[name])}
        assert waiting >= {name for name, others in writes.items() if keys & others}, running
        assert waiting == ({"data_to_model", "data", "retrain"} if running in {"data_to_model", "data", "retrain"} else {running})


@pytest.mark.parametrize("file", ["dagster.yaml", "dagster-server.yaml"])
def test_dagster_accepts_every_setting_that_infra_ships(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dagster._core.instance.config import dagster_instance_config

    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    settings, _ = dagster_instance_config(str(ROOT / "infra" / "dagster"), file)
    assert settings["telemetry"] == {"enabled": False}
    assert settings["run_monitoring"]["free_slots_after_run_end_seconds"] == 30
