"""The crawl verb: Scrapy against servers on loopback, killed for real, and archives."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests.data.loopback import body, moved, web
from vlm_core.data.crawl import demo_web
from vlm_core.data.crawl.config import Crawl, Extract, Network, Site, Table, Warc
from vlm_core.errors import ConfigError, MissingInput, NothingLeft
from vlm_core.recipes.data import demo_crawl
from vlm_core.run import run

pytestmark = pytest.mark.flow
START = "http://a.test/"


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


def page(*links, title="t", head=""):
    text = f"<html lang=en><title>{title}</title>{head}" + "".join(f"<a href='{link}'>x</a>" for link in links)
    return body(text.encode(), "text/html; charset=utf-8")


def robots(text, status=200):
    return body(text.encode(), "text/plain", status)


def settings(site, *names, start=(START,), stay_on=(), **more):
    return Crawl(**{"source": Site(start_urls=list(start), stay_on=list(stay_on)), "network": site.network("a.test", *names), "delay_s": 0.0, **more})


def crawl(tmp_path, config, name="pages"):
    report = run("crawl", config, {}, tmp_path / name)
    rows = pq.read_table(tmp_path / name / "pages.parquet").to_pylist()
    assert [row["url"] for row in rows] == sorted({row["url"] for row in rows})
    assert report.counts["pages"] == len(rows) == report.counts["ok"] + sum(n for key, n in report.counts.items() if key.startswith("failed."))
    return {row["url"].removeprefix("http://a.test"): row for row in rows}, report


def test_a_site_is_read_breadth_first_within_its_hosts_and_every_page_has_its_status(tmp_path):
    with web({}) as inside, web({}) as site:
        links = (
            "/a",
            "/secret/x",
            "http://b.test/b",
            "http://elsewhere.test/",
            "/gone",
            "/error",
            "/moved",
            "/out",
            "/text",
            "/huge",
            "/loop",
            "/file",
            "/a#again",
            "http://10.0.0.1/",
        )
        site.routes.update({
            "/": page(*links), "/a": page("/deep", head="<base href='http://a.test/'>"), "/deep": page(), "/secret/x": page("/secret/y"), "/b": page("http://a.test/from-b"),
            "/from-b": page(), "/error": body(b"", status=503), "/moved": moved("/a"), "/out": moved(f"http://{inside.address}/x"), "/text": body(b"x", "text/plain"),
            "/huge": body(b"<html>" + b"x" * 100_000, "text/html"), "/loop": moved("/loop?"), "/loop?": moved("/loop"), "/file": moved("file:///etc/passwd"),
            "/robots.txt": robots("User-agent: *\nDisallow: /secret/\nSitemap: http://a.test/map.xml"), "/hidden": page(),
            "/map.xml": body(b"<urlset><url><loc>http://a.test/hidden</loc></url><url><loc>http://elsewhere.test/z</loc></url></urlset>", "application/xml"),
        })  # fmt: skip
        config = settings(site, "b.test", stay_on=["a.test", "b.test", "10.0.0.1"], max_page_kb=50)
        rows, report = crawl(tmp_path, config)
        assert inside.asked == []
        assert site.count("/secret/x") == 0
        assert site.agents == {"VLMPlatformBot/0.1 (+mailto:t@example.org)"}
        assert {host for host, _ in site.asked} == {"a.test", "b.test"}
    assert {path: row["status"] for path, row in rows.items()} == {
        "/": "ok", "/a": "ok", "/deep": "ok", "http://b.test/b": "ok", "/from-b": "ok", "/hidden": "ok", "/moved": "ok", "/secret/x": "robots_denied",
        "/gone": "http_4xx", "/error": "http_5xx", "/out": "ssrf_blocked", "/text": "not_html", "/huge": "too_large", "/loop": "redirect_loop",
        "/file": "scheme_blocked", "http://10.0.0.1/": "ssrf_blocked",
    }  # fmt: skip
    assert (rows["/moved"]["final_url"], rows["/a"]["lang"]) == ("http://a.test/a", "en")
    assert "disallows http://a.test/secret/x" in rows["/secret/x"]["detail"]


def test_a_page_budget_keeps_the_same_first_pages_every_time_and_depth_is_a_limit(tmp_path):
    tree = {"/": page("/c", "/b", "/a")} | {f"/{n}": page(*(f"/{n}{m}" for m in "abc")) for n in "abc"} | {f"/{n}{m}": page() for n in "abc" for m in "abc"}
    with web(tree) as site:
        first, _ = crawl(tmp_path, settings(site, max_pages=7), "one")
        again, _ = crawl(tmp_path, settings(site, max_pages=7), "two")
        shallow, _ = crawl(tmp_path, settings(site, max_depth=1), "three")
    assert set(first) == set(again) == {"/", "/a", "/b", "/c", "/aa", "/ab", "/ac"}
    assert set(shallow) == {"/", "/a", "/b", "/c"}


@pytest.mark.parametrize(
    ("rules", "pages"),
    [(robots("User-agent: *\nDisallow: /"), 0), (robots("", 503), 0), (robots("", 404), 2), (robots("User-agent: VLMPlatformBot\nDisallow: /a"), 1)],
)
def test_robots_txt_of_a_site_is_obeyed_and_its_silence_is_a_refusal(tmp_path, rules, pages):
    with web({"/": page("/a"), "/a": page(), "/robots.txt": rules}) as site:
        if not pages:
            with pytest.raises(NothingLeft, match="robots_denied"):
                crawl(tmp_path, settings(site))
            return
        assert crawl(tmp_path, settings(site))[1].counts["ok"] == pages


def test_a_host_is_visited_with_pauses(tmp_path):
    at = []

    def timed(*links):
        answer = page(*links)

        def later(request):
            at.append(time.monotonic())
            answer(request)

        return later

    with web({"/": timed("/a", "/b", "/c"), "/a": timed(), "/b": timed(), "/c": timed()}) as site:
        crawl(tmp_path, settings(site, delay_s=0.4))
    gaps = [later - earlier for earlier, later in zip(at, at[1:], strict=False)]
    assert min(gaps) >= 0.4 * 0.5 * 0.9  # Scrapy draws each pause from half to one and a half of the setting


def test_a_host_that_asks_for_a_pause_gets_it(tmp_path):
    at = []

    def busy_once(request):
        at.append(time.monotonic())
        page()(request) if len(at) > 1 else body(b"", status=429, Retry_After="1")(request)

    with web({"/": busy_once}) as site:
        assert crawl(tmp_path, settings(site))[1].counts["ok"] == 1
    assert at[1] - at[0] >= 0.95


def test_what_cannot_work_ends_in_one_sentence(tmp_path):
    with web({}) as site, pytest.raises(ConfigError, match="source.start_urls"):
        crawl(tmp_path, settings(site, start=()))
    with pytest.raises(ConfigError, match="network.contact"):
        crawl(tmp_path, Crawl(source=Site(start_urls=[START])))
    with pytest.raises(MissingInput, match="'no.warc'"):
        crawl(tmp_path, Crawl(source=Warc(path="no.warc")))
    with pytest.raises(NothingLeft, match="ssrf_blocked"):
        crawl(tmp_path, Crawl(source=Site(start_urls=["http://127.0.0.1/", "http://localhost/"]), network=Network(contact="mailto:t@example.org"), delay_s=0))


# ---------------------------------------------------------------- kill -9


RUN = "import sys; from vlm_core.cli import main; sys.exit(main(sys.argv[1:]))"


def test_after_kill_9_the_same_command_reads_the_same_pages_and_asks_again_only_for_what_was_on_its_way(tmp_path):
    def slow(*links):
        answer = page(*links)

        def later(request):
            time.sleep(0.03)
            answer(request)

        return later

    routes = {"/": slow(*(f"/{n}" for n in range(40)))} | {f"/{n}": slow(f"/{n}/x") for n in range(40)} | {f"/{n}/x": slow() for n in range(40)}
    with web(routes) as site:
        config = settings(site, network=site.network("a.test", connections_per_host=2))
        whole = run("crawl", config, {}, tmp_path / "whole")
        site.asked.clear()
        spec = tmp_path / "spec.json"
        spec.write_text(json.dumps({"verb": "crawl", "config": config.model_dump(mode="json"), "inputs": {}}))
        words = [sys.executable, "-c", RUN, "crawl", "--spec", str(spec), "--out", str(tmp_path / "killed"), "--json"]
        stamps = set()
        for seen in (15, 60):
            process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True, cwd=Path.cwd())
            while process.poll() is None and len(site.asked) < seen:
                time.sleep(0.01)
            family = psutil.Process(process.pid).children(recursive=True)
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            assert psutil.wait_procs(family, timeout=5)[1] == [], "the spider outlived its parent"
            stamps.add((tmp_path / "killed.run" / "state" / ".spec").read_text())
        report = json.loads(subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout)
        asked = Counter(path for _, path in site.asked)
    assert stamps == {report["spec_hash"]}, "the code was edited while the test ran"
    assert report["data_version"] == whole.data_version
    assert set(asked) == {*routes, "/robots.txt"}
    assert sum(n - 1 for n in asked.values()) <= 2 * 16  # only what Scrapy had in hand at each kill (its CONCURRENT_REQUESTS)


# ---------------------------------------------------------------- archives and tables


def test_the_demo_web_gives_the_same_pairs_crawled_and_from_its_archive(tmp_path):
    archive = tmp_path / "demo.warc.gz"
    demo_web.write_warc(archive)
    config = demo_crawl()
    rows, _ = crawl(tmp_path, config, "crawled")
    archived, _ = crawl(tmp_path, Crawl(source=Warc(path=str(archive))), "archived")
    read = {url for url, row in rows.items() if row["status"] == "ok" and row["final_url"] == row["url"]}
    forbidden = {url for url in archived if url not in read}
    assert read <= set(archived)
    assert all("/private/" in url or "/members/" in url for url in forbidden), "an archive also holds what robots.txt forbids"
    pairs = {}
    for name in ("crawled", "archived"):
        run("extract", Extract(), {"pages": tmp_path / name}, tmp_path / f"{name}-pairs")
        found = pq.read_table(tmp_path / f"{name}-pairs" / "pairs.parquet").to_pylist()
        pairs[name] = {row["uid"]: row for row in found if row["page_url"] not in forbidden}
    assert len(pairs["crawled"]) > 3_000
    assert pairs["crawled"].keys() <= pairs["archived"].keys()
    only = [row for uid, row in pairs["archived"].items() if uid not in pairs["crawled"]]
    assert only == []
    assert {uid: row["captions"] for uid, row in pairs["crawled"].items()} == {uid: pairs["archived"][uid]["captions"] for uid in pairs["crawled"]}


def test_a_damaged_archive_keeps_what_came_before_the_damage(tmp_path):
    def record(url, text, kind="text/html", status="200 OK"):
        http = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nX-Robots-Tag: noai\r\nTDM-Reservation: 1\r\n\r\n{text}".encode()
        head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nContent-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
        return gzip.compress(head.encode() + http + b"\r\n\r\n")

    whole = (
        record("http://a.test/1", "<html lang=ja>") + record("http://a.test/2", "x", "image/png") + record("http://a.test/3", "gone", status="404 Not Found")
    )
    (tmp_path / "a.warc.gz").write_bytes(whole + b"\x1f\x8b not a record" * 9 + record("http://a.test/4", "<p>"))
    rows, report = crawl(tmp_path, Crawl(source=Warc(path=str(tmp_path / "a.warc.gz"))))
    assert (rows["/1"]["lang"], rows["/1"]["x_robots"], rows["/1"]["tdm_reservation"], report.counts["ok"]) == ("ja", "noai", "1", 1)
    assert {row["status"] for row in rows.values()} == {"ok", "decode_error"}


def test_a_table_is_passed_on_as_a_version_of_its_own(tmp_path):
    file = tmp_path / "list.csv"
    file.write_text("url,caption\nhttp://a.org/1.jpg,a fox\n")
    report = run("crawl", Crawl(source=Table(path=str(file))), {}, tmp_path / "pages")
    assert (tmp_path / "pages" / "tables" / "list.csv").read_bytes() == file.read_bytes()
    assert run("extract", Extract(), {"pages": tmp_path / "pages"}, tmp_path / "pairs").counts["pairs"] == 1
    assert report.data_version.endswith(".dir")
