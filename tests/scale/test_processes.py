"""The verbs over ranges in several processes: the same data versions as in one, and a process killed with kill -9 costs nothing but its range."""

import os
from pathlib import Path

import psutil
import pytest

from tests.data.loopback import web
from tests.scale import verbs
from vlm_core.data.filter import duplicate_ranges

pytestmark = pytest.mark.flow


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("VLM_ENGINE", raising=False)


def test_fetching_by_ranges_of_sites_gives_the_same_bytes_and_asks_no_address_twice(tmp_path, monkeypatch):
    pairs, routes = verbs.write_addresses(tmp_path / "pairs")
    with web(routes) as site:
        alone = verbs.fetch(pairs, site, tmp_path / "alone")
        asked = sorted(site.asked)
        site.asked.clear()
        monkeypatch.setenv("VLM_ENGINE", "processes:2")
        spread = verbs.fetch(pairs, site, tmp_path / "spread")
        assert sorted(site.asked) == asked  # robots.txt of every site once, every address once
    assert alone.counts == spread.counts == {"in": 48, "ok": 42, "failed.http_4xx": 6}
    assert alone.data_version == spread.data_version
    assert verbs.listing(tmp_path / "alone") == verbs.listing(tmp_path / "spread")


def test_duplicates_by_ranges_are_the_same_decisions(tmp_path, monkeypatch):
    inputs = verbs.write_copies(tmp_path / "inputs")
    alone = verbs.deduplicate(inputs, tmp_path / "alone")
    monkeypatch.setenv("VLM_ENGINE", "processes:2")
    monkeypatch.setattr(duplicate_ranges, "CLUSTERS", 1)
    spread = verbs.deduplicate(inputs, tmp_path / "spread")
    assert alone.counts["dropped.near_duplicate"] >= 8
    assert alone.counts["dropped.semantic_duplicate"] > 0
    assert alone.counts == spread.counts
    assert alone.data_version == spread.data_version


def test_a_fetching_process_killed_with_kill_9_is_replaced_and_loses_and_repeats_nothing(tmp_path, monkeypatch):
    pairs, routes = verbs.write_addresses(tmp_path / "pairs")
    with web(routes) as site:
        alone = verbs.fetch(pairs, site, tmp_path / "alone")
        monkeypatch.setenv("VLM_ENGINE", "processes:2")
        ranges = tmp_path / "spread.run" / "state"
        mine = psutil.Process()
        with verbs.killer(
            lambda process: process.parent() == mine and "spawn_main" in " ".join(process.cmdline()), lambda: any(ranges.glob("fetch-*/0*"))
        ) as killed:
            spread = verbs.fetch(pairs, site, tmp_path / "spread")
        assert len(killed) == 1
        assert killed[0] != os.getpid()
    assert alone.data_version == spread.data_version
