"""Pictures of this machine as a source: folders and WebDataset tars, through the same verbs, with the same statuses and hashes; hostile tars."""

import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.loopback import QUICK, body, bomb, png, web
from tests.data.test_rights import in_png, manifest
from vlm_core.data.crawl.config import Crawl, Download, Extract, Folder, HashList, Table, WebDataset
from vlm_core.data.sample import DOWNLOADS, make_uid
from vlm_core.data.shards.tar import read_tar
from vlm_core.errors import MissingInput, SchemaMismatch
from vlm_core.run import run

pytestmark = pytest.mark.flow


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


def crawl(tmp_path, source, name="pages"):
    return run("crawl", Crawl(source=source), {}, tmp_path / name)


def extract(tmp_path, **inputs):
    report = run("extract", Extract(), inputs or {"pages": tmp_path / "pages"}, tmp_path / "pairs")
    return {row["url"]: row for row in pq.read_table(tmp_path / "pairs" / "pairs.parquet").to_pylist()}, report


def download(tmp_path, config=None, out="images", **inputs):
    config = config or Download(processes=1, fetch=QUICK)
    report = run("download", config, {"pairs": tmp_path / "pairs", **(inputs or {"pages": tmp_path / "pages"})}, tmp_path / out)
    table = pq.read_table(tmp_path / out / "status.parquet")
    assert table.schema == DOWNLOADS
    return {row["url"]: row for row in table.to_pylist()}, report


