"""Addresses of unfinished shards: what a process wrote down is found by the next one, whatever moment it died at."""

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from vlm_core.data.fetch.fetch import Fetched
from vlm_core.data.fetch.ledger import Ledger
from vlm_core.data.fetch.spool import Spool, answers

DIES = """import os, sys
from pathlib import Path
from vlm_core.data.fetch.spool import Spool
spool = Spool(Path(sys.argv[1]))
for number in range(50):
    spool.note({"url": f"http://a.test/{number}", "status": "ok"}, spool.keep(bytes([number]) * (number + 1)))
os.kill(os.getpid(), 9)
"""


def test_a_killed_process_leaves_every_line_that_it_wrote_with_its_bytes(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], check=False).returncode == -9
    found = answers(tmp_path)
    assert {url: answer.place.read() for url, answer in found.items() if answer.place} == {f"http://a.test/{n}": bytes([n]) * (n + 1) for n in range(50)}


def test_a_line_that_was_cut_off_is_no_answer_and_the_last_word_about_an_address_counts(tmp_path: Path) -> None:
    first = Spool(tmp_path)
    first.note({"url": "a", "status": "ok"}, first.keep(b"bytes"))
    first.note({"url": "b", "status": "http_4xx"}, None)
    [file] = tmp_path.glob("*.jsonl")
    whole = file.read_bytes()
    for cut in range(whole.index(b"\n") + 1, len(whole) - 1):
        file.write_bytes(whole[:cut])
        assert [*answers(tmp_path)] == ["a"]
    second = Spool(tmp_path)
    second.note({"url": "a", "status": "decode_error"}, None)
    assert answers(tmp_path)["a"] == ({"url": "a", "status": "decode_error"}, None)
    second.clear()
    found = answers(tmp_path)["a"]
    assert found.place is not None
    assert (found.record["status"], found.place.read()) == ("ok", b"bytes")


def test_threads_that_write_at_once_do_not_mix_their_bytes(tmp_path: Path) -> None:
    spool, places = Spool(tmp_path), {}

    def write(number: int) -> None:
        for part in range(20):
            places[number, part] = spool.keep(bytes([number]) * (1000 + part))
            spool.note({"url": f"{number}/{part}", "status": "ok"}, places[number, part])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(place.read() == bytes([number]) * (1000 + part) for (number, part), place in places.items())
    assert {url: answer.place for url, answer in answers(tmp_path).items()} == {f"{number}/{part}": place for (number, part), place in places.items()}


def test_what_a_finished_shard_or_a_later_run_has_told_is_not_taken_for_unfinished(tmp_path: Path) -> None:
    early, late = "2026-01-01T00:00:00.000", "2026-01-02T00:00:00.000"
    ledger = Ledger(tmp_path)
    ledger.prepare()
    for url, at in (("http://a.test/1", early), ("http://a.test/2", late)):
        ledger.finish(Fetched(url, "http_429", fetched_at=at))
    ledger.finish(Fetched("http://a.test/3", "ok", fetched_at=early), ledger.keep(b"x"))
    shard = Ledger(tmp_path)  # another process finishes a shard with the first two
    shard.shard_done(ledger.new_pass(), 0, {url: Fetched(url, "http_429", fetched_at=early).json() for url in ("http://a.test/1", "http://a.test/2")})
    assert set(Ledger(tmp_path).unfinished()) == {"http://a.test/2", "http://a.test/3"}
    ledger.shard_done(ledger.new_pass(), 0, {})
    assert Ledger(tmp_path).unfinished() == {}
    assert sorted(os.path.getsize(file) for file in (tmp_path / "urls").iterdir()) == [0, 0]


@pytest.mark.parametrize("how", [{"quality": 85}, {"quality": 60, "subsampling": 0}, {"quality": 95, "subsampling": 1}, {"progressive": True}, {"mode": "L"}])
def test_the_shorter_way_to_decode_gives_the_pixels_of_opencv(how: dict[str, int | bool | str]) -> None:
    from vlm_core.data.fetch import img2dataset_worker as worker
    from vlm_core.data.fetch.picture import Limits

    noise = np.random.default_rng(0).integers(0, 255, (203, 301, 3), dtype=np.uint8)
    image, stream = Image.fromarray(cv2.GaussianBlur(noise, (9, 9), 3)).convert(str(how.pop("mode", "RGB"))), io.BytesIO()
    image.save(stream, "JPEG", **how)
    pixels, _ = worker._pixels(stream, Limits(10**7, 512, 1, 0.0), 256)
    assert np.array_equal(pixels, cv2.imdecode(np.frombuffer(stream.getvalue(), np.uint8), cv2.IMREAD_UNCHANGED))


@pytest.mark.parametrize("size", [(480, 360), (800, 600), (600, 1100), (1600, 1200), (2400, 1000), (700, 530)])
@pytest.mark.parametrize("mode", ["keep_ratio", "center_crop", "border", "keep_ratio_largest"])
@pytest.mark.parametrize(("full", "apart"), [(False, 2), (True, 0)])  # of 255, on average
def test_a_jpeg_comes_out_almost_as_img2dataset_makes_it_and_to_the_bit_if_all_is_decoded(
    size: tuple[int, int], mode: str, full: bool, apart: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlm_core.data.fetch import img2dataset_worker as worker

    width, height = size
    noise = np.random.default_rng(width).integers(0, 255, (height // 20, width // 20, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=85)
    resizer = worker.Upright(256, mode, True, encode_quality=1, encode_format="png")
    resizer.full = full
    ours = resizer.resize(stream)
    monkeypatch.setattr(worker.img2dataset.resizer, "cv2", cv2)
    theirs = worker.img2dataset.resizer.Resizer(256, mode, True, encode_quality=1, encode_format="png")(stream)
    assert ours[1:] == theirs[1:]
    mine, expected = (np.asarray(Image.open(io.BytesIO(found[0]))).astype(int) for found in (ours, theirs))
    assert abs(mine - expected).mean() <= apart
