"""The demo web, seen through real connections."""

import http.client
import io
import re
import socket
import threading
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
from PIL import Image, ImageOps
from selectolax.lexbor import LexborHTMLParser as HTMLParser

from vlm_core.data.crawl import demo_site
from vlm_core.data.crawl import demo_truth
from vlm_core.data.crawl import demo_web
from vlm_core.data.crawl.corpus import Corpus
from vlm_core.data.sample import STATUSES, canonical_url
from vlm_core.errors import ServiceError

CORPUS = Path(__file__).parents[2] / "infra/demo/corpus.tar"


@pytest.fixture(scope="module")
def hosts():
    with demo_web.serve(CORPUS) as allowed:
        yield allowed


@pytest.fixture(scope="module")
def corpus():
    with Corpus(CORPUS) as opened:
        yield opened


@pytest.fixture(scope="module")
def truth(corpus):
    return demo_truth.truth(corpus)


def get(hosts, url, method="GET"):
    """One request the way an allow-listed client makes it: (status, headers, body)."""
    parts = urlsplit(url)
    with closing(http.client.HTTPConnection(hosts[parts.hostname], timeout=10)) as connection:
        connection.request(method, parts.path or "/", headers={"Host": parts.hostname})
        reply = connection.getresponse()
        return reply.status, reply.headers, reply.read()


def walk(hosts):
    """Breadth first over the links from the start pages, forbidden folders left alone: address -> parsed page."""
    forbidden = tuple(f"http://{host}{path}" for host, path in demo_site.FORBIDDEN.items())
    queue, seen = list(demo_web.START_URLS), {}
    while queue:
        url = queue.pop(0).partition("#")[0]
        if url in seen or urlsplit(url).hostname not in hosts or url.startswith(forbidden):
            continue
        status, headers, body = get(hosts, url)
        if status in (301, 302):
            queue.append(urljoin(url, headers["Location"]))
        charset = re.search(r"text/html; charset=(\S+)", headers["Content-Type"] or "")
        seen[url] = HTMLParser(body.decode(charset[1])) if status == 200 and charset else None
        if seen[url] is not None:
            queue += [urljoin(url, link.attributes["href"]) for link in seen[url].css("a[href]")]
    return {url: page for url, page in seen.items() if page is not None}


@pytest.fixture(scope="module")
def crawled(hosts):
    return walk(hosts)


def test_a_walk_over_the_links_meets_every_allowed_page_and_picture(crawled, corpus):
    shown = {canonical_url(urljoin(url, image.attributes["src"])) for url, page in crawled.items() for image in page.css("img")}
    shown |= {
        urljoin(url, part.split()[0]) for url, page in crawled.items() for image in page.css("img[srcset]") for part in image.attributes["srcset"].split(", ")
    }
    allowed = {p.url for p in corpus.pictures if p.url and "robots" not in p.dirt} | {
        p.url for p in corpus.pictures if any(page.endswith("/en/elsewhere") for page in p.pages)
    }
    assert allowed <= shown
    hidden = {p.url for p in corpus.pictures if p.url} - allowed
    assert hidden
    assert not hidden & shown


def test_no_page_shows_more_than_24_figures(crawled):
    assert max(len(page.css("figure")) for page in crawled.values()) == 24


def test_addresses_do_not_depend_on_the_port_and_are_canonical(crawled, corpus):
    assert all(":" not in urlsplit(url).netloc for url in crawled)
    assert [p.url for p in corpus.pictures if p.url and canonical_url(p.url) != p.url] == []


def test_korean_japanese_and_french_pages_say_so_and_show_that_language(crawled, corpus):
    by_url = {p.url: p for p in corpus.pictures}
    for lang in ("ko", "ja", "fr"):
        pages = [(url, page) for url, page in crawled.items() if f"/{lang}/" in url]
        assert len(pages) >= 8
        for url, page in pages:
            assert page.css_first("html").attributes["lang"] == lang
            for image in page.css("img"):
                assert image.attributes["alt"] == by_url[urljoin(url, image.attributes["src"])].captions[lang]


