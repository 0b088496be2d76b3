"""The quiet that a host asks for: beyond one address, beyond one run, in the crawler, and by Crawl-delay. And robots.txt that cannot be read whole."""

import gzip
import json
import time
from datetime import UTC, datetime, timedelta
from functools import partial

import pyarrow.parquet as pq
import pytest

from tests.data.loopback import QUICK, body, png, web
from tests.data.test_crawl import crawl, page, robots
from tests.data.test_crawl import settings as crawl_settings
from tests.data.test_download import download, settings, write_pairs
from vlm_core.data.fetch.fetch import Fetched, Fetcher
from vlm_core.data.fetch.ledger import Ledger
from vlm_core.data.fetch.schedule import pauses
from vlm_core.data.web.politeness import NotAsked, Politeness, Sites

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


@pytest.mark.flow
def test_a_pause_of_a_host_holds_for_all_its_addresses_in_the_next_run_too_and_what_was_not_asked_has_not_failed(tmp_path):
    busy = {"on": True}

    def picture(request):
        body(b"", status=429, Retry_After="3600")(request) if busy["on"] else body(png(seed=3))(request)

    with web({"/1": picture, "/2": picture, "/3": picture, "/ok": body(png())}) as site:
        config = settings(site, "b.test", threads=1).merged({"network": {"optouts": {"robots_txt": False}}})
        pairs = [("http://a.test/1", "one"), ("http://a.test/2", "two"), ("http://b.test/ok", "three")]
        rows, _ = download(tmp_path, write_pairs(tmp_path / "pairs", *pairs), config)
        assert sorted(row["status"] for row in rows.values()) == ["http_429", "http_429", "ok"]
        assert len([path for host, path in site.asked if host == "a.test"]) == 1
        kept = {row["url"]: (row["runs"], json.loads(row["record"])) for row in pq.read_table(tmp_path / "images.run/fetch/addresses.parquet").to_pylist()}
        failed = [kept[url] for url in ("http://a.test/1", "http://a.test/2")]
        assert sorted((runs, record["asked"], record["attempts"]) for runs, record in failed) == [(0, False, 0), (1, True, 1)]
        assert all(3_500 < record["pause_s"] <= 3_600 for _, record in failed)
        busy["on"] = False
        site.asked.clear()
        rows, _ = download(tmp_path, write_pairs(tmp_path / "pairs", *pairs, ("http://a.test/3", "a new one")), config)
        assert [path for host, path in site.asked if host == "a.test"] == [], "the host wants no request for an hour"
        assert {url.rpartition("/")[2]: row["status"] for (url, _), row in rows.items()} == {"1": "http_429", "2": "http_429", "3": "http_429", "ok": "ok"}


def test_what_is_left_of_a_pause_is_told_by_its_host():
    asked = (NOW - timedelta(seconds=30)).isoformat()
    records = [
        {"url": "http://a.org/1", "pause_s": 100.0, "fetched_at": asked}, {"url": "http://a.org/2", "pause_s": 20.0, "fetched_at": asked},
        {"url": "http://b.org/", "final_url": "http://c.org/x", "pause_s": 31.0, "fetched_at": asked}, {"url": "http://d.org/", "fetched_at": asked},
    ]  # fmt: skip
    assert pauses(records, NOW) == {"a.org": 70.0, "c.org": 1.0}


