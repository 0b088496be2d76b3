"""The hardened client: which addresses, how much, how long, how often."""

import ipaddress
import random
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from multiprocessing import get_context

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.data.loopback import QUICK, body, bomb, encoded, moved, png, tls_front, web
from vlm_core.data.web.address import FetchFailed, Guard, canonical_host, is_public
from vlm_core.data.crawl.config import Fetch
from vlm_core.data.fetch.fetch import Fetcher
from vlm_core.data.web.politeness import Later, Politeness, Sites, domain_of, retry_after_s

PORTS = [80, 443]


def status_of(call, *args):
    with pytest.raises(FetchFailed) as caught:
        call(*args)
    return caught.value.status


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("file:///etc/passwd", "scheme_blocked"), ("data:image/png;base64,AAAA", "scheme_blocked"), ("ftp://a.org/x", "scheme_blocked"),
        ("gopher://a.org/", "scheme_blocked"), ("//a.org/x.jpg", "scheme_blocked"), ("", "scheme_blocked"),
        ("http://127.0.0.1/", "ssrf_blocked"), ("http://10.1.2.3/", "ssrf_blocked"), ("http://172.16.0.1/", "ssrf_blocked"),
        ("http://192.168.1.1/", "ssrf_blocked"), ("http://169.254.169.254/latest", "ssrf_blocked"), ("http://100.64.0.1/", "ssrf_blocked"),
        ("http://0.0.0.0/", "ssrf_blocked"), ("http://224.0.0.1/", "ssrf_blocked"), ("http://0x7f000001/", "ssrf_blocked"),
        ("http://2130706433/", "ssrf_blocked"), ("http://017700000001/", "ssrf_blocked"), ("http://127.1/", "ssrf_blocked"),
        ("http://0x7f.1/", "ssrf_blocked"), ("http://[::1]/", "ssrf_blocked"), ("http://[::ffff:127.0.0.1]/", "ssrf_blocked"),
        ("http://[::ffff:7f00:1]/", "ssrf_blocked"), ("http://[64:ff9b::7f00:1]/", "ssrf_blocked"), ("http://[2002:7f00:1::]/", "ssrf_blocked"),
        ("http://[fc00::1]/", "ssrf_blocked"), ("http://[fe80::1]/", "ssrf_blocked"), ("http://[::127.0.0.1]/", "ssrf_blocked"),
        ("http://[ff02::1]/", "ssrf_blocked"), ("http://user@a.org/", "ssrf_blocked"), ("http://a.org@127.0.0.1/", "ssrf_blocked"),
        ("http://:pw@a.org/", "ssrf_blocked"), ("http://a.org:22/", "ssrf_blocked"), ("http://a.org:99999/", "ssrf_blocked"),
        ("http://[x/", "ssrf_blocked"), ("http:///path", "ssrf_blocked"), ("http://a b.org/", "ssrf_blocked"), ("http://%31%32%37.0.0.1/", "ssrf_blocked"),
        ("http://１２７.0.0.1/", "ssrf_blocked"), ("http://127.0.0.1./", "ssrf_blocked"), ("http://127。0。0。1/", "ssrf_blocked"),
    ],
)  # fmt: skip
def test_an_address_that_must_not_be_visited_is_refused_before_any_name_is_resolved(url, status):
    def resolve(host, timeout_s):
        raise AssertionError(f"looked up {host}")

    assert status_of(Guard({}, PORTS, resolve).check, url) == status


def test_a_host_with_one_private_address_among_public_ones_is_refused():
    guard = Guard({}, PORTS, lambda host, timeout_s: ["93.184.216.34", "10.0.0.7"])
    assert status_of(guard.check, "http://both.example/") == "ssrf_blocked"


def test_the_checked_address_is_the_one_to_connect_to_and_the_name_stays_in_the_url():
    target = Guard({}, PORTS, lambda host, timeout_s: ["93.184.216.34"]).check("HTTP://Bücher.Example:80/a b?q=é#top")
    assert (target.address, target.port, target.host, target.url) == (
        "93.184.216.34",
        80,
        "xn--bcher-kva.example",
        "http://xn--bcher-kva.example/a%20b?q=%C3%A9",
    )


