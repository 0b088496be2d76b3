"""The verbs on a local Ray cluster of several processes (extra `ray`): the data versions of one process, also when a worker is killed with kill -9."""

import json
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.data.loopback import web
from tests.scale import verbs
from vlm_core.data.filter import duplicate_ranges
from vlm_core.errors import BudgetSpent
from vlm_core.models import caption_ranges, picture_ranges
from vlm_core.ranges import work

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def on_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Call `setenv("VLM_ENGINE", "ray")` after the run that is compared with. Each test has a cluster of its own, whose workers have loaded nothing yet."""
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("VLM_ENGINE", raising=False)
    yield monkeypatch
    import ray

    ray.shutdown()


def is_ray_worker(process: psutil.Process) -> bool:
    return process.cmdline()[:1] == ["ray::do"]  # at work on a range; not an agent of Ray itself: the node dies with it


def test_fetching_on_ray_gives_the_same_bytes_though_a_worker_is_killed_with_kill_9(on_ray, tmp_path):
    pairs, routes = verbs.write_addresses(tmp_path / "pairs")
    with web(routes) as site:
        alone = verbs.fetch(pairs, site, tmp_path / "alone")
        on_ray.setenv("VLM_ENGINE", "ray")
        state = tmp_path / "spread.run" / "state"
        with verbs.killer(is_ray_worker, lambda: any(state.glob("fetch-*/0*"))) as killed:  # one site of three is done
            spread = verbs.fetch(pairs, site, tmp_path / "spread")
    assert len(killed) == 1
    assert alone.counts["ok"] == 42
    assert alone.counts == spread.counts
    assert alone.data_version == spread.data_version


def test_embedding_on_ray_gives_the_same_bytes_though_a_worker_is_killed_with_kill_9(on_ray, small_set, tmp_path):
    on_ray.setattr(picture_ranges, "RANGE", 16)  # five ranges
    on_ray.setenv("VLM_ENGINE", "ray")
    state = tmp_path / "spread.run" / "state"
    with verbs.killer(is_ray_worker, lambda: any(state.glob("trunk-*/0*"))) as killed:
        spread = verbs.embed(small_set, tmp_path / "spread")
    assert len(killed) == 1
    assert spread.data_version == json.loads((small_set / "embeddings.run" / "result.json").read_text())["data_version"]


def test_rewording_on_ray_gives_the_same_captions(on_ray, small_set, tmp_path):
    alone = verbs.recaption(small_set, tmp_path / "alone")
    on_ray.setattr(caption_ranges, "RANGE", 8)  # two ranges
    on_ray.setenv("VLM_ENGINE", "ray")
    spread = verbs.recaption(small_set, tmp_path / "spread")
    assert alone.counts["rewritten"] == 16
    assert alone.data_version == spread.data_version


def test_looking_for_duplicates_on_ray_gives_the_same_decisions_though_a_worker_is_killed_with_kill_9(on_ray, tmp_path):
    inputs = verbs.write_copies(tmp_path / "inputs")
    alone = verbs.deduplicate(inputs, tmp_path / "alone")
    on_ray.setattr(duplicate_ranges, "CLUSTERS", 1)
    on_ray.setenv("VLM_ENGINE", "ray")
    state = tmp_path / "spread.run" / "state"
    with verbs.killer(is_ray_worker, lambda: any(state.glob("near_*/job.json"))) as killed:
        spread = verbs.deduplicate(inputs, tmp_path / "spread")
    assert len(killed) == 1
    assert alone.counts["dropped.near_duplicate"] >= 8
    assert alone.data_version == spread.data_version


def test_what_a_worker_on_ray_says_arrives_as_it_was_said(on_ray, tmp_path):
    on_ray.setenv("VLM_ENGINE", "ray")
    (tmp_path / "notes").mkdir()
    with pytest.raises(BudgetSpent, match="Found a budget of 0"):
        work(tmp_path / "squares", "tests.range_work:squares", {"notes": str(tmp_path / "notes"), "refuse_at": 3}, total=10, size=3)