def test_a_pause_outlives_the_table_of_sites(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.prepare()
    ledger.finish(Fetched("http://b.test/1", "http_429", pause_s=200.0, fetched_at=datetime.now(UTC).isoformat()))
    ledger.keep_quiet({"a.test": time.time() + 100, "old.test": time.time() - 1})
    ledger.write_todo(["http://a.test/1", "http://b.test/2", "http://old.test/1"])
    polite = Politeness(1.0, 1, 1, 60.0, Sites(tmp_path / "sites.slots"))
    assert [round(polite.quiet_s(host), -1) for host in ("a.test", "b.test", "old.test")] == [100, 200, 0]
    with pytest.raises(NotAsked, match="not asked: the host wants a pause of more than 60 s"), polite.turn("a.test"):
        pass


def test_a_crawl_delay_is_not_shortened_and_one_that_a_run_cannot_wait_for_leaves_the_rest_unasked():
    now = [1000.0]
    polite = Politeness(rate_per_s=10, burst=5, connections=1, max_quiet_s=60, clock=lambda: now[0])
    polite.crawl_delay("a.example.org", 90.0)
    polite.crawl_delay("b.example.org", 5.0)  # another origin of the domain asks for less
    with polite.turn("a.example.org"):
        pass
    now[0] += 10
    with pytest.raises(NotAsked, match="its Crawl-delay is 90 s") as caught, polite.turn("b.example.org"):
        pass
    assert caught.value.pause_s == 80.0
    now[0] += 80
    with polite.turn("b.example.org"):
        pass


def test_a_robots_txt_that_asks_for_quiet_is_heard(tmp_path):
    with web({"/robots.txt": body(b"", status=503, Retry_After="900"), "/p": body(png())}) as site:
        fetcher = Fetcher(site.network(), QUICK)
        found = fetcher.fetch("http://a.test/p", (tmp_path / "x").write_bytes)
        assert (found.status, found.passing, site.count("/p")) == ("robots_denied", True, 0)
        assert 890 < found.pause_s <= 900
        fetcher.close()


LONG = "User-agent: *\nDisallow: /early/\n" + "# filling\n" * 52_000


@pytest.mark.parametrize(
    ("answer", "path", "status"),
    [
        (body(LONG.encode() + b"Disallow: /\n", "text/plain"), "/early/p", "robots_denied"), (body(LONG.encode() + b"Disallow: /\n", "text/plain"), "/late", "ok"),
        (body(b"no gzip", "text/plain", Content_Encoding="gzip"), "/late", "robots_denied"), (body(b"x", "text/plain", Content_Encoding="br"), "/late", "robots_denied"),
        (body(gzip.compress(LONG.encode() * 20), "text/plain", Content_Encoding="gzip"), "/early/p", "robots_denied"),
        (body(b"User-agent: *\nDisallow: /a\n" + b"#" * (500 * 1024 - 28) + b"\nDisallow: /late", "text/plain"), "/late", "ok"),
    ],
)  # fmt: skip
def test_a_long_robots_txt_is_read_as_far_as_rfc_9309_goes_and_an_unreadable_one_refuses_for_now(tmp_path, answer, path, status):
    with web({"/robots.txt": answer, "/early/p": body(png()), "/late": body(png())}) as site:
        fetcher = Fetcher(site.network(), QUICK)
        found = fetcher.fetch(f"http://a.test{path}", (tmp_path / "x").write_bytes)
        assert (found.status, found.passing) == (status, status != "ok" and path == "/late")
        assert site.count(path) == (status == "ok")
        fetcher.close()


@pytest.mark.flow
def test_a_crawl_leaves_a_host_alone_that_asks_for_a_long_pause(tmp_path):
    with web({"/": page("/1", "/2", "http://b.test/x"), "/1": body(b"", status=429, Retry_After="3600"), "/2": page(), "/x": page()}) as site:
        config = crawl_settings(site, "b.test", stay_on=["a.test", "b.test"]).merged({"network": {"optouts": {"robots_txt": False}, "connections_per_host": 1}})
        rows, report = crawl(tmp_path, config)
        asked = [path for _, path in site.asked if path != "/robots.txt"]
    assert asked.count("/1") == 1, "asked again inside its pause"
    assert rows["/1"]["status"] == "http_429"
    assert (rows["http://b.test/x"]["status"], rows["/"]["status"]) == ("ok", "ok")
    assert "/2" not in asked or asked.index("/2") < asked.index("/1")


@pytest.mark.flow
def test_of_two_origins_of_a_host_the_longer_crawl_delay_holds_and_the_limit_of_pauses_does_not_shorten_it(tmp_path):
    at = []

    def timed(request):
        at.append(time.monotonic())
        page("/1", "/2")(request)

    with web({"/": timed, "/1": timed, "/2": timed, "/robots.txt": robots("User-agent: *\nCrawl-delay: 0.6\n")}) as site:
        config = crawl_settings(site).merged({"network": {"max_quiet_s": 0.2}})
        crawl(tmp_path, config)
    assert min(later - earlier for earlier, later in zip(at, at[1:], strict=False)) >= 0.58


@pytest.mark.fault("F9")
def test_a_clock_that_is_set_back_loses_no_answer_and_counts_none_twice(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.prepare()

    def answer(status, at):
        folder = ledger.new_pass()
        ledger.shard_done(folder, 0, {"http://a.test/1": Fetched("http://a.test/1", status, fetched_at=at).json()})
        return folder

    answer("http_5xx", "2030-01-01T00:00:00.000+00:00")
    ledger.settle(ledger.state(), {"http_5xx": 1.0}, 5)
    assert (ledger.state()["http://a.test/1"]["runs"], ledger.state()["http://a.test/1"]["attempts"]) == (1, 1), "its pass is still there, and counted"
    for folder in ledger.passes.iterdir():
        (folder / "00000.jsonl").unlink()
        folder.rmdir()
    ledger.prepare()
    assert answer("ok", "2026-01-01T00:00:00.000+00:00").name == "0001"
    found = ledger.state()["http://a.test/1"]
    assert (found["status"], found["attempts"], found["runs"]) == ("ok", 2, 1)
