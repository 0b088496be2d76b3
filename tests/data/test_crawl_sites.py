"""Sites as they are: canonical pages, budgets of hosts, sitemaps, Crawl-delay, robots.txt to the letter of RFC 9309."""

import gzip
import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.data.loopback import moved, web
from tests.data.test_crawl import START, crawl, page, robots, settings
from vlm_core.data.crawl.config import Budget, Extract, Site
from vlm_core.data.web.rights import read_robots, robots_decision
from vlm_core.run import run

pytestmark = pytest.mark.flow


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


def own(address):
    return f"<link rel=canonical href='{address}'>"


def test_a_canonical_page_counts_once_and_its_doubles_lead_nowhere(tmp_path):
    doubles = {f"/p?session={n}": page(f"/p?session={n + 1}", f"/only-{n}", head=own("/p") + "<img src=x.jpg alt=fox>") for n in range(9)}
    routes = {
        "/": page("/p?session=1", "/p?session=0", "/shop?b", "/shop?a", "/claims"), **doubles, "/p": page("/p?session=1", head=own("http://a.test/p") + "<img src=x.jpg alt=fox>"),
        "/shop?a": page(head=own("/gone")), "/shop?b": page(head=own("/gone")), "/claims": page(head=own("http://elsewhere.org/")), "/only-0": page(),
    }  # fmt: skip
    with web(routes) as site:
        rows, report = crawl(tmp_path, settings(site))
        asked = {path for _, path in site.asked}
    assert {path: row["status"] for path, row in rows.items()} == {
        "/": "ok", "/p": "ok", "/p?session=0": "duplicate_page", "/p?session=1": "duplicate_page", "/only-0": "ok",
        "/shop?a": "ok", "/shop?b": "duplicate_page", "/gone": "http_4xx", "/claims": "ok",
    }  # fmt: skip
    assert asked & {f"/p?session={n}" for n in range(2, 9)} == set(), "the trap has no end"
    assert rows["/p?session=0"]["detail"] == "the same page as http://a.test/p"
    assert (rows["/shop?a"]["canonical"], rows["/claims"]["canonical"]) == ("http://a.test/gone", "")
    pairs = run("extract", Extract(), {"pages": tmp_path / "pages"}, tmp_path / "pairs")
    assert (pairs.counts["in"], pairs.counts["pairs"]) == (1, 1)
    assert report.counts["failed.duplicate_page"] == 3


def test_doubles_do_not_use_up_the_budget_of_pages(tmp_path):
    routes = {"/": page(*(f"/s?{n}" for n in range(4))), "/z": page(), **{f"/s?{n}": page("/z", head=own("/s")) for n in range(4)}, "/s": page()}
    with web(routes) as site:
        rows, report = crawl(tmp_path, settings(site, max_pages=5))
    assert report.counts["ok"] == 3
    assert {path for path, row in rows.items() if row["status"] == "ok"} == {"/", "/s", "/z"}


def test_each_host_has_its_own_budget_of_pages_and_depth(tmp_path):
    chain = {"/": page("/1", "http://b.test/1", "http://c.test/1")} | {
        f"/{n}": page(f"/{n + 1}", f"http://b.test/{n + 1}", f"http://c.test/{n + 1}") for n in range(1, 8)
    }
    with web(chain) as site:
        config = settings(site, "b.test", "c.test", stay_on=["a.test", "b.test", "c.test"])
        source = Site(
            start_urls=[START], stay_on=["a.test", "b.test", "c.test"], budgets={"b.test": Budget(max_pages=2), "*": Budget(max_depth=3, max_pages=100)}
        )
        rows, _ = crawl(tmp_path, config.model_copy(update={"source": source}))
    hosts = {host: sorted(url for url in rows if f"//{host}" in url or (host == "a.test" and url.startswith("/"))) for host in ("a.test", "b.test", "c.test")}
    assert hosts["a.test"] == ["/", "/1", "/2", "/3"]
    assert hosts["b.test"] == ["http://b.test/1", "http://b.test/2"]
    assert hosts["c.test"] == ["http://c.test/1", "http://c.test/2", "http://c.test/3"]


