"""Further sources as partitions: a line in params.yaml appears in Dagster, runs alone, and its pairs join the others."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from tests.data.loopback import png
from tests.platform.conftest import ROOT
from vlm_core.data.sample import make_uid

# In a process of its own, because the definitions read params.yaml when they are imported.
ACT = """
import json, sys
import dagster as dg
from pipelines.definitions import defs
from pipelines.sensors import crawl_sources
instance = dg.DagsterInstance.from_ref(dg.DagsterInstance.local_temp(sys.argv[1]).get_ref())
said = {}
for word in sys.argv[2:]:
    what, _, which = word.partition(":")
    if what == "tick":
        found = crawl_sources(dg.build_sensor_context(instance=instance, definitions=defs))
        for request in getattr(found, "dynamic_partitions_requests", None) or []:
            change = instance.add_dynamic_partitions if "Add" in type(request).__name__ else lambda name, keys: [instance.delete_dynamic_partition(name, key) for key in keys]
            change(request.partitions_def_name, request.partition_keys)
        said["partitions"] = sorted(instance.get_dynamic_partitions("crawl_batches"))
    if what == "batch":
        done = defs.resolve_job_def("crawl_batch").execute_in_process(instance=instance, partition_key=which, raise_on_error=False)
        said[which] = done.success
        said["why"] = [str(event.step_failure_data.user_failure_data) for event in done.all_events if event.is_step_failure]
    if what == "job":
        keys = [dg.AssetKey(name) for name in ("pages", "candidate_pairs", "images")]
        done = defs.resolve_job_def(which).execute_in_process(instance=instance, asset_selection=keys, raise_on_error=False)
        said[which] = done.success or [str(event.step_failure_data.user_failure_data) for event in done.all_events if event.is_step_failure]
        made = {event.asset_key.path[-1]: event.materialization.metadata for event in done.get_asset_materialization_events()}
        said["made from"] = sorted(made["candidate_pairs"]["made from"].value["inputs"]) if "candidate_pairs" in made else []
    if what == "all":
        done = defs.resolve_job_def("crawl_all_batches").execute_in_process(instance=instance, raise_on_error=False)
        said["all"] = [str(event.step_failure_data.user_failure_data.description) for event in done.all_events if event.is_step_failure]
        said["made"] = sorted(event.materialization.partition for event in done.all_events if event.event_type_value == "ASSET_MATERIALIZATION")
print(json.dumps(said))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    (root / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "pictures").mkdir()
    for name in ("fox", "owl"):
        (tmp_path / "pictures" / f"{name}.png").write_bytes(png(seed=len(name) * ord(name[0])))
        (tmp_path / "pictures" / f"{name}.txt").write_text(f"the {name}")
    (tmp_path / "first.csv").write_text("url,caption\nhttp://a.test/1.png,both know this\nhttp://a.test/2.png,one\n")
    (tmp_path / "second.csv").write_text("bild,wort,seite\nhttp://A.test:80/1.png,both know this,http://p.test/\nhttp://a.test/3.png,zwei,\n")
    return root


def choose(project: Path, **verbs: Any) -> None:
    here = project.parent
    first = {"folder_crawl": {"source": {"path": str(here / "pictures")}}}
    tables = {f"table_crawl@{name}": {"source": {"path": str(here / f"{name}.csv")}} for name in ("first", "second") if name in verbs.get("batches", ())}
    text = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"crawl": {**first, **tables}, "extract": {"demo_extract": verbs.get("extract", {})}}
    text["download"] = {"web_download": {"processes": 1, "network": {"hosts": {"a.test": "127.0.0.1:9"}}, "fetch": {"retries": 0}}}
    (project / "params.yaml").write_text(yaml.safe_dump(text, sort_keys=False))


def act(project: Path, *words: str) -> dict[str, Any]:
    env = {**os.environ, "VLM_ROOT": str(project), "VLM_HOME": str(project / ".platform"), "DAGSTER_HOME": str(project), "PYTHONPATH": str(ROOT)}
    env.pop("MLFLOW_TRACKING_URI", None)
    (project / "dagster").mkdir(exist_ok=True)
    words = (sys.executable, "-W", "ignore", "-c", ACT, str(project / "dagster"), *words)
    done = subprocess.run(words, cwd=project, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def pairs(project: Path) -> dict[str, Any]:
    rows = pq.read_table(project / "data/candidate_pairs/pairs.parquet").to_pylist()
    return {row["uid"]: row for row in rows}


@pytest.mark.slow
def test_a_source_in_params_yaml_becomes_a_partition_that_runs_alone_and_its_pairs_join_the_others(project: Path) -> None:
    choose(project)
    assert act(project, "tick", "job:data_to_model") == {"partitions": [], "data_to_model": True, "made from": ["pages"]}
    assert {row["caption"] for row in pairs(project).values()} == {"the fox", "the owl"}
    columns = {"columns_of": {"second": {"url": "bild", "caption": "wort", "page_url": "seite"}}}
    choose(project, batches=["first", "second"], extract=columns)
    said = act(project, "tick", "batch:second", "batch:first", "job:data_to_model")
    assert said == {
        "partitions": ["first", "second"],
        "second": True,
        "first": True,
        "why": [],
        "data_to_model": True,
        "made from": ["pages", "pages.first", "pages.second"],
    }
    found = pairs(project)
    assert len(found) == 5
    both = found[make_uid("http://a.test/1.png", "both know this")]
    assert both["pages"] == [
        {"page_url": "", "source": "first/table:first.csv", "place": "1"},
        {"page_url": "http://p.test/", "source": "second/table:second.csv", "place": "1"},
    ]
    status = pq.read_table(project / "data/images/status.parquet", columns=["url", "status"]).to_pylist()
    assert {row["status"] for row in status if row["url"].startswith("local://pictures/")} == {"ok"}
    assert {row["status"] for row in status if row["url"].startswith("http")} == {"connect_refused"}
    choose(project, batches=["first"])
    said = act(project, "batch:second", "tick", "job:data")
    assert (said["partitions"], said["second"], said["made from"]) == (["first"], False, ["pages", "pages.first"])
    assert len(pairs(project)) == 4


@pytest.mark.slow
def test_one_job_crawls_every_source_that_the_file_lists_and_a_bad_one_keeps_nobody_back(project: Path) -> None:
    choose(project, batches=["first", "second"])
    assert act(project, "all") == {"all": [], "made": ["first", "second"]}
    (project.parent / "first.csv").unlink()
    said = act(project, "all")
    assert said["made"] == ["second"]
    assert len(said["all"]) == 1
    assert "Found 1 of 2 sources that failed (first)" in said["all"][0]


def test_a_source_whose_name_cannot_be_a_folder_is_refused_by_name(project: Path) -> None:
    text = yaml.safe_load((project / "params.yaml").read_text())
    for name in ("table_crawl@a/../b", "table_crawl@copy", "table_crawl@Big-One"):
        text["crawl"] = {"demo_crawl": {}, name: {}}
        (project / "params.yaml").write_text(yaml.safe_dump(text, sort_keys=False))
        code = "from pipelines.choices import batches; batches()"
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "VLM_ROOT": str(project), "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
        )
        assert "ConfigError" in done.stderr
        assert name in done.stderr
