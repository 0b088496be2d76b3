"""Common Crawl by one of its lists: a budget of archives, drawn once and for all, of which some may be unreadable."""

import gzip
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from tests.data.loopback import body, web
from tests.data.test_extract import wat
from tests.data.test_withdrawal import warc
from vlm_core.data.crawl.common_crawl import choose
from vlm_core.data.crawl.config import CommonCrawl, Crawl, Extract
from vlm_core.errors import BadManifest, ServiceError
from vlm_core.run import run

pytestmark = pytest.mark.flow
CRAWL = "crawl-data/CC-MAIN-2026-05/segments/1/wat"


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


def listed(folder, *names):
    file = folder / "wat.paths.gz"
    file.write_bytes(gzip.compress("".join(f"{name}\n" for name in names).encode()))
    return str(file)


def record(number):
    links = [{"path": "IMG@/src", "url": f"/{number}.jpg", "alt": f"picture number {number}"}]
    head = {"WARC-Target-URI": f"http://site{number}.test/"}
    return json.dumps({"Envelope": {"WARC-Header-Metadata": head, "Payload-Metadata": {"HTTP-Response-Metadata": {"HTML-Metadata": {"Links": links}}}}}).encode()


def names_of(source):
    return [place.name for place in choose(source, Counter())]


def test_a_budget_draws_without_repetition_by_seed_and_a_larger_one_takes_the_same_and_more(tmp_path):
    names = [f"{CRAWL}/{n:05d}.warc.wat.gz" for n in range(200)]
    source = CommonCrawl(paths=listed(tmp_path, *names, *names[:50]), base=str(tmp_path), max_files=30)
    first = names_of(source)
    assert (len(first), len(set(first)), set(first) <= set(names)) == (30, 30, True)
    assert names_of(source) == first
    assert names_of(source.but("max_files=60"))[:30] == first
    assert sorted(names_of(source.but("max_files=1000"))) == names
    assert len(set(first) & set(names_of(source.but("seed=1")))) < 15, "4.5 of 30 are expected in both"
    shuffled = CommonCrawl(paths=listed(tmp_path, *reversed(names)), base=str(tmp_path), max_files=30)
    assert names_of(shuffled) == first


def test_lines_that_lead_elsewhere_are_counted_and_a_list_of_both_kinds_is_refused(tmp_path):
    bad = ["../../etc/passwd.wat.gz", "http://10.0.0.1/a.wat.gz", "/etc/a.wat.gz", "a/../../b.wat.gz", "a b.wat.gz", "a.txt"]
    counts = Counter()
    chosen = choose(CommonCrawl(paths=listed(tmp_path, "", "x/a.warc.wat.gz", *bad), base=str(tmp_path), max_files=9), counts)
    assert ([place.name for place in chosen], counts) == (["x/a.warc.wat.gz"], {"listed": 1, "bad_path": len(bad)})
    with pytest.raises(BadManifest, match="WAT and WARC files together"):
        choose(CommonCrawl(paths=listed(tmp_path, "a.warc.wat.gz", "a.warc.gz"), base=str(tmp_path)), Counter())
    with pytest.raises(BadManifest, match="no path of an archive"):
        choose(CommonCrawl(paths=listed(tmp_path, *bad), base=str(tmp_path)), Counter())


def test_an_unreadable_archive_is_a_counted_reason_and_the_others_become_pairs(tmp_path):
    names = [f"{CRAWL}/{n}.warc.wat.gz" for n in range(4)]
    routes = {f"/{names[n]}": body(wat(record(n)).getvalue(), "application/gzip") for n in (0, 1)} | {f"/{names[2]}": body(b"", status=500)}
    with web(routes) as site:
        source = CommonCrawl(paths=listed(tmp_path, *names), base=f"http://{site.address}/", max_files=4)
        report = run("crawl", Crawl(source=source), {}, tmp_path / "pages")
        with pytest.raises(ServiceError, match="Found not one archive"):
            run("crawl", Crawl(source=source.but(f"base=http://{site.address}/nowhere")), {}, tmp_path / "none")
    assert report.counts == {"tables": 2, "archives": 4, "listed": 4, "failed.unreadable.ClientResponseError": 1, "failed.unreadable.FileNotFoundError": 1}
    run("extract", Extract(), {"pages": tmp_path / "pages"}, tmp_path / "pairs")
    rows = pq.read_table(tmp_path / "pairs" / "pairs.parquet").to_pylist()
    assert sorted((row["url"], row["source"]) for row in rows) == [(f"http://site{n}.test/{n}.jpg", f"wat:{names[n]}") for n in (0, 1)]


def test_archives_of_pages_are_read_too_and_one_that_is_missing_ends_as_a_row(tmp_path):
    names = ["a/1.warc.gz", "a/2.warc.gz"]
    (tmp_path / "a").mkdir()
    (tmp_path / names[0]).write_bytes(warc({"http://site.test/": b"<img src=/x.png alt=fox>"}))
    source = CommonCrawl(paths=listed(tmp_path, *names), base=str(tmp_path), max_files=2)
    report = run("crawl", Crawl(source=source), {}, tmp_path / "pages")
    assert report.counts == {"pages": 2, "ok": 1, "failed.decode_error": 1, "archives": 2, "listed": 2}
    rows = pq.read_table(tmp_path / "pages" / "pages.parquet").to_pylist()
    assert [(row["url"], row["status"]) for row in rows] == [("damaged:a/2.warc.gz", "decode_error"), ("http://site.test/", "ok")]


def test_after_a_kill_the_same_command_asks_only_for_what_is_missing(tmp_path):
    names, process = [f"{CRAWL}/{n}.warc.wat.gz" for n in range(5)], SimpleNamespace(pid=0, killed=False)

    def serve(number):
        def answer(request):
            if len(set(asked(site))) == 4 and request.command == "GET" and not process.killed:
                process.killed = True
                os.kill(process.pid, signal.SIGKILL)
            body(wat(record(number)).getvalue(), "application/gzip")(request)

        return answer

    def asked(site):
        return [path for _, path in site.asked]

    with web({f"/{name}": serve(number) for number, name in enumerate(names)}) as site:
        words = [f"source.paths={listed(tmp_path, *names)}", f"source.base=http://{site.address}/", "source.max_files=5"]
        command = [sys.executable, "-m", "vlm_core", "crawl", "--recipe", "common_crawl", *(word for one in words for word in ("--set", one))]
        command += ["--out", str(tmp_path / "pages")]
        child = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        process.pid = child.pid
        assert child.wait(60) == -signal.SIGKILL
        before = set(asked(site))
        site.asked.clear()
        assert subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0
        after = set(asked(site))
    assert (len(before), len(after), len(before & after)) == (4, 2, 1), "three were there; the fourth was under way"
    assert len(list((tmp_path / "pages").rglob("*.wat.gz"))) == 5
