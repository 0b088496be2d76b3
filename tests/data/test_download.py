"""The download verb with the real img2dataset against servers on loopback; killed for real."""

import contextlib
import gzip
import io
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.loopback import body, bomb, encoded, moved, png, web
from vlm_core.data.web.address import FetchFailed
from vlm_core.data.crawl.config import Download, Fetch
from vlm_core.data.fetch.ledger import Ledger
from vlm_core.data.fetch.picture import Limits, decode, probe
from vlm_core.data.sample import DOWNLOADS, PAIRS, make_uid
from vlm_core.data.shards.tar import read_tar
from vlm_core.errors import ConfigError, LaunchError, MissingInput, NothingLeft
from vlm_core.run import run

LIMITS = Limits(64_000_000, 96, 16, 12.0)
pytestmark = pytest.mark.flow


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


def write_pairs(folder, *pairs):
    """(url, caption) or (url, caption, page_optout)."""
    folder.mkdir(exist_ok=True)
    blank = {"page_url": "http://a.test/", "source": "test", "lang": "en", "captions": [], "licence": "", "credit": ""}
    rows = [{**blank, "uid": make_uid(url, text), "url": url, "caption": text, "page_optout": "".join(more)} for url, text, *more in pairs]
    pq.write_table(pa.Table.from_pylist(sorted(rows, key=lambda row: row["uid"]), schema=PAIRS), folder / "pairs.parquet")
    return folder


def settings(site, *names, **more):
    return Download(
        **{"network": site.network("a.test", *names), "fetch": Fetch(retries=0, deadline_s=5, max_bytes=3_000_000), "processes": 1, "threads": 8, **more}
    )


def download(tmp_path, pairs, config):
    report = run("download", config, {"pairs": pairs}, tmp_path / "images")
    rows = pq.read_table(tmp_path / "images" / "status.parquet")
    assert rows.schema == DOWNLOADS
    return {(row["url"], row["uid"]): row for row in rows.to_pylist()}, report


def stored(folder):
    return {name: data for tar in sorted(folder.glob("*.tar")) for name, data in read_tar(tar)}


# ---------------------------------------------------------------- the verb


HOSTILE = {
    "file:///etc/passwd": "scheme_blocked", "data:image/png;base64,iVBORw0KGgo=": "scheme_blocked", "http://127.0.0.1/a": "ssrf_blocked",
    "http://10.0.0.1/a": "ssrf_blocked", "http://0x7f000001/a": "ssrf_blocked", "http://2130706433/a": "ssrf_blocked",
    "http://[::ffff:127.0.0.1]/a": "ssrf_blocked", "http://user@a.test/ok": "ssrf_blocked", "http://a.test/to-private": "ssrf_blocked",
    "http://a.test/endless": "too_large", "http://a.test/drip": "deadline", "http://a.test/bomb": "too_many_pixels", "http://a.test/bigger-bomb": "too_many_pixels",
    "http://a.test/html": "not_image", "http://a.test/ok": "ok", "http://a.test/flat": "placeholder", "http://a.test/cut": "decode_error",
    "http://a.test/optout": "optout_header", "http://a.test/forbidden/x": "robots_denied", "http://a.test/gone": "http_4xx", "http://a.test/page-optout": "optout_header",
    "http://169.254.169.254/latest/meta-data/": "ssrf_blocked", "http://[::1]/a": "ssrf_blocked", "ftp://a.test/a": "scheme_blocked",
    "http://a.test/gzip-bomb": "too_large", "http://a.test/frames": "ok", "http://a.test/svg": "not_image", "http://a.test/tiff": "not_image",
    "http://a.test/large": "too_large", "http://a.test/polyglot": "ok", "http://a.test/dot": "too_small",
}  # fmt: skip


def _endless(request):
    request.send_response(200)
    request.send_header("Connection", "close")
    request.end_headers()
    request.wfile.write(b"\xff\xd8\xff")
    for _ in range(5000):
        request.wfile.write(bytes(65_536))