def tar_of(path, members):
    """(name, bytes) or a TarInfo as it is."""
    with tarfile.open(path, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member, io.BytesIO(b"x" * member.size) if member.isreg() else None)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def odd(name, kind, size=0, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


# ---------------------------------------------------------------- folders


def test_a_folder_of_pictures_and_texts_becomes_images_with_the_hashes_and_statuses_of_fetched_ones(tmp_path):
    pictures = tmp_path / "My Pictures"
    (pictures / "cats").mkdir(parents=True)
    names = {"fox.png": png(seed=1), "cats/tom.png": png(60, 50, seed=2), "cats/again.png": png(60, 50, seed=2), "tiny.png": png(8, 8), "broken.jpg": b"\xff\xd8\xff no",
             "page.png": b"<html>", "bomb.png": bomb(9_000), "silent.png": png(seed=3), "cats/한 글.png": png(seed=4)}  # fmt: skip
    for name, data in names.items():
        (pictures / name).write_bytes(data)
        if name != "silent.png":
            (pictures / name).with_suffix(".txt").write_text(f"a picture called {Path(name).stem}\n")
    (pictures / "cats" / "tom.txt").unlink()
    (pictures / "cats" / "tom.json").write_text(
        json.dumps({"caption": "Tom", "captions": ["a cat", 3], "lang": "de", "license": "CC0", "author": "Ana", "url": "no address"})
    )
    crawled = crawl(tmp_path, Folder(path=str(pictures)))
    assert crawled.counts == {"in": 9, "pictures": 8, "dropped.no_text": 1}
    rows, report = extract(tmp_path)
    assert report.counts["pairs"] == 8
    tom = rows["local://my-pictures/cats/tom.png"]
    assert [caption["text"] for caption in tom["captions"]] == ["Tom", "a cat"]
    assert (tom["lang"], tom["licence"], tom["credit"], tom["source"]) == ("de", "CC0", "Ana", "local:my-pictures")
    assert (tom["uid"], tom["pages"][0]["place"]) == (make_uid("local://my-pictures/cats/tom.png", "Tom"), "cats/tom.png")
    status, _ = download(tmp_path)
    assert {url.removeprefix("local://my-pictures/"): row["status"] for url, row in status.items()} == {
        "fox.png": "ok", "cats/tom.png": "ok", "cats/again.png": "ok", "tiny.png": "too_small", "broken.jpg": "decode_error", "page.png": "not_image",
        "bomb.png": "too_many_pixels", "cats/%ED%95%9C%20%EA%B8%80.png": "ok",
    }  # fmt: skip
    # the same bytes over HTTP: what is stored, and every hash, is the same
    with web({f"/{n}.png": body(data) for n, data in enumerate(names.values())}) as site:
        table = tmp_path / "list.csv"
        table.write_text("url,caption\n" + "".join(f"http://a.test/{n}.png,fetched {n}\n" for n in range(len(names))))
        crawl(tmp_path, Table(path=str(table)), "web-pages")
        extract(tmp_path, pages=tmp_path / "web-pages")
        fetched, _ = download(tmp_path, Download(processes=1, fetch=QUICK, network=site.network()), "web-images")
    for n, name in ((0, "fox.png"), (1, "cats/tom.png")):
        ours, theirs = status[f"local://my-pictures/{name}"], fetched[f"http://a.test/{n}.png"]
        same = ("sha256", "mime", "width", "height", "original_width", "original_height", "phash", "pdq", "pdq_quality", "bytes", "status")
        assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
        assert ours["sha256"] == hashlib.sha256(names[name]).hexdigest()
        assert stored(tmp_path / "images", ours) == stored(tmp_path / "web-images", theirs)


def stored(folder, row):
    return dict(read_tar(folder / row["shard"]))[f"{row['uid']}.jpg"]


def test_a_changed_picture_is_taken_in_again_and_an_equal_folder_is_the_same_version(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in "ab":
        (pictures / f"{name}.png").write_bytes(png(seed=ord(name)))
        (pictures / f"{name}.txt").write_text(f"letter {name}")
    first = crawl(tmp_path, Folder(path=str(pictures)))
    extract(tmp_path)
    before, _ = download(tmp_path)
    assert crawl(tmp_path, Folder(path=str(pictures))).data_version == first.data_version
    (pictures / "a.png").write_bytes(png(seed=99))
    crawl(tmp_path, Folder(path=str(pictures)))
    extract(tmp_path)
    after, _ = download(tmp_path)
    assert after["local://pictures/a.png"]["sha256"] == hashlib.sha256(png(seed=99)).hexdigest() != before["local://pictures/a.png"]["sha256"]
    assert (before["local://pictures/b.png"]["sha256"], set(before)) == (after["local://pictures/b.png"]["sha256"], set(after))
    expected = np.asarray(Image.open(io.BytesIO(png(seed=99))), dtype=int)
    kept = np.asarray(Image.open(io.BytesIO(stored(tmp_path / "images", after["local://pictures/a.png"]))), dtype=int)
    assert np.abs(kept - expected).mean() < 8, "the stored picture is still the old one"


def test_captions_may_lie_in_a_table_inside_the_folder(tmp_path):
    pictures = tmp_path / "hf"
    (pictures / "train").mkdir(parents=True)
    (pictures / "train" / "1.png").write_bytes(png(seed=1))
    (pictures / "train" / "1.txt").write_text("not this one")
    (pictures / "train" / "2.png").write_bytes(png(seed=2))
    (pictures / "metadata.csv").write_text("file_name,text\ntrain/1.png,a fox\ntrain/1.png,a red fox\n../../etc/passwd,root\n")
    crawl(tmp_path, Folder(path=str(pictures), captions="metadata.csv", name="mine"))
    rows, _ = extract(tmp_path)
    assert {url: [caption["text"] for caption in row["captions"]] for url, row in rows.items()} == {"local://mine/train/1.png": ["a fox", "a red fox"]}
    with pytest.raises(SchemaMismatch, match="did you mean 'text'"):
        crawl(tmp_path, Folder(path=str(pictures), captions="metadata.csv", caption_column="texd"))
    with pytest.raises(MissingInput, match="labels.csv"):
        crawl(tmp_path, Folder(path=str(pictures), captions="labels.csv"))


@pytest.mark.abuse("A4")
def test_a_link_that_leads_out_of_the_folder_and_what_is_no_file_are_refused(tmp_path):
    secret, pictures = tmp_path / "secret.png", tmp_path / "pictures"
    pictures.mkdir()
    secret.write_bytes(png(seed=5))
    (tmp_path / "secret.txt").write_text("the password is fox")
    (pictures / "a.png").write_bytes(png(seed=6))
    (pictures / "a.txt").write_text("a fox")
    (pictures / "inside.png").symlink_to(pictures / "a.png")
    (pictures / "inside.txt").write_text("the same fox")
    (pictures / "out.png").symlink_to(secret)
    (pictures / "out.txt").write_text("a fox")
    (pictures / "b.png").write_bytes(png(seed=7))
    (pictures / "b.txt").symlink_to(tmp_path / "secret.txt")
    os.mkfifo(pictures / "pipe.png")
    assert crawl(tmp_path, Folder(path=str(pictures))).counts == {
        "in": 6,
        "pictures": 2,
        "dropped.no_text": 1,
        "dropped.not_a_file": 2,
        "dropped.unreadable_text": 1,
    }
    assert set(extract(tmp_path)[0]) == {"local://pictures/a.png", "local://pictures/inside.png"}


# ---------------------------------------------------------------- WebDataset


def test_webdataset_tars_keep_the_address_that_they_tell_and_need_no_network(tmp_path, monkeypatch):
    shards = tmp_path / "shards"
    shards.mkdir()
    told = {"url": "http://A.org:80/fox.png", "caption": "a fox", "key": "000", "license": "CC0", "sha256": "no"}
    tar_of(
        shards / "00000.tar",
        [("000.png", png(seed=1)), ("000.txt", b"a fox"), ("000.json", json.dumps(told).encode()), ("x/001.webp", png(seed=2)), ("x/001.txt", b"an owl")],
    )
    tar_of(shards / "00001.tar", [("000.txt", b"a hen"), ("000.jpg", png(seed=3)), ("000.cls", b"3"), ("002.png", png(seed=4)), ("003.txt", b"no picture")])
    assert crawl(tmp_path, WebDataset(path=str(shards))).counts == {"in": 4, "pictures": 3, "dropped.no_text": 1}
    rows, _ = extract(tmp_path)
    assert {url: row["caption"] for url, row in rows.items()} == {
        "http://a.org/fox.png": "a fox", "local://shards/00000.tar/x/001.webp": "an owl", "local://shards/00001.tar/000.jpg": "a hen",
    }  # fmt: skip
    assert rows["http://a.org/fox.png"]["uid"] == make_uid("http://a.org/fox.png", "a fox"), "the same sample as if it had been fetched"
    assert (rows["http://a.org/fox.png"]["licence"], rows["http://a.org/fox.png"]["pages"][0]["place"]) == ("CC0", "00000.tar:000")
    status, report = download(tmp_path)  # no contact, no allow-list: a request could not even begin
    assert report.counts["ok"] == 3
    monkeypatch.setenv("VLM_ENGINE", "processes:2")
    assert download(tmp_path, out="elsewhere")[1].data_version == report.data_version
    assert {row["sha256"] for row in status.values()} == {hashlib.sha256(png(seed=seed)).hexdigest() for seed in (1, 2, 3)}


@pytest.mark.parametrize("where", ["{}", "file://{}", "memory://shards"])
def test_packed_tars_and_tars_behind_a_url_give_the_pairs_of_plain_ones(tmp_path, where):
    members = [(f"{n}.{end}", png(seed=n) if end == "png" else f"fox {n}".encode()) for n in range(6) for end in ("png", "txt")]
    members[1] = ("0.txt", b"x" * 1024)  # fills its blocks: the next header begins where its bytes end
    shards = tmp_path / "shards"
    shards.mkdir()
    whole = tar_of(tmp_path / "whole.tar", members).read_bytes()
    (shards / "a.tar.gz").write_bytes(gzip.compress(whole))
    (shards / "b.TGZ").write_bytes(gzip.compress(whole)[:-900])
    (shards / "c.tar").write_bytes(whole)
    if where.startswith("memory"):
        fsspec.filesystem("memory").put(str(shards), "/", recursive=True)
    counts = crawl(tmp_path, WebDataset(path=where.format(shards), name="shards")).counts
    rows, _ = extract(tmp_path)
    plain = {url for url in rows if url.startswith("local://shards/c.tar/")}
    assert plain == {f"local://shards/c.tar/{n}.png" for n in range(6)}
    assert {url.replace("a.tar.gz", "c.tar"): row["caption"] for url, row in rows.items() if "a.tar.gz" in url} == {url: rows[url]["caption"] for url in plain}
    assert counts["dropped.damaged_tar"] == 1
    assert counts["pictures"] == 12 + sum("b.TGZ" in url for url in rows) < 18


@pytest.mark.abuse("A4")
def test_hostile_members_are_refused_by_themselves_and_nothing_is_written_under_their_names(tmp_path):
    fox, text = png(seed=1), b"a fox"
    long = "n" * 300 + ".png"
    members = [
        ("good.png", fox), ("good.txt", text), ("/etc/abs.png", fox), ("/etc/abs.txt", text), ("../up.png", fox), ("../up.txt", text), ("a/../../b.png", fox),
        ("c:\\win.png", fox), (long, fox), ("bell\x07.png", fox), odd("link.png", tarfile.SYMTYPE, link="/etc/passwd"), odd("hard.png", tarfile.LNKTYPE, link="good.png"),
        odd("device.png", tarfile.CHRTYPE), odd("pipe.png", tarfile.FIFOTYPE), odd("folder.png", tarfile.DIRTYPE), ("good.png", png(seed=2)), ("huge.txt", b"x" * (2**20 + 1)),
        ("last.png", png(seed=3)), ("last.txt", b"the last fox"),
    ]  # fmt: skip
    shards = tmp_path / "sub" / "shards"
    shards.mkdir(parents=True)
    tar_of(shards / "a.tar", members)
    before = sorted(path for path in tmp_path.rglob("*") if "home" not in path.parts)
    counts = crawl(tmp_path, WebDataset(path=str(shards))).counts
    assert {name: n for name, n in counts.items() if name.startswith("dropped.")} == {
        "dropped.unsafe_name": 8,
        "dropped.not_a_file": 4,
        "dropped.duplicate_name": 1,
        "dropped.too_large": 1,
    }
    assert set(extract(tmp_path)[0]) == {"local://shards/a.tar/good.png", "local://shards/a.tar/last.png"}
    made = {path for path in tmp_path.rglob("*") if "home" not in path.parts} - set(before)
    assert {path.relative_to(tmp_path).parts[0] for path in made} == {"pages", "pages.run", "pairs", "pairs.run"}


@pytest.mark.fault("F8")
def test_a_damaged_tar_keeps_what_came_before_and_the_next_one_is_read(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    members = [(f"{n}.{end}", png(seed=n) if end == "png" else f"fox {n}".encode()) for n in range(6) for end in ("png", "txt")]
    whole = tar_of(shards / "a.tar", members).read_bytes()
    (shards / "a.tar").write_bytes(whole[: len(whole) // 3])
    middle = bytearray(tar_of(shards / "b.tar", [(f"b{name}", data) for name, data in members]).read_bytes())
    header = middle.index(b"b3.png")
    middle[header : header + 150] = b"\xff" * 150
    (shards / "b.tar").write_bytes(middle)
    (shards / "c.tar").write_bytes(b"")
    tar_of(shards / "d.tar", [(f"d{name}", data) for name, data in members])
    counts = crawl(tmp_path, WebDataset(path=str(shards))).counts
    assert counts["dropped.damaged_tar"] == 3
    names = {url.removeprefix("local://shards/") for url in extract(tmp_path)[0]}
    assert {name for name in names if name.startswith("d.tar")} == {f"d.tar/d{n}.png" for n in range(6)}
    assert {name for name in names if name.startswith("b.tar")} == {f"b.tar/b{n}.png" for n in range(3)}
    assert 1 <= len([name for name in names if name.startswith("a.tar")]) <= 3


@pytest.mark.abuse("A4")
def test_an_extended_header_that_asks_for_gigabytes_is_no_reason_to_read_them(tmp_path):
    head = odd("x", tarfile.XHDTYPE, 8 * 2**30).tobuf(tarfile.GNU_FORMAT)
    file = tmp_path / "bomb.tar"
    with file.open("wb") as stream:
        stream.write(tar_of(tmp_path / "good.tar", [("a.png", png()), ("a.txt", b"a fox")]).read_bytes()[: 4 * 512 + (len(png()) + 511) // 512 * 512 - 512])
        stream.write(head)
        stream.truncate(9 * 2**30)  # sparse: takes no room
    assert crawl(tmp_path, WebDataset(path=str(file))).counts["dropped.damaged_tar"] == 1


# ---------------------------------------------------------------- what strangers may not do


@pytest.mark.abuse("A1")
def test_pages_and_tables_cannot_name_pictures_of_this_machine(tmp_path):
    pictures = tmp_path / "mine"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(png())
    (pictures / "a.txt").write_text("my fox")
    crawl(tmp_path, Folder(path=str(pictures)))
    table = tmp_path / "list.csv"
    lines = ["local://mine/a.png", "LOCAL://mine/a.png", " local://mine/a.png", f"file://{pictures}/a.png", f"{pictures}/a.png"]
    table.write_text("url,caption\n" + "".join(f'"{line}",a stranger\n' for line in lines))
    crawl(tmp_path, Table(path=str(table)), "list")
    rows, report = extract(tmp_path, **{"pages": tmp_path / "pages", "pages.list": tmp_path / "list"})
    assert {row["caption"] for url, row in rows.items() if url.startswith("local:")} == {"my fox"}
    assert report.counts["dropped.bad_address"] == 4
    with web({}) as site:
        config = Download(processes=1, fetch=QUICK, network=site.network())
        status, _ = download(tmp_path, config, **{"pages": tmp_path / "pages", "pages.list": tmp_path / "list"})
    assert {row["status"] for url, row in status.items() if url.startswith("file:")} == {"scheme_blocked"}
    with pytest.raises(MissingInput, match="--in pages=DIR"):
        download(tmp_path, config, **{"pages.list": tmp_path / "list"})


def test_lists_of_hashes_and_the_opt_out_inside_a_picture_hold_for_pictures_of_this_machine(tmp_path):
    pictures = {"listed": png(seed=1), "later": png(seed=2), "free": png(seed=3), "optout": in_png(manifest("notAllowed"))}
    (tmp_path / "mine").mkdir()
    for name, data in pictures.items():
        (tmp_path / "mine" / f"{name}.png").write_bytes(data)
        (tmp_path / "mine" / f"{name}.txt").write_text(name)
    crawl(tmp_path, Folder(path=str(tmp_path / "mine"), name="mine"))
    extract(tmp_path)
    listed, config = tmp_path / "md5.txt", Download(processes=1, fetch=QUICK, hash_lists={"known": HashList(kind="md5", path=str(tmp_path / "md5.txt"))})

    def statuses(names):
        listed.write_text("".join(hashlib.md5(pictures[name]).hexdigest() + "\n" for name in names))
        rows, report = download(tmp_path, config)
        return {url.rpartition("/")[2].partition(".")[0]: (row["status"], row["rights_rule"]) for url, row in rows.items()}, report.metrics["asked"]

    first = {"listed": ("blocked_hash", None), "later": ("ok", None), "free": ("ok", None), "optout": ("optout_header", "c2pa")}
    assert statuses(["listed"]) == (first, 4)
    assert statuses(["listed", "later"]) == (first | {"later": ("blocked_hash", None)}, 0), "a list that grows holds for what was fetched before"
