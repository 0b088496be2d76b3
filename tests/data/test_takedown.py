"""A picture leaves the platform and does not come back: real table, real downloads from loopback, real shards, a real DVC cache."""

import csv
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.data.loopback import Web, body, png, web
from tests.data.small_world import write_inputs
from vlm_core.cli import main
from vlm_core.data.lineage import tombstones
from vlm_core.data.lineage.catalog import TABLES, append
from vlm_core.data.config import Shard
from vlm_core.data.crawl.config import Download, Extract, Fetch
from vlm_core.data.sample import CAPTIONS, make_uid
from vlm_core.data.shards.shards import read_index, read_samples
from vlm_core.data.shards.verify import verify
from vlm_core.run import run
from vlm_core.stage import Report, file_md5

HOSTS = ("a.test", "pictures.b.test", "b.test")
DVC = Path(sys.executable).parent / "dvc"
MODELS = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("base", "student", "tuned", "reader", "stranger")}


class Site(NamedTuple):
    """A platform of its own with 30 pictures from three hosts; the last two pictures are the same bytes."""

    root: Path
    web: Web

    def pairs(self, extra: tuple[tuple[str, str], ...] = ()) -> list[tuple[str, str]]:
        return [(f"http://{HOSTS[n % 3]}/p{n:02d}.png", f"a picture with the number {n}") for n in range(30)] + list(extra)

    def chain(self, *extra: tuple[str, str]) -> dict[str, Report]:
        """extract, download and shard, as the pipeline runs them; in between everything that was fetched is kept."""
        table = self.root / "list.csv"
        with table.open("w", newline="") as stream:
            csv.writer(stream).writerows([("url", "caption"), *self.pairs(extra)])
        reports = {"extract": run("extract", Extract(), {"pages": table}, self.root / "pairs")}
        config = Download(network=self.web.network(*HOSTS), fetch=Fetch(retries=0, deadline_s=5), processes=1, threads=4)
        reports["download"] = run("download", config, {"pairs": self.root / "pairs"}, self.root / "images")
        self.keep()
        inputs = {name: self.root / name for name in ("pairs", "images", "filtered", "captions")}
        reports["shard"] = run("shard", Shard(held_out=0.3, samples_per_shard=5), inputs, self.root / "shards")
        return reports

    def keep(self) -> None:
        for name in ("filtered", "captions"):
            (self.root / name).mkdir(exist_ok=True)
        captions = dict(zip(*(pq.read_table(self.root / "pairs" / "pairs.parquet")[name].to_pylist() for name in ("uid", "caption")), strict=True))
        rows = [row for row in self.status() if row["status"] == "ok"]
        kept = [{"uid": row["uid"], "caption": captions[row["uid"]], "lang": "en", "clip_score": 0.3, "group": row["uid"]} for row in rows]
        pq.write_table(pa.Table.from_pylist(kept), self.root / "filtered" / "kept.parquet")
        pq.write_table(pa.Table.from_pylist([], CAPTIONS), self.root / "captions" / "captions.parquet")

    def status(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = pq.read_table(self.root / "images" / "status.parquet").to_pylist()
        return rows

    def shards(self) -> dict[str, str]:
        return {path.name: file_md5(path) for path in (self.root / "shards").glob("*.tar")}

    def put(self, table: str, *rows: dict[str, Any]) -> None:
        append(self.root / "home" / "catalog", table, pa.Table.from_pylist(list(rows), schema=TABLES[table]), f"others-{table}")

    def models(self, snapshot: str) -> None:
        """base learnt on the snapshot for 10 epochs; student was taught by it, tuned begins with its weights, reader learnt captions that it wrote."""
        self.put("snapshots", {"snapshot_md5": "e" * 32 + ".dir"})
        self.put("models", {"model_id": MODELS["base"], "name": "base", "snapshot_md5": snapshot, "epochs": 10.0},
            {"model_id": MODELS["reader"], "name": "reader", "snapshot_md5": "e" * 32 + ".dir", "epochs": 1.0},
            *({"model_id": MODELS[name], "name": name, "snapshot_md5": "", "epochs": 0.0} for name in ("student", "tuned", "stranger")))  # fmt: skip
        self.put("model_parents", {"model_id": MODELS["student"], "parent_model_id": MODELS["base"], "relation": "teacher"},
            {"model_id": MODELS["tuned"], "parent_model_id": MODELS["base"], "relation": "initial"})  # fmt: skip
        self.put("snapshot_generators", {"snapshot_md5": "e" * 32 + ".dir", "generator": "base", "n_captions": 3})


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    routes = {f"/p{n:02d}.png": body(png(64, 48, seed=min(n, 28))) for n in range(30)}
    routes["/again.png"] = routes["/p07.png"]
    with web(routes) as served:
        yield Site(tmp_path, served)


def take(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["takedown", *words, "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def scan(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main(["takedown", "--scan", "--json", *words])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.flow
def test_a_picture_is_taken_down_and_everything_else_stays_as_it_was(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    first = site.chain()["shard"]
    site.models(first.data_version)
    before, asked = site.shards(), len(site.web.asked)
    victim = read_index(site.root / "shards", "train").to_pylist()[6]
    uid = victim["uid"]

    answer = take(capsys, "--uid", uid, "--reason", "asked by its author")
    assert {(m["name"], m["how"], m["samples"], m["exposures"]) for m in answer["models"]} == {
        ("base", "direct", 1, 10.0), ("student", "teacher", 1, 10.0), ("tuned", "initial", 1, 10.0), ("reader", "captions", 1, 10.0),
    }  # fmt: skip
    assert answer["snapshots"] == [{"snapshot_md5": first.data_version, "samples": 1, "shards": 1}]
    assert [(row["shard"], row["shard_md5"]) for row in answer["shards"]] == [(victim["shard"], before[victim["shard"]])]

    code, proof = scan(capsys)
    assert code == 20
    assert {Path(hit["path"]).relative_to(site.root).as_posix() for hit in proof["found"]} >= {
        "pairs/pairs.parquet", "images/status.parquet", f"shards/{victim['shard']}", "shards/index.parquet",
    }  # fmt: skip

    second = site.chain()
    assert second["extract"].counts["dropped.taken_down"] == 1
    assert len(site.web.asked) == asked, "nothing is fetched again"
    code, proof = scan(capsys)
    assert proof["not_looked_at"] == []
    assert (code, proof["hits"], proof["not_readable"]) == (0, 0, [])
    assert proof["files"] > 10
    assert (site.root / "home" / "takedowns" / f"proof-{proof['takedowns'][:12]}.json").is_file()
    after = site.shards()
    assert [name for name in before if after[name] != before[name]] == [victim["shard"]]
    assert verify(site.root / "shards") == second["shard"].data_version != first.data_version
    assert uid not in {sample.uid for sample in read_samples(site.root / "shards")}

    capsys.readouterr()
    assert main(["lineage", "diff", first.data_version, second["shard"].data_version, "--json"]) == 0
    changes = json.loads(capsys.readouterr().out)["changes"]
    assert {(row["change"], row["reason"]): row["samples"] for row in changes} == {("removed", "taken_down"): 1, ("unchanged", ""): 29}
    assert main(["lineage", "why", uid, "--json"]) == 0
    trail = json.loads(capsys.readouterr().out)
    assert trail["taken down"][0]["reason"] == "asked by its author"
    assert [row["revoked"] for row in trail["snapshots"]] == [True]
    assert site.chain()["shard"].reused, "and from here on nothing changes any more"


@pytest.mark.flow
def test_what_was_taken_down_does_not_come_back_under_another_address_name_or_settings(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.chain()
    seventh = next(row for row in site.status() if row["url"].endswith("/p07.png"))
    assert take(capsys, "--sha256", seventh["sha256"].upper())["takedown"][0]["samples"] == 1
    reports = site.chain(("http://a.test/again.png", "quite another text"))
    [back] = [row for row in site.status() if row["url"].endswith("/again.png")]
    assert (back["status"], back["sha256"], back["pdq"]) == ("taken_down", None, None)
    assert not any(row["url"].endswith("/p07.png") for row in site.status())
    assert reports["download"].counts["failed.taken_down"] == 1
    assert len(read_index(site.root / "shards")) == 29
    assert scan(capsys)[1]["found"] == []


@pytest.mark.flow
def test_a_domain_and_an_address_go_with_everything_that_was_found_there(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.chain()
    answer = take(capsys, "--domain", "b.test")
    assert answer["takedown"][0]["samples"] == 20
    assert take(capsys, "--url", "HTTP://A.test:80/p03.png")["takedown"][0]["samples"] == 1
    reports = site.chain(("http://c.b.test/new.png", "from a new host below the domain"))
    assert reports["extract"].counts["dropped.taken_down"] == 22
    assert {row["url"].split("/")[2] for row in site.status()} == {"a.test"}
    assert len(read_index(site.root / "shards")) == 9
    assert scan(capsys)[1]["found"] == []


@pytest.mark.flow
def test_everything_that_looks_like_a_picture_goes_with_it(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.chain()
    last = next(row for row in site.status() if row["url"].endswith("/p29.png"))
    flipped = f"{int(last['pdq'], 16) ^ 0x7F:064x}"  # seven bits away
    assert take(capsys, "--pdq", flipped, "--radius", "6", "--dry-run")["takedown"][0]["samples"] == 0
    answer = take(capsys, "--pdq", flipped, "--radius", "8")
    assert answer["takedown"][0]["samples"] == 2, "28 and 29 are the same picture"
    site.chain()
    assert {row["url"][-7:-4] for row in site.status()}.isdisjoint({"p28", "p29"})
    assert scan(capsys)[1]["found"] == []


# ---------------------------------------------------------------- without a web


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shards folder over the small world, made before anything was taken down."""
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    run("shard", Shard(held_out=0.3, samples_per_shard=12), write_inputs(tmp_path / "in"), tmp_path / "shards")
    return tmp_path


def reshard(root: Path) -> Report:
    inputs = {name: root / "in" / name for name in ("pairs", "images", "filtered", "captions")}
    return run("shard", Shard(held_out=0.3, samples_per_shard=12), inputs, root / "shards")


def test_shards_refuse_it_even_from_inputs_that_still_have_it(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uid = read_index(made / "shards")["uid"][0].as_py()
    take(capsys, "--uid", uid)
    report = reshard(made)
    assert (report.counts["in"], report.counts["dropped.taken_down"]) == (60, 1)
    assert uid not in read_index(made / "shards")["uid"].to_pylist()
    assert len(read_index(made / "shards")) == 59


def test_a_dry_run_says_the_same_and_changes_nothing(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uid = read_index(made / "shards")["uid"][0].as_py()
    dry = take(capsys, "--uid", uid, "--dry-run")
    assert not tombstones.load(made / "home")
    assert not (made / "home" / "takedowns").exists()
    assert reshard(made).reused
    wet = take(capsys, "--uid", uid)
    assert {name: rows for name, rows in dry.items() if name != "takedown"} == {name: rows for name, rows in wet.items() if name != "takedown"}
    assert tombstones.load(made / "home").hit({"uid": uid}) == wet["takedown"][0]["takedown_id"]


def test_taking_down_twice_is_taking_down_once(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uid = read_index(made / "shards")["uid"][0].as_py()
    one, two = (take(capsys, "--uid", uid)["takedown"][0] for _ in range(2))
    assert (one["new"], two["new"], one["takedown_id"]) == (True, False, two["takedown_id"])
    for table in ("takedowns", "takedown_uids", "revocations"):
        assert len(pq.read_table(made / "home" / "catalog" / table)) == 1
    digest = tombstones.load(made / "home").digest
    reshard(made)
    assert reshard(made).reused
    assert tombstones.load(made / "home").digest == digest


def test_the_same_picture_under_another_caption_is_pointed_out(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sha, url = "1" * 64, "http://x.test/1.png"
    uids = [make_uid(url, text) for text in ("one", "two")]
    append(made / "home" / "catalog", "downloads", pa.table({"uid": uids, "url": [url] * 2, "sha256": [sha] * 2}), "r")
    answer = take(capsys, "--uid", uids[0])
    assert answer["the same picture under other names"] == [{"sha256": sha, "uid": uids[1], "url": url}]


def test_a_pair_that_several_pages_show_goes_with_any_of_them(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = [{"page_url": f"http://{host}.test/page.html", "source": "demo", "place": ""} for host in ("a", "b")]
    rows = [{"uid": f"{n:032x}", "url": f"http://pictures.test/{n}.png", "page_url": "http://a.test/page.html", "pages": pages[: n + 1]} for n in range(2)]
    append(made / "home" / "catalog", "pairs", pa.Table.from_pylist(rows, schema=pa.schema([TABLES["pairs"].field(name) for name in rows[0]])), "r")
    assert take(capsys, "--domain", "b.test", "--dry-run")["takedown"][0]["samples"] == 1
    assert take(capsys, "--domain", "a.test", "--dry-run")["takedown"][0]["samples"] == 2
    assert take(capsys, "--url", "http://B.test/page.html")["takedown"][0]["samples"] == 1
    uids = pq.read_table(made / "home" / "catalog" / "takedown_uids")["uid"].to_pylist()
    assert uids == [rows[1]["uid"]]


def test_revoked_shards_leave_the_dvc_cache_and_nothing_else_does(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    for words in (["init", "--no-scm", "-q"], ["add", "-q", "shards"]):
        subprocess.run([DVC, *words], cwd=made, env=env, check=True, capture_output=True)
    cache = made / ".dvc" / "cache" / "files" / "md5"
    row = read_index(made / "shards").to_pylist()[0]
    old = file_md5(made / "shards" / row["shard"])
    index = file_md5(made / "shards" / "index.parquet")
    take(capsys, "--uid", row["uid"])
    reshard(made)
    subprocess.run([DVC, "add", "-q", "shards"], cwd=made, env=env, check=True, capture_output=True)
    before = {path.parent.name + path.name for path in cache.glob("??/*")}
    code, proof = scan(capsys)
    assert (code, sorted(path[:30] for path in proof["cached_files_that_hold_it"])) == (0, sorted(md5[2:] for md5 in (old, index)))
    capsys.readouterr()
    assert main(["takedown", "--purge", "--json"]) == 0
    assert sorted(json.loads(capsys.readouterr().out)["purged"]) == sorted([old, index])
    assert before - {path.parent.name + path.name for path in cache.glob("??/*")} == {old, index}
    assert verify(made / "shards")
    said = subprocess.run([DVC, "status"], cwd=made, env=env, check=True, capture_output=True, text=True).stdout
    assert "up to date" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--uid", "abc"], "Found --uid 'abc', expected 32 hex digits"),
        (["--pdq", "0" * 63 + "g"], "expected 64 hex digits"),
        (["--url", "no address"], "expected a whole address"),
        (["--domain", "https://"], "expected a name such as example.org"),
        (["--domain", "*.example.org"], "expected a name such as example.org"),
        (["--pdq", "0" * 64, "--radius", "200"], "expected 0 to 64 bits"),
        (["--uid", "0" * 32, "--url", "http://a.test/"], "Found 2 of --uid, --url, --domain, --sha256, --pdq, expected exactly one"),
        ([], "Found 0 of"),
        (["--uid", "0" * 32, "--scan"], "expected exactly one"),
        (["--scan"], "Found no takedown in"),
    ],
)  # fmt: skip
def test_a_selector_that_makes_no_sense_is_one_sentence_and_takes_nothing_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path))
    assert main(["takedown", *words]) == 20
    assert said in capsys.readouterr().err
    assert not tombstones.load(tmp_path)


def test_tombstones_cover_by_name_address_bytes_and_look(tmp_path: Path) -> None:
    near = f"{0xFF << 100:064x}"
    rows = [("uid", "a" * 32, 0), ("url", "https://x.org/%EA%B0%80.jpg", 0), ("domain", "y.org", 0), ("sha256", "b" * 64, 0), ("pdq", near, 10)]
    for number, (kind, value, radius) in enumerate(rows):
        append(tmp_path / "catalog", "takedowns", pa.table({"takedown_id": [str(number)], "kind": [kind], "value": [value], "radius": [radius]}), str(number))
    stones = tombstones.load(tmp_path)
    for row, found in [
        ({"uid": "a" * 32}, "0"), ({"uid": "c" * 32, "url": "http://z.org/"}, ""), ({"url": "HTTPS://X.org:443/가.jpg"}, "1"), ({"final_url": "https://x.org/가.jpg"}, "1"),
        ({"url": "https://x.org/other.jpg"}, ""), ({"url": "http://a.b.Y.org/1"}, "2"), ({"page_url": "http://y.org"}, "2"), ({"url": "http://noty.org/"}, ""),
        ({"url": "http://y.org.evil.net/"}, ""), ({"pages": [{"page_url": "http://y.org/p"}]}, "2"), ({"sha256": "B" * 64}, "3"), ({"pdq": near}, "4"),
        ({"pdq": f"{(0xFF << 100) ^ 0x3FF:064x}"}, "4"), ({"pdq": f"{(0xFF << 100) ^ 0x7FF:064x}"}, ""), ({"pdq": None, "url": None, "uid": None}, ""), ({"url": "http://[broken"}, ""),
    ]:  # fmt: skip
        assert stones.hit(row) == found, row
    assert pc.all(pc.equal(pa.array([bool(stones), bool(tombstones.Tombstones())]), pa.array([True, False]))).as_py()


def data_folder(root: Path) -> None:
    """The folders of the small world where assets look for them."""
    (root / "data").mkdir()
    for name in ("pairs", "images", "filtered"):
        (root / "data" / {"pairs": "candidate_pairs"}.get(name, name)).symlink_to(root / "in" / name)
    (root / "data" / "shards").symlink_to(root / "shards")


@pytest.mark.parametrize(
    ("kind", "value", "leaked"),
    [
        ("url", "http://photos.demo.test/0007.png", {"in_pictures": 1, "in_kept": 1, "in_shards": 1}),
        ("url", "http://photos.demo.test/page3.html", {"in_pictures": 10, "in_kept": 10, "in_shards": 10}),
        ("domain", "demo.test", {"in_pictures": 60, "in_kept": 60, "in_shards": 60}),
        ("sha256", f"{9:064x}", {"in_pictures": 1, "in_kept": 1, "in_shards": 1}),
        ("pdq", "f" * 64, {"in_pictures": 2, "in_kept": 2, "in_shards": 2}),
        ("uid", "0" * 32, {"in_pictures": 0, "in_kept": 0, "in_shards": 0}),
    ],
)
def test_a_leak_is_found_by_every_column_even_when_the_takedown_knew_no_uid(made: Path, kind: str, value: str, leaked: dict[str, int]) -> None:
    from assets.checks import no_takedown_leak
    from assets.filtered import filtered
    from assets.images import images
    from assets.shards import shards
    from pipelines.resources import Launcher

    data_folder(made)
    status = pq.read_table(made / "in" / "images" / "status.parquet").to_pylist()
    pq.write_table(
        pa.Table.from_pylist([{**row, "pdq": "f" * 60 + "fff0" if number < 2 else "0" * 64} for number, row in enumerate(status)]),
        made / "in" / "images" / "status.parquet",
    )
    launcher = Launcher(root=str(made))
    stone = {"takedown_id": "1" * 32, "kind": kind, "value": value, "radius": 8}
    for asset, look in ((images, "in_pictures"), (filtered, "in_kept"), (shards, "in_shards")):
        assert no_takedown_leak(asset, look)(launcher).passed
    append(made / "home" / "catalog", "takedowns", pa.Table.from_pylist([stone]), "t")
    for asset, look in ((images, "in_pictures"), (filtered, "in_kept"), (shards, "in_shards")):
        result = no_takedown_leak(asset, look)(launcher)
        assert (result.passed, result.metadata["samples that were taken down"].value) == (leaked[look] == 0, leaked[look]), look


def test_the_check_of_the_shards_and_the_table_of_the_snapshot_say_what_was_taken_down(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from assets.checks import no_takedown_leak
    from assets.shards import shards
    from pipelines.ledger import changes
    from pipelines.resources import Launcher

    data_folder(made)
    launcher, check = Launcher(root=str(made)), no_takedown_leak(shards, "in_shards")
    before = json.loads((made / "shards.run" / "result.json").read_text())["data_version"]
    assert check(launcher).passed
    take(capsys, "--uid", read_index(made / "shards")["uid"][0].as_py())
    assert not check(launcher).passed
    now = reshard(made).data_version
    assert check(launcher).passed
    rows = changes(made / "home" / "catalog", before, now)
    assert {(row["change"], row["reason"]): row["samples"] for row in rows} == {("removed", "taken_down"): 1, ("unchanged", ""): 59}
    assert changes(made / "home" / "catalog", "", now) == changes(made / "home" / "catalog", "f" * 36, now) == []


def test_a_scan_finds_it_in_every_kind_of_file_and_says_which_it_could_not_read(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import sqlite3

    import numpy as np

    uid = read_index(made / "shards")["uid"][0].as_py()
    take(capsys, "--uid", uid)
    take(capsys, "--url", "https://x.org/a.jpg")
    reshard(made)
    assert scan(capsys)[1]["found"] == []
    folder = made / "shards.run"
    database = sqlite3.connect(folder / "answers.sqlite")
    database.execute("CREATE TABLE answers (uid TEXT, n INTEGER)")
    database.execute("INSERT INTO answers VALUES (?, 1)", (uid,))
    database.commit()
    database.close()
    pq.write_table(pa.table({"nested": [[{"deep": [f"near {uid}"]}]]}), folder / "nested.parquet")
    pq.write_table(pa.table({"json": [json.dumps({"url": "HTTPS://X.org/a.jpg"}).encode()]}), folder / "bytes.parquet")
    (folder / "img2dataset.log").write_text(f"line\nlooked at https://x.org/a.jpg, {uid}\n")
    (folder / "img_emb").mkdir()
    (folder / "metadata").mkdir()
    np.save(folder / "img_emb" / "img_emb_0.npy", np.zeros((3, 2)))
    pq.write_table(pa.table({"uid": ["0" * 32] * 2}), folder / "metadata" / "metadata_0.parquet")
    (folder / "broken.parquet").write_bytes(b"PAR1")
    code, proof = scan(capsys)
    assert code == 20
    assert {Path(hit["path"]).name: hit["hits"] for hit in proof["found"]} == {
        "answers.sqlite": 1, "nested.parquet": 1, "bytes.parquet": 1, "img2dataset.log": 1, "img_emb_0.npy": 1,
    }  # fmt: skip
    assert [said.split(":")[0].rpartition("/")[2] for said in proof["not_readable"]] == ["broken.parquet"]


def test_a_scan_reads_every_size_and_packing_and_says_what_it_could_not_look_at(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import bz2
    import gzip
    import io
    import lzma
    import tarfile

    import numpy as np

    from vlm_core.data.lineage.exports import pack_uids

    uid = read_index(made / "shards")["uid"][0].as_py()
    take(capsys, "--uid", uid)
    take(capsys, "--url", "https://x.org/a.jpg")
    reshard(made)
    folder, hit = made / "shards.run" / "more", json.dumps({"url": "https://x.org/a.jpg"}).replace("/", "\\/")
    folder.mkdir()
    lines = (json.dumps({"n": n, "pad": "x" * 1000}) + "\n" for n in range(66_000))
    with (folder / "large.jsonl").open("w") as stream:
        stream.writelines(lines)
        stream.write(hit)
    assert (folder / "large.jsonl").stat().st_size > 66 * 10**6
    (folder / "one_line.json").write_text("[" + "1, " * 1_500_000 + hit + "]")
    (folder / "packed.jsonl.gz").write_bytes(gzip.compress(f"first\n{hit}\n".encode()) + gzip.compress(hit.encode()))
    (folder / "packed.csv.bz2").write_bytes(bz2.compress(f"url\nhttps://x.org/a.jpg\n".encode()))
    (folder / "packed.txt.xz").write_bytes(lzma.compress(uid.encode()))
    with pa.output_stream(str(folder / "packed.tsv.zst"), compression="zstd") as packed:
        packed.write(f"1\t{uid}\n".encode())
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as tar:
        info = tarfile.TarInfo("a.json")
        info.size = len(hit)
        tar.addfile(info, io.BytesIO(hit.encode()))
    (folder / "packed.tar.gz").write_bytes(gzip.compress(inner.getvalue()))
    (folder / "no_ending").write_text(f"looked at {uid}")
    (folder / f"{uid}.jpg").write_bytes(b"\xff\xd8\xff")
    np.save(folder / "uids.npy", pack_uids([uid, "0" * 32]))
    np.save(folder / "numbers.npy", np.arange(4))
    pq.write_table(pa.table({"site": pa.array([uid, "b"]).dictionary_encode()}), folder / "coded.parquet")
    (folder / "cut.json.gz").write_bytes(gzip.compress(os.urandom(4000).hex().encode())[:-100])
    (folder / "book.pdf").write_bytes(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + os.urandom(100))
    code, proof = scan(capsys)
    assert code == 20
    assert {Path(hit["path"]).name: hit["hits"] for hit in proof["found"]} == {
        "large.jsonl": 1, "one_line.json": 1, "packed.jsonl.gz": 2, "packed.csv.bz2": 1, "packed.txt.xz": 1, "packed.tsv.zst": 1, "packed.tar.gz": 1,
        "no_ending": 1, f"{uid}.jpg": 1, "uids.npy": 1, "coded.parquet": 1,
    }  # fmt: skip
    assert [said.split(": ")[0].rpartition("/")[2] for said in proof["not_readable"]] == ["cut.json.gz"]
    assert [said.rpartition("/")[2] for said in proof["not_looked_at"]] == ["book.pdf: no reader for .pdf"]
    for path in folder.iterdir():
        if path.name not in {"book.pdf", "numbers.npy"}:
            path.unlink()
    code, proof = scan(capsys)
    assert (code, proof["hits"], proof["not_readable"], len(proof["not_looked_at"])) == (20, 0, [], 1), "what nobody looked at proves nothing"
    (folder / "book.pdf").unlink()
    assert scan(capsys)[0] == 0


def test_exports_are_looked_at_and_named_by_the_proof_until_they_are_made_again(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uid = read_index(made / "shards", "train")["uid"][0].as_py()

    def export(*more: str) -> dict[str, int]:
        done = {}
        for kind in ("croissant", "datasheet", "datacomp", "hf"):
            done[kind] = main(["export-data", "--recipe", kind, "--in", "shards=shards", "--out", f"exports/{kind}", *more])
        return done

    assert set(export().values()) == {0}
    take(capsys, "--uid", uid)
    assert set(export().values()) == {20}, "the snapshot is revoked"
    assert set(export("--set", "despite_takedowns=true").values()) == {0}
    assert (made / "exports" / "hf" / "REVOKED.txt").read_text().startswith("Made of shards (")
    reshard(made)
    found = {Path(hit["path"]).relative_to(made).as_posix() for hit in scan(capsys)[1]["found"]}
    assert {"exports/croissant/metadata.parquet", "exports/datacomp/uids.npy", "exports/hf/train/metadata.jsonl", f"exports/hf/train/{uid}.jpg"} <= found
    assert any(name.startswith("exports/croissant/train-") for name in found)
    assert set(export().values()) == {0}
    code, proof = scan(capsys)
    assert (code, proof["found"], proof["not_looked_at"]) == (0, [], [])
    assert not (made / "exports" / "hf" / "REVOKED.txt").exists()


def test_the_proof_is_a_run_of_its_own_and_its_check_reads_it(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from assets.checks import nothing_left
    from pipelines.resources import Launcher
    from vlm_core.data.config import TakedownProof

    def proof() -> Report:
        return run("takedown-proof", TakedownProof(), {}, made / "data" / "takedown_proof")

    launcher = Launcher(root=str(made))
    assert proof().counts["takedowns"] == 0
    assert nothing_left(launcher).passed
    take(capsys, "--uid", read_index(made / "shards")["uid"][0].as_py())
    report = proof()
    assert report.counts["hits"] == json.loads((made / "data" / "takedown_proof" / "proof.json").read_text())["hits"] > 0
    assert not nothing_left(launcher).passed
    reshard(made)
    report = proof()
    assert (report.counts["takedowns"], report.counts["hits"], report.counts["not_looked_at"]) == (1, 0, 0)
    assert nothing_left(launcher).passed