SVG_BOMB = b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]><svg xmlns="http://www.w3.org/2000/svg"><text>&b;</text></svg>'


def frames(count):
    """A GIF of this many frames in some hundred kilobytes: only the first is ever decoded."""
    first, *others = (Image.new("P", (200, 200), n % 7) for n in range(count))
    first.putpalette(bytes(range(256)) * 3)
    first.paste(3, (0, 0, 100, 100))
    out = io.BytesIO()
    first.save(out, "GIF", save_all=True, append_images=others, duration=10)
    return out.getvalue()


def _drip(request):
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    for _ in range(100):
        request.wfile.write(b"x")
        request.wfile.flush()
        time.sleep(0.1)


@pytest.mark.abuse("A1", "A2", "A3", "A11")
def test_a_hostile_list_ends_in_the_right_statuses_within_bounded_memory_and_asks_nobody_it_must_not(tmp_path, tally):
    whole = png(200, 200, mode="RGB")
    with web({"/a": body(whole)}) as inside, web({}) as site:
        site.routes.update({
            "/to-private": moved(f"http://{inside.address}/a"), "/endless": _endless, "/drip": _drip, "/bomb": body(bomb(9_000)), "/bigger-bomb": body(bomb(12_000)),
            "/gzip-bomb": body(gzip.compress(bytes(200_000_000), 1), Content_Encoding="gzip"), "/frames": body(frames(2_000)), "/svg": body(SVG_BOMB, "image/svg+xml"),
            "/tiff": body(b"II*\0\x08\0\0\0\xff\xff" + bytes(60), "image/tiff"), "/large": body(bytes(10_000_000)), "/dot": body(encoded(Image.new("RGB", (1, 1)), "PNG")),
            "/polyglot": body(encoded(Image.open(io.BytesIO(png(200, 200))), "JPEG", comment=b"PK\x03\x04<script>alert(1)</script>")),
            "/html": body(b"<html>", "image/jpeg"), "/ok": body(whole), "/flat": body(encoded(Image.new("RGB", (64, 64), "white"), "PNG")), "/cut": body(whole[:-400]),
            "/optout": body(whole, X_Robots_Tag="noai"), "/forbidden/x": body(whole), "/page-optout": body(whole),
            "/robots.txt": body(b"User-agent: *\nDisallow: /forbidden/", "text/plain"),
        })  # fmt: skip
        pairs = write_pairs(tmp_path / "pairs", *((url, "a picture", "noai" if "page" in url else "") for url in HOSTILE))
        rows, report = download(tmp_path, pairs, settings(site, fetch=Fetch(retries=0, deadline_s=2, max_bytes=3_000_000)))
        assert inside.asked == []
        assert all(host == "a.test" for host, _ in site.asked)
        assert {path for _, path in site.asked} == {"/robots.txt"} | {"/" + url.split("/", 3)[3] for url in HOSTILE if url.startswith("http://a.test/")} - {
            "/forbidden/x",
            "/page-optout",
        }
    found = {url: row["status"] for (url, _), row in rows.items()}
    assert found == HOSTILE
    hostile = [url for url, status in HOSTILE.items() if status != "ok"]
    tally(sum(found[url] == HOSTILE[url] for url in hostile), len(hostile))
    assert {name: n for name, n in report.counts.items() if name.startswith("failed")} == {
        f"failed.{s}": n for s, n in Counter(HOSTILE.values()).items() if s != "ok"
    }
    assert (report.counts["in"], report.counts["ok"]) == (len(HOSTILE), 3)
    assert report.metrics["worker_peak_mb"] < 300
    assert b"script" not in b"".join(stored(tmp_path / "images").values())