def test_only_a_host_of_the_allow_list_is_reached_on_loopback_and_only_at_its_place():
    guard = Guard({"demo.test": "127.0.0.1:8123"}, PORTS, lambda host, timeout_s: ["127.0.0.1"])
    assert guard.check("http://DEMO.test./x")[5:] == ("127.0.0.1", 8123, True)
    assert status_of(guard.check, "http://other.test/x") == "ssrf_blocked"
    assert status_of(guard.check, "http://127.0.0.1:8123/x") == "ssrf_blocked"


@given(st.integers(0, 2**32 - 1))
def test_every_spelling_of_an_ipv4_address_means_the_same_address(number):
    plain = str(ipaddress.IPv4Address(number))
    a, b, c, d = plain.split(".")
    spellings = [plain, str(number), hex(number), f"0{number:o}", f"{a}.{(int(b) << 16) + (int(c) << 8) + int(d)}", f"{hex(int(a))}.{b}.{c}.{d}", plain + "."]
    assert {canonical_host(text) for text in spellings} == {plain}


@given(st.integers(0, 2**32 - 1))
def test_wrapping_an_ipv4_address_in_ipv6_never_makes_it_public(number):
    inner = ipaddress.IPv4Address(number)
    for wrapped in (f"::ffff:{inner}", f"64:ff9b::{inner}", f"2002:{number >> 16:x}:{number & 0xFFFF:x}::"):
        assert not is_public(ipaddress.ip_address(wrapped)) or is_public(inner)


# ---------------------------------------------------------------- one picture


@pytest.fixture
def get(tmp_path):
    """Fetch a path of a.test from a web, and say how it ended."""
    fetchers = []

    def fetch(site, path, fetch=QUICK, **network):
        fetcher = Fetcher(site.network("a.test", "b.test", **network), fetch)
        fetchers.append(fetcher)
        (tmp_path / "picture").unlink(missing_ok=True)
        result = fetcher.fetch(path if ":" in path else f"http://a.test{path}", (tmp_path / "picture").write_bytes)
        assert (tmp_path / "picture").exists() == (result.status == "ok")
        assert {file.name for file in tmp_path.iterdir()} <= {"picture"}, "a part was left behind"
        return result

    yield fetch
    for fetcher in fetchers:
        fetcher.close()


def test_a_picture_arrives_whole_with_its_hash_type_and_upright_size(get, tmp_path):
    import hashlib

    turned = encoded(Image.new("RGB", (40, 20), "red"), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0")
    with web({"/p.jpg": body(turned, "text/plain")}) as site:
        result = get(site, "/p.jpg")
    assert (result.status, result.mime, result.width, result.height, result.bytes) == ("ok", "image/jpeg", 20, 40, len(turned))
    assert result.sha256 == hashlib.sha256(turned).hexdigest()
    assert (tmp_path / "picture").read_bytes() == turned
    assert site.agents == {"VLMPlatformBot/0.1 (+mailto:t@example.org)"}


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (body(b"<html>", "image/png"), "not_image"), (body(b"", "image/png"), "not_image"), (body(b"<svg xmlns='x'/>", "image/svg+xml"), "not_image"),
        (body(b"%PDF-1.7", "application/pdf"), "not_image"), (body(b"", status=204), "not_image"), (body(b"x", status=404), "http_4xx"),
        (body(b"x", status=410), "http_4xx"), (body(b"x", status=500), "http_5xx"), (body(b"x", status=429), "http_429"),
        (body(png()[:20]), "decode_error"), (body(bomb(20_000)), "too_many_pixels"), (body(png(8, 8)), "too_small"), (body(png(400, 20)), "aspect_ratio"),
        (body(b"x" * 10, Content_Length="99999999999"), "too_large"), (body(b"x" * 2_000_000), "too_large"),
        (body(png(), Content_Length="9999", Connection="close"), "http_5xx"), (body(png(), Content_Encoding="gzip"), "decode_error"),
        (body(png(), Content_Encoding="zstd"), "decode_error"), (body(png(), X_Robots_Tag="noarchive, noai, max-snippet:-1"), "optout_header"),
        (body(png(), X_Robots_Tag="otherbot: noai"), "ok"), (body(png(), TDM_Reservation="1"), "optout_header"),
        (moved("http://169.254.169.254/latest/meta-data/"), "ssrf_blocked"), (moved("file:///etc/passwd"), "scheme_blocked"),
        (moved("http://0x7f000001/"), "ssrf_blocked"), (moved("http://[bad/"), "ssrf_blocked"), (moved("/again"), "redirect_loop"), (moved("/p"), "ok"),
        (moved("http://b.test/p"), "ok"),
    ],
)  # fmt: skip
def test_every_kind_of_answer_ends_in_its_one_status(get, answer, status):
    with web({"/again": answer, "/p": body(png())}) as site:
        assert get(site, "/again", Fetch(retries=0, max_bytes=1_000_000, deadline_s=5)).status == status


