"""Between runs: what is asked again, when, and what a broken network of ours must not cost."""

import json
import socket
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import pyarrow.parquet as pq
import pytest

from tests.data.loopback import Web, body, png, web
from tests.data.test_download import download, settings, write_pairs
from vlm_core.data.crawl.config import RETRY_HOURS, Download
from vlm_core.data.fetch.outage import NO_ROUTE, Outage
from vlm_core.data.web.politeness import domain_of
from vlm_core.data.fetch.schedule import due_at, host_of, mixed
from vlm_core.errors import ConfigError, ServiceError
from vlm_core.run import run

pytestmark = pytest.mark.flow
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


def statuses(rows):
    return {url.rpartition("/")[2]: row["status"] for (url, _), row in rows.items()}


def test_a_second_run_asks_only_for_what_may_have_passed_is_new_or_is_gone_and_equal_answers_give_equal_bytes(tmp_path):
    busy, pictures = {"on": True}, {f"/{n}.png": body(png(seed=n)) for n in range(8)}

    def sometimes(request):
        body(b"", status=503)(request) if busy["on"] else body(png(seed=50))(request)

    with web({**pictures, "/busy.png": sometimes}) as site:
        pairs = [(f"http://a.test{path}", f"number {path}") for path in ("/0.png", "/1.png", "/2.png", "/3.png", "/busy.png", "/gone.png")]
        config = settings(site)
        rows, report = download(tmp_path, write_pairs(tmp_path / "pairs", *pairs), config)
        assert statuses(rows) == {"0.png": "ok", "1.png": "ok", "2.png": "ok", "3.png": "ok", "busy.png": "http_5xx", "gone.png": "http_4xx"}
        busy["on"], asked = False, []

        def again(config=config):
            site.asked.clear()
            rows, report = download(tmp_path, write_pairs(tmp_path / "pairs", *pairs), config)
            asked[:] = sorted(path for _, path in site.asked)
            return rows, report

        rows, second = again()
        assert (statuses(rows)["busy.png"], asked, second.metrics["asked"]) == ("ok", ["/busy.png"], 1)
        assert again()[1].data_version == second.data_version
        assert asked == []
        pairs.append(("http://a.test/4.png", "a new one"))
        again()
        assert asked == ["/4.png"]
        (tmp_path / "images" / "00000.tar").write_bytes(bytes(1024))
        rows, third = again()
        assert asked == sorted([*(f"/{n}.png" for n in range(5)), "/busy.png"])
        again(settings(site, image_size=64))
        assert "/0.png" in asked, "pictures of another size must be made again"
        assert run("download", config, {"pairs": tmp_path / "pairs"}, tmp_path / "fresh").data_version == third.data_version
    kept = pq.read_table(tmp_path / "images.run/fetch/addresses.parquet").to_pylist()
    assert {row["url"].rpartition("/")[2]: (row["status"], row["runs"], row["due_at"]) for row in kept if row["status"] != "ok"} == {"gone.png": ("http_4xx", 1, None)}


@pytest.mark.parametrize(
    ("record", "hours"),
    [
        ({"status": "http_5xx", "runs": 1}, 0), ({"status": "http_5xx", "runs": 2}, 1), ({"status": "http_5xx", "runs": 3}, 3), ({"status": "http_5xx", "runs": 4}, 7),
        ({"status": "http_5xx", "runs": 5}, None), ({"status": "deadline", "runs": 2}, 6), ({"status": "http_4xx", "runs": 1}, None),
        ({"status": "robots_denied", "runs": 1}, None), ({"status": "robots_denied", "runs": 2, "passing": True}, 1),
        ({"status": "http_429", "runs": 1, "pause_s": 7200.0}, 2), ({"status": "http_429", "runs": 4, "pause_s": 7200.0}, 7), ({"status": "ok", "runs": 0}, None),
    ],
)  # fmt: skip
def test_an_address_is_due_at_once_and_then_after_the_hours_of_its_error_doubled_each_time_but_never_before_its_host_wants(record, hours):
    found = due_at({**record, "fetched_at": NOW.isoformat()}, RETRY_HOURS, 5)
    assert found == (None if hours is None else NOW + timedelta(hours=hours))


def test_a_retry_setting_names_known_failures_only():
    with pytest.raises(ConfigError, match="Found the status 'http_6xx' in retry"):
        Download.read({"retry": {"http_6xx": 1}})
    with pytest.raises(ConfigError, match="-1"):
        Download.read({"retry": {"http_5xx": -1}})


def test_within_a_run_what_fails_is_asked_again_in_later_passes_and_a_lasting_failure_is_not(tmp_path):
    calls = Counter()

    def flaky(request):
        calls["flaky"] += 1
        body(png(seed=1))(request) if calls["flaky"] == 3 else body(b"busy", status=429, Retry_After="0")(request)

    with web({"/flaky.png": flaky, "/ok.png": body(png(seed=2)), "/down.png": body(b"", status=500)}) as site:
        pairs = write_pairs(tmp_path / "pairs", *((f"http://a.test/{name}.png", name) for name in ("flaky", "ok", "down", "gone")))
        config = settings(site).merged({"fetch": {"retries": 3, "retry_wait_s": 0.01}})
        rows, _ = download(tmp_path, pairs, config)
        assert statuses(rows) == {"flaky.png": "ok", "ok.png": "ok", "down.png": "http_5xx", "gone.png": "http_4xx"}
        assert [site.count(f"/{name}.png") for name in ("flaky", "ok", "down", "gone")] == [3, 1, 4, 1]