def test_a_page_in_shift_jis_says_so_in_its_header(hosts):
    _, headers, body = get(hosts, "http://emoji.demo.test/ja/activities/")
    assert headers["Content-Type"] == "text/html; charset=shift_jis"
    with pytest.raises(UnicodeDecodeError):
        body.decode("utf-8")


def test_the_same_port_is_a_proxy_for_its_hosts(hosts):
    address = hosts["emoji.demo.test"]
    with closing(http.client.HTTPConnection(address, timeout=10)) as connection:
        connection.request("GET", "http://photos.demo.test/robots.txt")  # absolute form; the Host header names the proxy
        assert connection.getresponse().read().startswith(b"User-agent: *\nDisallow:\n")
        connection.request("GET", "http://emoji.demo.test/robots.txt")  # on the same connection
        assert b"Disallow: /private/\nSitemap: http://emoji.demo.test/sitemap.xml" in connection.getresponse().read()


def test_an_unknown_host_or_path_is_a_404(hosts):
    assert get({"other.test": hosts["emoji.demo.test"]}, "http://other.test/")[0] == 404
    assert get(hosts, "http://emoji.demo.test/img/nothing.png")[0] == 404


def test_only_loopback_is_listening(hosts):
    assert {address.partition(":")[0] for address in hosts.values()} == {"127.0.0.1"}


def test_head_gives_the_length_and_no_body(hosts, corpus):
    picture = next(p for p in corpus.pictures if p.source == "noto" and p.url)
    status, headers, body = get(hosts, picture.url, "HEAD")
    assert (status, int(headers["Content-Length"]), body) == (200, corpus.size(picture.file), b"")


def test_every_picture_that_must_download_is_served_whole(hosts, corpus, truth):
    fine = {row["url"] for row in truth if row["status"] == "ok" and row["kind"] not in ("redirect", "slow")}
    pictures = [p for p in corpus.pictures if p.url in fine]
    assert len(pictures) > 300
    for picture in pictures:
        assert get(hosts, picture.url)[2] == corpus.read(picture.file)


def test_statuses_of_the_truth_are_words_of_the_closed_list(truth):
    assert {row["status"] for row in truth} - {None} <= set(STATUSES)


def test_odd_answers_are_as_the_truth_says(hosts, truth):
    odd = {row["url"].removeprefix("http://photos.demo.test/odd/"): row for row in truth if "/odd/" in row["url"]}
    url = "http://photos.demo.test/odd/{}".format
    assert {name: get(hosts, url(name))[0] for name in ("missing.jpg", "forbidden.jpg", "gone.jpg", "error.jpg")} == {
        "missing.jpg": 404, "forbidden.jpg": 403, "gone.jpg": 410, "error.jpg": 500,
    }  # fmt: skip
    moved = get(hosts, url("moved.jpg"))
    assert (moved[0], get(hosts, moved[1]["Location"])[0]) == (302, 200)
    assert get(hosts, url("metadata.jpg"))[1]["Location"] == "http://169.254.169.254/latest/meta-data/"
    assert get(hosts, url("loop-a.jpg"))[1]["Location"] == url("loop-b.jpg")
    assert get(hosts, url("loop-b.jpg"))[1]["Location"] == url("loop-a.jpg")
    assert get(hosts, url("sign-in.jpg"))[1]["Content-Type"] == "image/jpeg"
    assert get(hosts, url("sign-in.jpg"))[2].startswith(b"<!doctype html>")
    assert set(odd) - {"placeholder.png"} == set(re.findall(r"photos\.demo\.test/odd/([\w.-]+)", get(hosts, "http://photos.demo.test/en/odd/")[2].decode()))


def test_the_oversized_picture_is_a_true_png_of_144_megapixels_in_a_few_kilobytes(hosts):
    body = get(hosts, "http://photos.demo.test/odd/huge.png")[2]
    assert len(body) < 30_000
    with pytest.warns(Image.DecompressionBombWarning), Image.open(io.BytesIO(body)) as image:
        assert image.size == (12_000, 12_000)
    tiny = demo_site._png(16, 3, 0x55, bits=1)
    with Image.open(io.BytesIO(tiny)) as image:
        assert [image.convert("L").getpixel((x, 0)) for x in range(4)] == [0, 255, 0, 255]