def test_a_redirect_to_a_private_address_sends_nothing_there(get):
    with web({}) as inside, web({"/out": moved(f"http://{inside.address}/secret")}) as site:
        assert get(site, "/out").status == "ssrf_blocked"
        assert inside.asked == []


def test_an_endless_body_is_cut_at_the_budget(get):
    sent = []

    def pour(request):
        request.send_response(200)
        request.send_header("Connection", "close")
        request.end_headers()
        request.wfile.write(b"\xff\xd8\xff")
        for _ in range(10_000):
            request.wfile.write(bytes(65_536))
            sent.append(65_536)

    with web({"/p": pour}) as site:
        assert get(site, "/p", Fetch(retries=0, max_bytes=3_000_000)).status == "too_large"
        time.sleep(0.2)
    assert sum(sent) < 20_000_000  # 650 MB were on offer


@pytest.mark.parametrize("drip_headers", [True, False])
def test_a_server_that_drips_cannot_outlast_the_deadline(get, drip_headers):
    def drip(request):
        if drip_headers:
            request.wfile.write(b"HTTP/1.1 200 OK\r\n")
        else:
            request.send_response(200)
            request.send_header("Content-Length", "1000")
            request.end_headers()
        for _ in range(100):
            request.wfile.write(b"X-A: b\r\n" if drip_headers else b"x")
            request.wfile.flush()
            time.sleep(0.05)

    with web({"/p": drip}) as site:
        begin = time.monotonic()
        assert get(site, "/p", Fetch(retries=0, deadline_s=0.8), read_timeout_s=0.5).status == "deadline"
        assert 0.7 < time.monotonic() - begin < 2


def test_a_gzip_bomb_is_cut_at_the_budget(get):
    import gzip

    with web({"/p": body(gzip.compress(bytes(300_000_000), 1), Content_Encoding="gzip")}) as site:
        assert get(site, "/p", Fetch(retries=0, max_bytes=2_000_000)).status == "too_large"


def test_nobody_listening_is_connect_refused_and_an_unknown_name_is_nxdomain(get):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    with web({}) as site:
        site.address = place
        assert get(site, "/p").status == "connect_refused"
        assert get(site, "http://no-such-name.invalid/p").status in {"dns_nxdomain", "dns_timeout"}


def test_connections_are_kept_and_one_that_the_server_closed_is_replaced(get, tmp_path):
    places = set()

    def remember(request):
        places.add(request.client_address)
        body(png())(request)

    def last(request):
        request.close_connection = True  # without saying so
        remember(request)

    with web({"/p": remember, "/last": last}) as site:
        fetcher = Fetcher(site.network(), QUICK)
        outcomes = [fetcher.fetch(f"http://a.test{path}", (tmp_path / "x").write_bytes).status for path in ("/p", "/p", "/last", "/p", "/p")]
        fetcher.close()
    assert outcomes == ["ok"] * 5
    assert len(places) == 2