def test_a_site_without_a_turn_is_put_off_until_the_others_are_done(tmp_path):
    with web({f"/{n}.png": body(png(seed=n)) for n in range(20)}) as site:
        names = ["a.test", *(f"b{n}.test{n}" for n in range(10))]
        crowd = [(f"http://a.test/{n}.png", f"slow {n}") for n in range(10)]
        others = [(f"http://{name}/{n + 10}.png", name) for n, name in enumerate(names[1:])]
        config = settings(site, *names[1:], threads=2).merged({"network": {"rate_per_s": 8.0, "burst": 1, "patience_s": 0.0, "optouts": {"robots_txt": False}}})
        rows, _ = download(tmp_path, write_pairs(tmp_path / "pairs", *crowd, *others), config)
        hosts = [host for host, _ in site.asked]
    assert Counter(row["status"] for row in rows.values()) == {"ok": 20}
    assert len(hosts) == 20, "every address was asked once"
    assert hosts[-5:] == ["a.test"] * 5, "two threads that wait for a.test would have kept the others back"


def test_sites_are_spread_evenly_over_the_list_whatever_their_sizes():
    urls = [f"http://pics.big.org/{n}" for n in range(900)] + [f"http://small{n % 10}.net/{n}" for n in range(100)]
    order = mixed(urls)
    assert sorted(order) == sorted(urls)
    assert order == mixed(reversed(urls))
    for begin in range(0, 1000, 100):
        part = Counter(domain_of(host_of(url)) for url in order[begin : begin + 100])
        assert abs(part["big.org"] - 90) <= 2
        assert max(count for site, count in part.items() if site != "big.org") <= 2


# ---------------------------------------------------------------- our own network


def test_the_run_stops_when_the_network_is_down_and_loses_nothing(tmp_path):
    names = [f"pics{n}.example{n}" for n in range(30)]
    with socket.socket() as deaf, socket.socket() as first:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        port = deaf.getsockname()[1]
        first.connect(("127.0.0.1", port))  # fills the queue: the kernel drops whoever comes next
        site = Web({})
        site.address = f"127.0.0.1:{port}"
        config = settings(site, *names).merged({"network": {"connect_timeout_s": 0.3, "optouts": {"page_robots": False}}})
        pairs = write_pairs(tmp_path / "pairs", *((f"http://{name}/{n}.png", f"number {n}") for n, name in enumerate(names)))
        begin = time.monotonic()
        with pytest.raises(ServiceError, match=r"connect_timeout \d+ among the last \d+ answers, over \d+ domains") as caught:
            download(tmp_path, pairs, config)
        assert caught.value.exit_code == 10
        assert time.monotonic() - begin < 20
        assert not (tmp_path / "images").exists()
    with web({f"/{n}.png": body(png(seed=n)) for n in range(30)}) as site:
        rows, _ = download(tmp_path, pairs, settings(site, *names).merged({"network": {"optouts": {"page_robots": False}}}))
    assert Counter(row["status"] for row in rows.values()) == {"ok": 30}


def test_an_outage_is_many_failures_of_our_side_over_many_sites_and_nothing_less():
    def seen(answers):
        outage = Outage()
        return [bool(outage.sees(*answer)) for answer in answers]

    dns = [(f"{n}.org", "dns_timeout", "") for n in range(20)]
    assert seen(dns).index(True) == 19
    assert seen([(f"{n}.org", "connect_refused", NO_ROUTE) for n in range(20)])[-1]
    assert not any(seen([("one.org", "connect_timeout", "")] * 60)), "one dead site is no outage"
    assert not any(seen([(f"{n}.org", "dns_nxdomain", "") for n in range(60)])), "dead links are no outage"
    assert not any(seen([answer for pair in zip(dns, [("a.org", "ok", "")] * 20, strict=True) for answer in pair]))
    assert seen([("a.org", "ok", "")] * 40 + dns + [(f"x{n}.org", "dns_timeout", "") for n in range(30)])[-1], "it may begin later"


def test_a_list_of_which_all_may_pass_ends_so_that_the_same_command_may_succeed_later(tmp_path):
    with web({"/p.png": body(b"", status=503)}) as site:
        pairs = write_pairs(tmp_path / "pairs", ("http://a.test/p.png", "p"))
        with pytest.raises(ServiceError, match="'http_5xx': 1"):
            download(tmp_path, pairs, settings(site))
        site.routes["/p.png"] = body(png())
        rows, _ = download(tmp_path, pairs, settings(site))
    assert statuses(rows) == {"p.png": "ok"}
    assert json.loads((tmp_path / "images.run/result.json").read_text())["counts"] == {"in": 1, "ok": 1}