def test_one_address_with_two_captions_is_asked_once_and_stored_for_both(tmp_path):
    data = encoded(Image.open(io.BytesIO(png(640, 480, mode="RGBA"))), "PNG")
    with web({"/p.png": body(data)}) as site:
        pairs = write_pairs(tmp_path / "pairs", ("http://a.test/p.png", "a fox"), ("http://a.test/p.png", "ein Fuchs"))
        rows, _ = download(tmp_path, pairs, settings(site, image_size=100))
        assert site.count("/p.png") == 1
    files = stored(tmp_path / "images")
    assert list(files) == [f"{uid}.{kind}" for uid in sorted(uid for _, uid in rows) for kind in ("jpg", "json")]
    for (url, uid), row in rows.items():
        image, sidecar = Image.open(io.BytesIO(files[f"{uid}.jpg"])), json.loads(files[f"{uid}.json"])
        assert image.size == (row["width"], row["height"]) == (133, 100)
        assert (row["original_width"], row["original_height"], row["mime"], row["bytes"]) == (640, 480, "image/png", len(data))
        assert (sidecar["url"], sidecar["sha256"], sidecar["pdq"]) == (url, row["sha256"], row["pdq"])
        assert (len(row["pdq"]), len(row["phash"])) == (64, 16)


def test_bytes_of_the_output_are_the_same_whatever_the_number_of_processes(tmp_path):
    with web({f"/{n}.png": body(png(seed=n)) for n in range(30)}) as site:
        pairs = write_pairs(tmp_path / "pairs", *((f"http://a.test/{n}.png", f"number {n}") for n in range(30)))
        versions = set()
        for processes in (1, 2):
            report = run("download", settings(site, processes=processes, shard_size=7), {"pairs": pairs}, tmp_path / f"images{processes}")
            versions.add(report.data_version)
            assert sorted(path.name for path in (tmp_path / f"images{processes}").iterdir()) == [*(f"{n:05d}.tar" for n in range(5)), "status.parquet"]
    assert len(versions) == 1


def test_equal_bytes_under_many_captions_and_blocked_hashes_are_not_kept(tmp_path):
    import hashlib

    blocked = tmp_path / "blocked.txt"
    blocked.write_text(hashlib.sha256(png(seed=2)).hexdigest() + "\n")
    with web({"/same": body(png(seed=1)), "/bad": body(png(seed=2)), "/good": body(png(seed=3))}) as site:
        same = [(f"http://a.test/same?{n}", f"caption {n}") for n in range(5)]
        site.routes.update({f"/same?{n}": body(png(seed=1)) for n in range(5)})
        pairs = write_pairs(tmp_path / "pairs", *same, ("http://a.test/bad", "bad"), ("http://a.test/good", "good"))
        rows, _ = download(tmp_path, pairs, settings(site, placeholder_captions=5, hash_lists={"known": {"path": str(blocked)}}))
    assert Counter(row["status"] for row in rows.values()) == {"placeholder": 5, "blocked_hash": 1, "ok": 1}
    assert len(stored(tmp_path / "images")) == 2


def test_what_cannot_work_ends_in_one_sentence(tmp_path):
    pairs = write_pairs(tmp_path / "pairs", ("http://a.test/x", "x"))
    with web({}) as site:
        with pytest.raises(MissingInput, match="no interpreter '/no/python'"):
            download(tmp_path, pairs, settings(site, python="/no/python"))
        with pytest.raises(LaunchError, match="read .*img2dataset.log"):
            download(tmp_path, pairs, settings(site, python="/bin/false"))
        with pytest.raises(NothingLeft, match="'http_4xx': 1"):
            download(tmp_path, pairs, settings(site))
    with pytest.raises(ConfigError, match="network.contact"):
        download(tmp_path, pairs, Download())
    with pytest.raises(NothingLeft):
        download(tmp_path, write_pairs(tmp_path / "empty"), settings(site))


# ---------------------------------------------------------------- kill -9

RUN = "import sys; from vlm_core.cli import main; sys.exit(main(sys.argv[1:]))"