# ---------------------------------------------------------------- robots.txt


def robots(text, status=200, kind="text/plain"):
    return body(text.encode(), kind, status)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (robots("User-agent: *\nDisallow: /private/"), "robots_denied"), (robots("User-agent: VLMPlatformBot\nDisallow: /\n\nUser-agent: *\nAllow: /"), "robots_denied"),
        (robots("User-agent: *\nDisallow: /\n\nUser-agent: VLMPlatformBot\nAllow: /"), "ok"), (robots("User-agent: *\nDisallow: /private\nAllow: /private/p"), "ok"),
        (robots("no", 404), "ok"), (robots("no", 503), "robots_denied"), (robots("<html>"), "ok"), (moved("http://b.test/robots2"), "robots_denied"),
    ],
)  # fmt: skip
def test_robots_txt_decides_before_the_picture_is_asked_for(get, answer, status):
    with web({"/robots.txt": answer, "/robots2": robots("User-agent: *\nDisallow: /private/"), "/private/p": body(png())}) as site:
        result = get(site, "/private/p")
        assert result.status == status
        assert site.count("/private/p") == (status == "ok")
        assert bool(result.rights_evidence) == (status != "ok")


def test_robots_txt_is_asked_for_once_per_origin_also_by_many_threads_and_by_the_next_process(tmp_path):
    with web({"/robots.txt": robots("User-agent: *\nDisallow: /x"), **{f"/{n}": body(png()) for n in range(8)}}) as site:
        for _ in range(2):
            fetcher = Fetcher(site.network(), QUICK, memory=tmp_path)
            threads = [threading.Thread(target=fetcher.fetch, args=(f"http://a.test/{n}", (tmp_path / f"{n}").write_bytes)) for n in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            fetcher.close()
        assert site.count("/robots.txt") == 1


def test_tdmrep_json_reserves_by_the_longest_location(get):
    rules = body(b'[{"location": "/", "tdm-reservation": 1}, {"location": "/open/", "tdm-reservation": 0}]', "application/json")
    with web({"/.well-known/tdmrep.json": rules, "/open/p": body(png()), "/p": body(png())}) as site:
        denied = get(site, "/p", optouts={"ai_txt": False})
        assert (denied.status, denied.rights_rule, denied.rights_evidence) == ("robots_denied", "tdm-reservation", "tdmrep.json reserves /")
        assert get(site, "/open/p", optouts={"ai_txt": False}).status == "ok"
        assert get(site, "/p", optouts={"tdmrep": False}).status == "ok"


# ---------------------------------------------------------------- politeness


def test_a_host_is_asked_no_more_often_than_its_rate_after_the_burst():
    polite = Politeness(rate_per_s=50, burst=5, connections=4, max_quiet_s=5)
    begin = time.monotonic()
    for _ in range(20):
        with polite.turn("pics.example.co.uk"):
            pass
    assert time.monotonic() - begin >= (20 - 5) / 50


def test_a_host_has_at_most_its_connections_and_hosts_of_one_owner_share_them():
    polite, now, most = Politeness(1e6, 100, 2, 5), [0], [0]

    def visit(host):
        with polite.turn(host):
            now[0] += 1
            most[0] = max(most[0], now[0])
            time.sleep(0.02)
            now[0] -= 1

    threads = [threading.Thread(target=visit, args=(f"{n}.example.co.uk",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 2
    assert domain_of("a.b.example.co.uk") == "example.co.uk"


def test_retry_after_is_obeyed_and_a_long_one_ends_the_visit_at_once(tmp_path):
    calls = []

    def busy_once(request):
        calls.append(time.monotonic())
        body(png())(request) if len(calls) > 1 else body(b"", status=429, Retry_After="1")(request)

    with web({"/p": busy_once, "/q": body(b"", status=429, Retry_After="3600")}) as site:
        fetcher = Fetcher(site.network(), QUICK)
        fetch = partial(fetcher.fetch, keep=(tmp_path / "x").write_bytes)
        first = fetch("http://a.test/p")
        assert (first.status, first.pause_s) == ("http_429", 1.0)
        assert fetch("http://a.test/p").status == "ok"
        assert calls[1] - calls[0] >= 0.99
        assert fetch("http://a.test/q").pause_s == 3600
        begin = time.monotonic()
        assert fetch("http://a.test/q").status == "http_429"
        assert (site.count("/q"), time.monotonic() - begin < 1) == (1, True)
        fetcher.close()


def test_retry_after_may_be_a_date():
    assert retry_after_s("7") == 7
    assert retry_after_s("Wed, 01 Jan 2020 00:00:00 GMT") == 0
    assert retry_after_s("soon") is None
    assert 95 < retry_after_s(format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)) <= 100


def test_a_dead_host_is_left_alone_after_five_failures_and_its_neighbours_are_not():
    now = [0.0]
    polite = Politeness(1e6, 100, 2, 5, clock=lambda: now[0])

    def visit(host, patience_s=float("inf")):
        with polite.turn(host, patience_s):
            return "asked"

    for _ in range(5):
        assert visit("a.example.org") == "asked"
        polite.failed("a.example.org", FetchFailed("connect_refused", "connection refused"))
    with pytest.raises(FetchFailed, match="^connection refused$") as caught:
        visit("a.example.org")
    assert caught.value.status == "connect_refused"
    with pytest.raises(Later):
        visit("a.example.org", 10.0)
    assert visit("b.example.org") == "asked"
    now[0] = 61.0
    assert visit("a.example.org") == "asked", "one may try again after a minute"
    with pytest.raises(FetchFailed):
        visit("a.example.org")
    polite.settled("a.example.org")
    assert visit("a.example.org") == "asked"


def test_the_rate_is_halved_by_every_429_and_comes_back_slowly():
    now = [0.0]
    polite = Politeness(rate_per_s=10, burst=1, connections=1, max_quiet_s=5, clock=lambda: now[0])

    def gap():
        begin = polite._reserve("example.org", float("inf"))
        polite.sites._rows["open"] = 0
        after = polite._reserve("example.org", float("inf"))
        polite.sites._rows["open"] = 0
        now[0] = after + 100
        return after - begin

    assert gap() == pytest.approx(0.1)
    polite.answered("example.org", 429, "0")
    assert gap() == pytest.approx(0.2)
    polite.answered("example.org", 503, "0")
    assert gap() == pytest.approx(0.4)
    for _ in range(7):
        polite.answered("example.org", 200, None)
    assert gap() == pytest.approx(0.4 * 0.9**7)


def _ask_often(file, host, stamps):
    polite = Politeness(100, 1, 2, 5, Sites(file))
    for _ in range(10):
        with polite.turn(host):
            stamps.put(time.monotonic())
            time.sleep(0.002)


def test_the_rate_and_the_connections_of_a_domain_are_shared_by_processes(tmp_path):
    Sites.create(tmp_path / "sites", 10)
    context = get_context("fork")
    stamps = context.Queue()
    workers = [context.Process(target=_ask_often, args=(tmp_path / "sites", f"{n}.example.org", stamps)) for n in range(4)]
    for worker in workers:
        worker.start()
    times = sorted(stamps.get(timeout=20) for _ in range(40))
    for worker in workers:
        worker.join()
    assert times[-1] - times[0] >= 39 / 100 - 0.02, "four processes together asked faster than the rate of the domain"


def test_an_impatient_request_is_put_off_instead_of_waiting_and_takes_no_token():
    now = [0.0]
    polite = Politeness(1.0, 2, 1, 60, clock=lambda: now[0])
    polite._reserve("example.org", 0.5)
    polite.sites._rows["open"] = 0
    polite._reserve("example.org", 0.5)
    polite.sites._rows["open"] = 0
    for _ in range(3):
        with pytest.raises(Later):
            polite._reserve("example.org", 0.5)
    now[0] = 1.0
    assert polite._reserve("example.org", 0.5) == pytest.approx(1.0)
    with pytest.raises(Later):
        polite._reserve("example.org", 0.0)  # its one connection is taken


def test_a_table_of_sites_keeps_every_name_apart_until_it_is_full():
    sites = Sites(None, slots=64)
    for n in range(64):
        with sites.row(f"{n}.org") as row:
            row["failures"] = n
    for n in range(64):
        with sites.row(f"{n}.org") as row:
            assert row["failures"] == n
    with pytest.raises(RuntimeError, match="full"), sites.row("one.more"):
        pass


def test_a_full_disk_is_not_blamed_on_the_server(tmp_path):
    with web({"/p": body(png())}) as site:
        fetcher = Fetcher(site.network(), QUICK)
        with pytest.raises(FileNotFoundError):
            fetcher.fetch("http://a.test/p", (tmp_path / "no-such-folder" / "x").write_bytes)
        fetcher.close()


def test_random_bytes_never_raise_and_never_pass_for_a_picture(get):
    rng = random.Random(0)
    heads = [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"\0\0\0\x18ftypavif", b"BM" + bytes(30), b""]
    junk = {f"/{n}": body(heads[n % len(heads)] + rng.randbytes(200)) for n in range(42)}
    with web(junk) as site:
        assert {get(site, path).status for path in junk} <= {"not_image", "decode_error", "too_many_pixels", "too_small", "aspect_ratio"}


# ---------------------------------------------------------------- an origin that stalls, a redirect that leaves https


def test_an_origin_that_stalls_keeps_back_only_those_who_want_it(tmp_path):
    stalled = threading.Event()

    def stall(request):
        if request.headers.get("Host") == "slow.test":
            stalled.set()
            time.sleep(3)
        body(b"", "text/plain")(request)

    with web({"/robots.txt": stall, "/p": body(png())}) as site:
        fetcher = Fetcher(site.network("slow.test", "quick.test"), QUICK)
        fetcher.patience_s = 0.2
        first = threading.Thread(target=fetcher.fetch, args=("http://slow.test/p", (tmp_path / "x").write_bytes))
        first.start()
        assert stalled.wait(2)
        begin = time.monotonic()
        for _ in range(3):
            with pytest.raises(Later):
                fetcher.fetch("http://slow.test/p", (tmp_path / "y").write_bytes)
        assert fetcher.fetch("http://quick.test/p", (tmp_path / "z").write_bytes).status == "ok"
        assert time.monotonic() - begin < 2, "three threads came back after 0.2 s each, and another origin was not kept back"
        first.join()
        fetcher.close()


@pytest.mark.parametrize(("setting", "status"), [("follow", "ok"), ("refuse", "scheme_blocked")])
def test_a_redirect_from_https_to_http_is_followed_or_refused_as_the_setting_says(tmp_path, setting, status):
    import ssl

    from benchmarks.fetch import make_certificate

    make_certificate(tmp_path)
    with web({"/p": body(png()), "/robots.txt": body(b"", "text/plain"), "/s": moved("https://a.test/t"), "/t": moved("http://b.test/p")}) as site:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "server.pem")
        with tls_front(site.address, context) as front:
            network = site.network("b.test", https_to_http=setting)
            fetcher = Fetcher(network.merged({"hosts": {"a.test": front}}), QUICK)
            fetcher.connections.context = ssl.create_default_context(cafile=str(tmp_path / "bundle.pem"))
            fetcher.connections.context.check_hostname = False
            found = fetcher.fetch("https://a.test/s", (tmp_path / "x").write_bytes)
            fetcher.close()
    assert (found.status, found.final_url) == (status, "http://b.test/p" if status == "ok" else "https://a.test/t")
