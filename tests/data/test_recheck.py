"""Addresses that gave a picture are looked at again: an opt-out that comes later binds, a picture that is gone goes."""

import json
import os
from datetime import UTC, datetime, timedelta

import pyarrow.parquet as pq
import pytest

from tests.data.loopback import body, png, web
from tests.data.test_download import download, settings, stored, write_pairs
from tests.data.test_page_rules import by_host, pairs_of
from vlm_core.data.fetch.recheck import due

pytestmark = pytest.mark.flow


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


def statuses(rows):
    return {url.rpartition("/")[2]: row["status"] for (url, _), row in rows.items()}


def redirect(request):
    body(b"", status=302, Location="/robots/deny.png")(request)


def test_what_is_due_is_looked_at_without_its_bytes_and_an_optout_or_a_loss_takes_the_sample_out(tmp_path):
    names = ("same", "tag", "gone", "gone410", "busy", "forbidden", "moved", "robots", "noheads")
    with web({f"/{name}.png": body(png(seed=n)) for n, name in enumerate(names)}) as site:
        pairs = write_pairs(tmp_path / "pairs", *((f"http://a.test/{name}.png", name) for name in names))
        first, _ = download(tmp_path, pairs, settings(site))
        assert set(statuses(first).values()) == {"ok"}
        site.routes |= {
            "/tag.png": body(png(seed=1), X_Robots_Tag="noai"), "/gone410.png": body(b"", status=410), "/busy.png": body(b"", status=503),
            "/forbidden.png": body(b"", status=403), "/moved.png": redirect, "/robots/deny.png": body(png()),
            "/robots.txt": body(b"User-agent: *\nDisallow: /robots", "text/plain"),
            "/noheads.png": lambda request: body(b"", status=405 if request.command == "HEAD" else 200)(request),
        }  # fmt: skip
        del site.routes["/gone.png"]
        for memory in (tmp_path / "images.run/fetch/origins").iterdir():
            os.utime(memory, (0, 0))  # a day has passed for robots.txt
        site.asked.clear()
        rows, report = download(tmp_path, pairs, settings(site, recheck_after_days=1e-9))
        gets, heads = sorted(path for _, path in site.asked), sorted(site.heads)
        site.asked.clear()
        site.heads.clear()
        later, third = download(tmp_path, pairs, settings(site))
    left = {"same": "ok", "tag": "optout_header", "gone": "http_4xx", "gone410": "http_4xx", "busy": "ok", "forbidden": "ok", "noheads": "ok"}
    assert statuses(rows) == {f"{name}.png": status for name, status in (left | {"moved": "robots_denied", "robots": "robots_denied"}).items()}
    assert gets == ["/forbidden.png", "/gone.png", "/gone410.png", "/noheads.png", "/robots.txt"], "GET only where HEAD was refused"
    assert heads == sorted(f"/{name}.png" for name in names if name != "robots")
    assert report.metrics["withdrawn"] == 5
    evidence = {row["url"].rpartition("/")[2]: (row["http_status"], row["rights_evidence"]) for row in rows.values() if row["status"] != "ok"}
    assert evidence["tag.png"] == (None, "X-Robots-Tag: noai")
    assert evidence["gone410.png"] == (410, None)
    assert evidence["moved.png"][1] == "robots.txt disallows http://a.test/robots/deny.png for VLMPlatformBot (Disallow: /robots)"
    assert {json.loads(data)["url"].rpartition("/")[2] for name, data in stored(tmp_path / "images").items() if name.endswith(".json")} == {
        "same.png", "busy.png", "forbidden.png", "noheads.png",
    }  # fmt: skip
    assert (statuses(later), site.asked, site.heads, third.data_version) == (statuses(rows), [], [], report.data_version)
    kept = {row["url"].rpartition("/")[2]: json.loads(row["record"]) for row in pq.read_table(tmp_path / "images.run/fetch/addresses.parquet").to_pylist()}
    assert {name for name, record in kept.items() if record.get("checked_at")} == {"same.png", "noheads.png"}


def test_a_page_that_objects_later_takes_its_picture_back(tmp_path):
    refusing = set()
    with web({"/robots.txt": by_host(refusing), "/0.png": body(png(seed=0)), "/1.png": body(png(seed=1))}) as site:
        given = pairs_of(
            tmp_path / "pairs",
            ("http://a.test/0.png", "table:list.csv", "http://page.test/private/x.html"),
            ("http://a.test/1.png", "table:list.csv", "http://page.test/x.html"),
        )
        first, _ = download(tmp_path, given, settings(site, "page.test"))
        refusing.add("page.test")
        for memory in (tmp_path / "images.run/fetch/origins").iterdir():
            os.utime(memory, (0, 0))
        same, _ = download(tmp_path, given, settings(site, "page.test"))
        later, _ = download(tmp_path, given, settings(site, "page.test", recheck_after_days=1e-9))
    assert statuses(first) == statuses(same) == {"0.png": "ok", "1.png": "ok"}
    assert statuses(later) == {"0.png": "robots_denied", "1.png": "ok"}


def test_the_time_counts_from_the_last_look():
    def at(days, **more):
        return {"status": "ok", "fetched_at": (datetime.now(UTC) - timedelta(days=days)).isoformat(), **more}

    seen = (datetime.now(UTC) - timedelta(days=2)).isoformat()
    state = {"http://a/old": at(31), "http://a/new": at(29), "http://a/seen": at(90, checked_at=seen), "http://a/no": {**at(90), "status": "http_4xx"}}
    assert due(state, state, timedelta(days=30)) == ["http://a/old"]
