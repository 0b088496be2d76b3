"""Pages that nobody of ours has visited speak for their pictures, too: through the files of their origin."""

import socket

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.loopback import body, png, web
from tests.data.test_download import download, settings
from vlm_core.data.crawl.config import Extract
from vlm_core.data.fetch.page_rules import unvisited
from vlm_core.data.sample import PAIRS, make_uid
from vlm_core.errors import ServiceError
from vlm_core.run import run

pytestmark = pytest.mark.flow


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


def pairs_of(folder, *rows):
    """(picture, source, its pages)."""
    folder.mkdir(exist_ok=True)
    blank = {"lang": "en", "captions": [], "licence": "", "credit": "", "page_optout": ""}
    made = []
    for url, source, *pages in rows:
        seen = [{"page_url": page, "source": source, "place": ""} for page in pages]
        made.append({**blank, "uid": make_uid(url, url), "url": url, "caption": url, "page_url": pages[0], "source": source, "pages": seen})
    pq.write_table(pa.Table.from_pylist(sorted(made, key=lambda row: row["uid"]), schema=PAIRS), folder / "pairs.parquet")
    return folder


def by_host(refusing, *, status=200):
    """robots.txt of several hosts behind one server."""

    def answer(request):
        is_refusing = request.headers.get("Host") in refusing
        body(b"User-agent: *\nDisallow: /private\n" if is_refusing else b"", "text/plain", status if is_refusing else 200)(request)

    return answer


def ended(rows):
    return {url.rpartition("/")[2]: (row["status"], row["rights_rule"], row["rights_evidence"]) for (url, _), row in rows.items()}


def test_a_page_that_may_not_be_read_takes_its_pictures_with_it_and_its_origin_is_asked_once(tmp_path):
    pages = [f"http://page.test/private/{n}.html" for n in range(3)]
    with web({"/robots.txt": by_host({"page.test"}), **{f"/{n}.png": body(png(seed=n)) for n in range(6)}}) as site:
        config = settings(site, "page.test", "other.test")
        given = pairs_of(
            tmp_path / "pairs",
            *((f"http://a.test/{n}.png", "wat:part.wat.gz", page) for n, page in enumerate(pages)),
            ("http://a.test/3.png", "table:list.csv", "http://page.test/free.html"),
            ("http://a.test/4.png", "warc:one.warc.gz", "http://other.test/private/x.html"),
            ("http://a.test/5.png", "laion/table:list.csv", "http://other.test/x.html", "http://page.test/private/again.html"),
        )
        rows, report = download(tmp_path, given, config)
        asked = list(site.asked)
        site.asked.clear()
        again, second = download(tmp_path, given, config)
        second_asked = list(site.asked)
        kept = {row["page"]: row["rule"] for row in pq.read_table(tmp_path / "images.run/fetch/page_rules.parquet").to_pylist() if row["checked_at"]}
        unbound, _ = download(tmp_path, given, config.merged({"network": {"optouts": {"page_robots": False}}}))
    denied = {f"{n}.png": ("robots_denied", "page robots.txt", f"robots.txt disallows {page} for VLMPlatformBot (Disallow: /private)") for n, page in enumerate(pages)}
    denied["5.png"] = ("robots_denied", "page robots.txt", "robots.txt disallows http://page.test/private/again.html for VLMPlatformBot (Disallow: /private)")
    assert ended(rows) == {**denied, "3.png": ("ok", None, None), "4.png": ("ok", None, None)}
    assert sorted(path for host, path in asked if host == "page.test") == ["/robots.txt"]
    assert sorted(path for host, path in asked if path.endswith(".png")) == ["/3.png", "/4.png"]
    assert (ended(again), second_asked, second.data_version) == (ended(rows), [], report.data_version)
    assert kept == {**dict.fromkeys([*pages, "http://page.test/private/again.html"], "robots.txt"), "http://page.test/free.html": "", "http://other.test/private/x.html": "", "http://other.test/x.html": ""}
    assert {status for status, *_ in ended(unbound).values()} == {"ok"}


def test_an_origin_that_does_not_answer_refuses_for_now_and_one_that_does_not_exist_objects_to_nothing(tmp_path):
    busy = {"page.test"}
    with web({"/robots.txt": by_host(busy, status=503), "/0.png": body(png(seed=0)), "/1.png": body(png(seed=1))}) as site:
        config = settings(site, "page.test")
        given = pairs_of(
            tmp_path / "pairs",
            ("http://a.test/0.png", "table:list.csv", "http://page.test/x.html"),
            ("http://a.test/1.png", "table:list.csv", "http://10.0.0.1/x.html"),
        )
        rows, _ = download(tmp_path, given, config)
        said = "http://page.test/robots.txt: HTTP 503, which counts as a refusal for now"
        assert ended(rows) == {"0.png": ("robots_denied", "page robots.txt", said), "1.png": ("ok", None, None)}
        busy.clear()
        rows, _ = download(tmp_path, given, config.merged({"network": {"max_quiet_s": 60.0}}))
    assert ended(rows) == {"0.png": ("ok", None, None), "1.png": ("ok", None, None)}


def test_pages_that_the_crawler_asked_for_and_pictures_of_this_machine_are_not_asked_about():
    def pair(url, source, page):
        return {"url": url, "page_url": page, "source": source, "pages": None}

    rows = [
        pair("http://a/1", "page:site.test", "http://site.test/1"), pair("http://a/2", "shop/page:site.test", "http://site.test/2"),
        pair("http://a/3", "table:list.csv", ""), pair("http://a/4", "table:list.csv", "local://mine/x"), pair("http://a/5", "local:mine", "http://w.test/5"),
        pair("http://a/6", "wat:page:1.wat", "http://w.test/6"), pair("http://a/6", "table:list.csv", "HTTPS://w.test/7"),
    ]  # fmt: skip
    assert unvisited(rows, {"http://a/5"}) == {"http://a/6": {"http://w.test/6", "HTTPS://w.test/7"}}


def test_a_table_with_a_column_of_pages_reaches_the_rule_through_extract(tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("url,caption,page_url\nhttp://a.test/0.png,a fox,http://page.test/private/x.html\nhttp://a.test/1.png,a cat,http://page.test/x.html\n")
    run("extract", Extract(), {"pages": table}, tmp_path / "pairs")
    with web({"/robots.txt": by_host({"page.test"}), "/1.png": body(png(seed=1))}) as site:
        rows, _ = download(tmp_path, tmp_path / "pairs", settings(site, "page.test"))
    assert {name: status for name, (status, *_) in ended(rows).items()} == {"0.png": "robots_denied", "1.png": "ok"}


def test_a_network_that_is_down_ends_the_run_before_origins_of_pages_are_written_off(tmp_path, monkeypatch):
    def nobody(*args, **kwargs):
        raise socket.gaierror(socket.EAI_AGAIN, "no name server answered")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    with web({}) as site:
        given = pairs_of(tmp_path / "pairs", *((f"http://a.test/{n}.png", "table:list.csv", f"http://page.example{n}/x.html") for n in range(40)))
        with pytest.raises(ServiceError, match=r"our own network at fault \(dns_timeout 20 among the last 20 answers, over 20 domains\)"):
            download(tmp_path, given, settings(site))
    assert site.asked == []