def test_sitemaps_may_be_packed_and_may_lead_to_others_but_not_to_bombs(tmp_path):
    def xml(inside):
        return robots(f"<?xml version='1.0'?>{inside}")

    def zipped(text):
        def answer(request):
            data = gzip.compress(text)
            request.send_response(200)
            request.send_header("Content-Type", "application/x-gzip")
            request.send_header("Content-Length", str(len(data)))
            request.end_headers()
            request.wfile.write(data)

        return answer

    listed = b"<urlset><url><loc>http://a.test/deep</loc></url><url><loc>http://elsewhere.org/</loc></url></urlset>"
    routes = {
        "/robots.txt": robots("Sitemap: http://a.test/index.xml\nSitemap: http://a.test/bomb.xml.gz\nSitemap: http://a.test/cut.xml.gz\nUser-agent: *\nDisallow: /no/"),
        "/index.xml": xml("<sitemapindex><sitemap><loc>http://a.test/map.xml.gz</loc></sitemap><sitemap><loc>http://a.test/no/map.xml</loc></sitemap></sitemapindex>"),
        "/map.xml.gz": zipped(listed), "/bomb.xml.gz": zipped(listed[:-9] + b" " * 60_000_000 + b"</urlset>"), "/cut.xml.gz": robots("\x1f\x8b no gzip"),
        "/no/map.xml": xml("<urlset><url><loc>http://a.test/forbidden</loc></url></urlset>"), "/": page(), "/deep": page(), "/forbidden": page(),
    }  # fmt: skip
    with web(routes) as site:
        rows, _ = crawl(tmp_path, settings(site, max_page_kb=100))
        assert site.count("/no/map.xml") == 0
    assert {path: row["status"] for path, row in rows.items()} == {"/": "ok", "/deep": "ok", "/bomb.xml.gz": "too_large"}


PEAK = """
import sys
import threading
from pathlib import Path
from vlm_core.data.crawl.config import Crawl, Warc
from vlm_core.run import run
from vlm_core.stage import own_peak_mb
report = run("crawl", Crawl(source=Warc(path=sys.argv[1])), {}, Path(sys.argv[2]))
print(report.counts["ok"], own_peak_mb())
"""


def archive(path, pages, first):
    """An archive of pages of 60 KB each."""
    with path.open("wb") as stream:
        for n in range(first, first + pages):
            http = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html lang=en><title>{n}</title>".encode() + f"<p>{n} foxes ".encode() * 5_000
            head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.test/{n}\r\nContent-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
            stream.write(gzip.compress(head.encode() + http + b"\r\n\r\n", 1))
    return path


@pytest.mark.slow
def test_an_archive_of_eight_times_the_pages_takes_the_same_memory(tmp_path):
    (tmp_path / "many").mkdir()
    peaks = []
    for files in (1, 8):
        for n in range(files):
            archive(tmp_path / "many" / f"{n}.warc.gz", 500, 500 * n)
        words = [sys.executable, "-c", PEAK, str(tmp_path / "many"), str(tmp_path / f"out{files}")]
        count, peak = subprocess.run(words, cwd=Path.cwd(), capture_output=True, text=True, check=True).stdout.split()[-2:]
        assert int(count) == 500 * files
        peaks.append(float(peak))
    print(f"peak memory: {peaks[0]:.0f} MB for one archive of 30 MB of pages, {peaks[1]:.0f} MB for eight")
    assert peaks[1] < 1.2 * peaks[0]


def timed(at, links):
    answer = page(*links)

    def later(request):
        at.append(time.monotonic())
        answer(request)

    return later


@pytest.mark.parametrize("delay_s", [0.0, 0.05])
def test_crawl_delay_is_a_pause_that_nothing_shortens(tmp_path, delay_s):
    """AutoThrottle, which is on with any delay of ours, would halve the pause after every quick answer; jitter would too."""
    at: list[float] = []
    names = [f"/{n}" for n in range(5)]
    routes = {"/": timed(at, names), **{name: timed(at, []) for name in names}, "/robots.txt": robots("User-agent: *\nCrawl-delay: 0.4\n")}
    with web(routes) as site:
        crawl(tmp_path, settings(site, delay_s=delay_s))
    gaps = [later - earlier for earlier, later in zip(at, at[1:], strict=False)]
    assert len(gaps) == 5
    assert min(gaps) >= 0.4 * 0.95