def test_one_picture_stands_for_24_captions(hosts, truth):
    row = next(row for row in truth if row["kind"] == "placeholder")
    figures = HTMLParser(get(hosts, row["pages"][0])[2]).css("img")
    assert {image.attributes["src"] for image in figures} == {row["url"]}
    assert len({image.attributes["alt"] for image in figures}) == 24


def test_the_truncated_picture_does_not_decode(hosts):
    with pytest.raises(OSError, match="Truncated File Read"), Image.open(io.BytesIO(get(hosts, "http://photos.demo.test/odd/truncated.jpg")[2])) as image:
        image.load()


def test_the_endless_picture_goes_on_and_ends_when_the_client_leaves(hosts):
    before = threading.active_count()
    with closing(http.client.HTTPConnection(hosts["photos.demo.test"], timeout=10)) as connection:
        connection.request("GET", "/odd/endless.jpg", headers={"Host": "photos.demo.test"})
        reply = connection.getresponse()
        assert reply.headers["Content-Length"] is None
        assert len(reply.read(20_000_000)) == 20_000_000
        reply.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() <= before


def test_the_slow_picture_takes_two_seconds_and_does_not_hold_up_others(hosts, truth):
    slow = next(row["url"] for row in truth if row["kind"] == "slow")
    start = time.monotonic()
    thread = threading.Thread(target=get, args=(hosts, slow))
    thread.start()
    assert get(hosts, "http://photos.demo.test/robots.txt")[0] == 200
    assert time.monotonic() - start < 1.5
    thread.join()
    assert time.monotonic() - start >= 2.0


def test_opt_out_headers_are_where_the_truth_says_and_nowhere_else(hosts, corpus, truth):
    said = {row["url"] for row in truth if row["status"] == "optout_header"}
    sent = {
        p.url
        for p in corpus.pictures
        if p.style == "photo" and p.source != "mirror" and "noai" in (get(hosts, p.url, "HEAD")[1]["X-Robots-Tag"] or "").split(", ")
    }
    assert sent == said
    assert len(said) == 12


def test_the_rotated_photograph_stands_upright_once_its_exif_is_obeyed(corpus):
    picture = next(p for p in corpus.pictures if p.serve == "exif_rotated")
    with Image.open(io.BytesIO(corpus.read(picture.file))) as image:
        assert image.getexif()[0x0112] == 6
        assert ImageOps.exif_transpose(image).size == image.size[::-1]


def test_srcset_offers_a_thumbnail_of_half_the_size_and_the_picture_itself(hosts):
    page = HTMLParser(get(hosts, "http://photos.demo.test/en/animals/")[2])
    image = page.css("img[srcset]")[0]
    small, large = (urljoin("http://photos.demo.test/", part.split()[0]) for part in image.attributes["srcset"].split(", "))
    sizes = [Image.open(io.BytesIO(get(hosts, url)[2])).width for url in (small, large)]
    assert abs(sizes[0] * 2 - sizes[1]) <= 1


def test_the_archive_holds_the_pages_that_a_polite_walk_meets_and_the_same_bytes_each_time(hosts, crawled, tmp_path):
    from warcio.archiveiterator import ArchiveIterator

    count = demo_web.write_warc(tmp_path / "a.warc.gz", CORPUS)
    demo_web.write_warc(tmp_path / "b.warc.gz", CORPUS)
    assert (tmp_path / "a.warc.gz").read_bytes() == (tmp_path / "b.warc.gz").read_bytes()
    with (tmp_path / "a.warc.gz").open("rb") as stream:
        records = {record.rec_headers["WARC-Target-URI"]: record.content_stream().read() for record in ArchiveIterator(stream)}
    assert records.keys() == crawled.keys()
    assert len(records) == count
    for url in list(records)[::9]:
        assert records[url] == get(hosts, url)[2]


def test_a_busy_port_is_named_in_one_sentence():
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=f"Found port {port} busy"), demo_web.serve(CORPUS, port):
            pass