def _start(tmp_path, pairs, config, out):
    spec = tmp_path / f"{out}.json"
    spec.write_text(json.dumps({"verb": "download", "config": config.model_dump(mode="json"), "inputs": {"pairs": str(pairs)}}))
    words = ["download", "--spec", str(spec), "--out", str(tmp_path / out), "--json"]
    return subprocess.Popen([sys.executable, "-c", RUN, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True, cwd=Path.cwd())


def _kill_and_go_on(tmp_path, count, kills, pause_s, losses):
    """Kill the download `kills` times at random moments, let it end, and compare with a run that nobody disturbed."""
    rng = random.Random(os.getpid())

    def slow(data):
        answer = body(data)

        def later(request):
            time.sleep(pause_s)
            answer(request)

        return later

    routes = {f"/{n}.png": slow(png(seed=n)) for n in range(count)} | {f"/{n}.gone": body(b"", status=404) for n in range(count // 12)}
    pairs = write_pairs(tmp_path / "pairs", *((f"http://a.test{path}", f"picture {path}") for path in routes))
    with web(routes) as site:
        config = settings(site, processes=2, threads=4, shard_size=20)
        whole = run("download", config, {"pairs": pairs}, tmp_path / "whole")
        asked_whole = Counter(path for _, path in site.asked)
        site.asked.clear()
        for _ in range(kills):
            process, before = _start(tmp_path, pairs, config, "killed"), len(site.asked)
            deadline = time.monotonic() + 20
            while process.poll() is None and len(site.asked) < before + rng.random() * 1.5 * len(routes) / kills and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(rng.random() * 0.3)
            family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            _, alive = psutil.wait_procs(family, timeout=5)
            assert alive == [], "a child outlived its parent"
            assert not list((tmp_path / "killed").glob("*.tar")) or (tmp_path / "killed/status.parquet").exists(), "a partial output is visible"
        process = _start(tmp_path, pairs, config, "killed")
        report = json.loads(process.communicate()[0])
        again = Counter(path for _, path in site.asked)
    assert report["data_version"] == whole.data_version
    uids = pq.read_table(tmp_path / "killed/status.parquet", columns=["uid"])["uid"].to_pylist()
    losses(lost=len(routes) - len(set(uids)), doubled=len(uids) - len(set(uids)))
    assert set(again) == set(asked_whole)
    twice = sum(number - 1 for path, number in again.items() if path != "/robots.txt")
    assert twice <= kills * config.processes * config.threads, "answers that were known were asked for again"


@pytest.mark.fault("F1")
def test_after_kill_9_at_random_moments_the_same_command_gives_the_same_bytes_and_asks_only_for_what_is_missing(tmp_path, losses):
    _kill_and_go_on(tmp_path, count=120, kills=3, pause_s=0.05, losses=losses)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.fault("F1")
def test_twenty_kills_of_a_download_of_two_hundred_addresses_lose_and_double_nothing(tmp_path, losses):
    _kill_and_go_on(tmp_path, count=185, kills=20, pause_s=0.1, losses=losses)


@pytest.mark.fault("F12")
def test_stalling_resetting_and_lying_servers_cost_a_deadline_each_and_hold_up_nobody_else(tmp_path):
    def stall(request):
        time.sleep(3)

    def reset(request):
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for end in (request.rfile, request.wfile, request.connection):
            end.close()
        request.close_connection = True

    def chunked_without_end(request):
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        for _ in range(10_000):
            request.wfile.write(b"10000\r\n" + bytes(65_536) + b"\r\n")

    short, long = body(png(), Content_Length="99999", Connection="close"), body(png() + b"more", Content_Length=str(len(png())), Connection="close")
    bad = {"stall": stall, "reset": reset, "chunked": chunked_without_end, "short": short, "long": long, "drip": _drip}
    with web({f"/{name}": answer for name, answer in bad.items()} | {f"/{n}.png": body(png(seed=n)) for n in range(30)}) as site:
        names = [f"{name}.test" for name in bad]
        urls = [(f"http://{name}.test/{name}", name) for name in bad] + [(f"http://a.test/{n}.png", f"fine {n}") for n in range(30)]
        config = settings(site, *names, threads=4, fetch=Fetch(retries=0, deadline_s=1.0, max_bytes=500_000), placeholder_captions=99)
        begin = time.monotonic()
        rows, _ = download(tmp_path, write_pairs(tmp_path / "pairs", *urls), config)
        assert time.monotonic() - begin < 40, "each costs a second, at four threads"
    found = {url.rpartition("/")[2]: row["status"] for (url, _), row in rows.items()}
    assert {name: found[name] for name in bad} == {
        "stall": "deadline", "reset": "http_5xx", "chunked": "too_large", "short": "http_5xx", "long": "ok", "drip": "deadline",
    }  # fmt: skip
    assert Counter(found[f"{n}.png"] for n in range(30)) == {"ok": 30}


@pytest.mark.abuse("A10")
def test_secrets_of_the_environment_and_of_other_peoples_headers_are_nowhere_in_what_is_written(tmp_path, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "HTTP_PROXY_PASSWORD", "SOME_TOKEN"):
        monkeypatch.setenv(name, "canary-env-7f3a")
    (tmp_path / ".netrc").write_text("machine a.test login me password canary-netrc-7f3a")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    seen = []

    def watched(request):
        seen.append(dict(request.headers))
        body(png(), Set_Cookie="session=canary-cookie-7f3a", WWW_Authenticate="canary-auth-7f3a", X_Robots_Tag="index")(request)

    with web({"/p": watched, "/q": watched}) as site:
        pairs = write_pairs(tmp_path / "pairs", ("http://a.test/p", "p"), ("http://a.test/q", "q"))
        download(tmp_path, pairs, settings(site))
    assert len(seen) == 2
    assert not any({"authorization", "cookie", "proxy-authorization", "referer"} & {name.lower() for name in headers} for headers in seen)
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".netrc"]
    assert len(written) > 10
    assert [str(path) for path in written if b"canary" in path.read_bytes()] == []


def test_a_downloading_process_that_is_killed_is_replaced_and_nothing_is_lost(tmp_path):
    def slow(request):
        time.sleep(0.1)
        body(png())(request)

    with web({f"/{n}": slow for n in range(60)}) as site:
        pairs = write_pairs(tmp_path / "pairs", *((f"http://a.test/{n}", f"number {n}") for n in range(60)))
        process = _start(tmp_path, pairs, settings(site, processes=2, threads=2, shard_size=15, placeholder_captions=100), "out")
        while process.poll() is None and len(site.asked) < 20:
            time.sleep(0.01)
        engine = psutil.Process(process.pid).children()[0]
        workers = [child for child in engine.children() if "spawn_main" in " ".join(child.cmdline())]
        workers[0].kill()
        report = json.loads(process.communicate()[0])
    assert len(workers) == 2
    assert report["counts"] == {"in": 60, "ok": 60}


def test_a_picture_that_kills_its_process_twice_is_given_up_and_the_others_are_not(tmp_path):
    from vlm_core.data.fetch.fetch import Fetched

    ledger = Ledger(tmp_path)
    ledger.prepare()
    for url in ("http://a.test/1", "http://a.test/2"):
        ledger.finish(Fetched(url, "ok", fetched_at="2026-01-01T00:00:00"), ledger.keep(b"x"))

    def status(number):
        return Ledger(tmp_path).unfinished()[f"http://a.test/{number}"][0].status

    ledger.mark("http://a.test/1")
    ledger.blame()
    assert status(1) == "ok"
    ledger.blame()
    assert status(1) == "ok", "another process died meanwhile"
    ledger.mark("http://a.test/1")
    ledger.blame()
    assert status(1) == "decode_error"
    assert status(2) == "ok"


# ---------------------------------------------------------------- decoding


def opened(data):
    return decode(io.BytesIO(data), LIMITS, 64)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_applied_and_dropped(orientation):
    marked = np.full((48, 96, 3), 128, np.uint8)
    marked[:24, :48], marked[:24, 48:] = (255, 0, 0), (0, 255, 0)  # red at the top left, green at the top right
    exif = Image.Exif()
    exif[0x0112] = orientation
    corners = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}  # where red lies once upright
    image, header = opened(encoded(Image.fromarray(marked), "JPEG", exif=exif, quality=95))
    assert image.size == (header.width, header.height) == ((96, 48) if orientation < 5 else (48, 96))
    row, column = corners[orientation]
    pixel = np.asarray(image)[row * (image.height - 1) * 3 // 4 + image.height // 8, column * (image.width - 1) * 3 // 4 + image.width // 8]
    assert abs(pixel.astype(int) - (254, 0, 0)).max() < 30
    assert "exif" not in encoded(image, "PNG").decode("latin-1").lower()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_every_kind_of_pixel_becomes_plain_and_transparent_becomes_white(mode):
    grey = Image.fromarray(np.full((40, 40), 200, np.uint8))
    if mode == "I;16":
        picture = Image.fromarray(np.full((40, 40), 200 * 257, np.uint16))
    elif mode in {"LA", "RGBA"}:
        picture = grey.convert(mode)
        picture.putalpha(Image.fromarray(np.concatenate([np.zeros((20, 40)), np.full((20, 40), 255)]).astype(np.uint8)))
    else:
        picture = grey.convert(mode)
    image, _ = opened(encoded(picture, "JPEG" if mode == "CMYK" else "PNG"))
    assert image.mode in {"RGB", "L"}
    values = np.asarray(image.convert("L")).astype(int)
    if mode != "1":
        assert abs(values[30] - 200).max() <= 3
    if mode in {"LA", "RGBA"}:
        assert (values[5] == 255).all()


def test_half_transparent_is_mixed_with_white_as_img2dataset_does():
    image, _ = opened(encoded(Image.new("RGBA", (32, 32), (100, 0, 200, 64)), "PNG"))
    expected = [round(64 / 255 * value + 255 - 64) for value in (100, 0, 200)]
    assert abs(np.asarray(image)[0, 0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_large_picture_is_reduced_without_moving_its_content(mode):
    values = np.zeros((1600, 2400, 4), np.uint8)
    values[..., 0], values[..., 1], values[..., 3] = np.linspace(0, 255, 2400), np.linspace(0, 255, 1600)[:, None], 255
    image, header = opened(encoded(Image.fromarray(values).convert(mode), "PNG"))
    assert (header.width, header.height, min(image.size)) == (2400, 1600, 134)
    expected = np.asarray(Image.fromarray(values).convert("RGB").resize(image.size, Image.Resampling.BOX)).astype(int)
    assert abs(np.asarray(image).astype(int) - expected).mean() < 1


def test_an_animated_picture_gives_its_first_frame_however_many_there_are():
    frames = [Image.new("RGB", (32, 32), (n * 5, 0, 0)) for n in range(50)]
    for form in ("GIF", "WEBP"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **({"lossless": True} if form == "WEBP" else {}))
        image, _ = opened(data)
        assert np.asarray(image.convert("RGB")).max() == 0


def test_a_bomb_is_refused_by_its_header_without_being_decoded():
    data = bomb(9_000)  # 81 megapixels in 79 kB
    before = psutil.Process().memory_info().rss
    with pytest.raises(FetchFailed) as caught:
        probe(io.BytesIO(data), LIMITS)
    assert caught.value.status == "too_many_pixels"
    assert psutil.Process().memory_info().rss - before < 10_000_000


def test_a_large_photograph_is_decoded_although_a_png_of_its_size_is_not():
    photo = encoded(Image.new("RGB", (8_000, 7_000)), "JPEG")
    assert min(opened(photo)[0].size) >= 128
    with pytest.raises(FetchFailed, match="need more than 96 MB"):
        opened(encoded(Image.new("RGB", (8_000, 7_000)), "PNG", compress_level=1))