@pytest.mark.abuse("A11")
def test_start_pages_of_a_forbidden_folder_all_end_as_robots_denied(tmp_path):
    routes = {"/": page(), "/open": moved("/secret/"), "/robots.txt": robots("User-agent: *\nDisallow: /secret/")}
    starts = [START, *(f"{START}secret/{n}" for n in range(5)), f"{START}secret/", f"{START}open"]
    with web(routes) as site:
        rows, report = crawl(tmp_path, settings(site, start=starts))
        assert site.count("/robots.txt") == 1
        assert {path for _, path in site.asked} == {"/", "/robots.txt", "/open"}
    assert report.counts == {"pages": 8, "ok": 1, "failed.robots_denied": 7}
    assert rows["/open"]["final_url"] == "http://a.test/secret/"


US, OTHER = "User-agent: VLMPlatformBot\n", "User-agent: other\n"
TRUTH = [  # RFC 9309 2.2: robots.txt, path, allowed
    ("", "/a", True), ("User-agent: *\nDisallow: /", "/a", False), ("User-agent: *\nDisallow:", "/a", True), (OTHER + "Disallow: /", "/a", True),
    (US + "Disallow: /a\n\nUser-agent: *\nDisallow: /", "/b", True), ("User-agent: vlmplatformbot\nDisallow: /a", "/a", False),  # tokens: any case
    ("User-agent: *\nDisallow: /\n\n" + US + "Allow: /", "/a", True), (OTHER + US + "Disallow: /a", "/a", False),  # a group of two
    (US + "Disallow: /a\n\n" + OTHER + "Disallow: /b\n\n" + US + "Disallow: /c", "/c/x", False),  # groups of one token are one
    ("User-agent: *\nDisallow: /a\nAllow: /a/b", "/a/b/c", True), ("User-agent: *\nAllow: /a\nDisallow: /a/b", "/a/b", False),  # the longest match
    ("User-agent: *\nDisallow: /a\nAllow: /a", "/a", True),  # Allow wins a tie
    ("User-agent: *\nDisallow: /*.gif$", "/x/y.gif", False), ("User-agent: *\nDisallow: /*.gif$", "/x/y.gif?z", True), ("User-agent: *\nDisallow: /a*/b", "/axx/b", False),
    ("User-agent: *\nDisallow: /A", "/a", True),  # paths: case counts
    ("User-agent: *\nDisallow: /a%3Cd", "/a<d", False), ("User-agent: *\nDisallow: /ツ", "/%E3%83%84", False),
    ("\ufeffUser-agent: *\r\nDisallow: /a\r\n", "/a", False), ("User-agent: *\nDisallow: /a # why", "/a", False), ("uSeR-aGeNt : *\n  disallow :/a", "/a", False),
    ("User-agent: *\nCrawl-delay: 5\nDisallow: /a", "/a", False), ("Sitemap: http://a.test/m.xml\nUser-agent: *\nDisallow: /a", "/a", False),
    ("Disallow: /a", "/a", True), ("<html>not found</html>", "/a", True), ("User-agent: *\nDisallow: /a?", "/a?x=1", False), ("User-agent: *\nDisallow: /a?", "/a", True),
]  # fmt: skip


@pytest.mark.parametrize(("text", "path", "allowed"), TRUTH)
def test_robots_txt_means_what_rfc_9309_says(text, path, allowed):
    assert robots_decision(read_robots(text), f"http://a.test{path}", "VLMPlatformBot").allowed is allowed


def test_a_host_that_answers_nobody_five_times_in_a_row_is_left_alone_and_the_others_are_read(tmp_path):
    over, at_once = threading.Event(), []

    def silent(request):
        at_once.append(time.monotonic())
        over.wait(20)

    hung = {f"/silent-{n}": silent for n in range(12)}
    read = {f"/{n}": page() for n in range(12)}
    with web({"/": page(*(f"http://b.test{path}" for path in hung), *read), **hung, **read}) as site:
        config = settings(site, "b.test", stay_on=["a.test", "b.test"])
        network = config.network.model_copy(update={"connections_per_host": 1, "connect_timeout_s": 0.1, "read_timeout_s": 0.1})
        rows, report = crawl(tmp_path, config.model_copy(update={"network": network}))
        asked = sum(path in hung for _, path in site.asked)
        over.set()
    assert asked == len(at_once) == 5
    assert min(later - earlier for earlier, later in itertools.pairwise(at_once)) > 0.3, "one connection at a time"
    assert [rows[f"http://b.test{path}"]["status"] for path in hung] == ["deadline"] * 12
    assert report.counts["ok"] == 13
