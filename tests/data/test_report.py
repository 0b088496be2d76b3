"""The dataset page: its numbers, its escapes, its bounds; looked at by a real browser where there is one."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.filter_world import World
from vlm_core import run as seam
from vlm_core.data.report import queries
from vlm_core.data.lineage.catalog import append
from vlm_core.data.filter.config import Cut, ExactDuplicates, Filter, Personal, Rights, TextRules
from vlm_core.data.report.config import DatasetPage
from vlm_core.data.sample import CAPTIONS
from vlm_core.errors import MissingInput, SchemaMismatch
from vlm_core.track import NullTracker

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}</style>'


def make_world(folder: Path) -> dict[str, Path]:
    """Twelve samples in two languages and on two hosts: two copies, an e-mail address, an opt-out, a failed download, the three worst scores."""
    world, uids = World(), []
    for number in range(8):
        more: dict[str, Any] = {"lang": "ko"} if number >= 6 else {}
        uids.append(world.add(f"a plain picture number {number}", number, cosine=0.9 - number / 10, url=f"http://one.test/{number}.png", **more))
    uids.append(world.add("a plain picture number 0", 0, cosine=0.9, url="http://two.test/copy.png"))
    uids.append(world.add("write to someone@example.org for it", 20, url="http://two.test/mail.png"))
    uids.append(world.add("an owner who objects to it", 21, page_optout="noai", url="http://two.test/no.png"))
    uids.append(world.add("a picture that is gone", 22, status="http_4xx", url="http://two.test/gone.png", licence=""))
    world.add(HOSTILE, 23, cosine=0.95, url="javascript:alert(3)//x", licence=HOSTILE)
    inputs = world.write(folder)
    settings = Filter(rights=Rights(), text=TextRules(), personal=Personal(), exact_duplicates=ExactDuplicates(), cuts={"clip": Cut(fraction=0.75, within="all")})
    seam.run("filter", settings, inputs, folder / "filtered")
    kept = pq.read_table(folder / "filtered" / "kept.parquet").to_pylist()
    rows = [_caption(row["uid"], "alt", row["caption"]) for row in kept]
    rows += [_caption(row["uid"], "rewritten", f"again: {row['caption']}", generator="tiny-llm", accepted=place % 2 == 0) for place, row in enumerate(kept)]
    (folder / "captions").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, CAPTIONS), folder / "captions" / "captions.parquet")
    (folder / "shards").mkdir()
    index = [{"uid": row["uid"], "split": "heldout" if place < 2 else "train", "shard": "train-00000.tar"} for place, row in enumerate(kept)]
    pq.write_table(pa.Table.from_pylist(index), folder / "shards" / "index.parquet")
    return {**inputs, **{name: folder / name for name in ("filtered", "captions", "shards")}}


def _caption(uid: str, origin: str, text: str, generator: str = "", accepted: bool = True) -> dict[str, Any]:
    reason = "" if accepted else "unchanged"
    return {"uid": uid, "caption_id": f"{origin}-{uid}", "origin": origin, "text": text, "lang": "en", "generator": generator, "accepted": accepted, "reason": reason,
            "image_score": 0.5 if generator else None}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("report_world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM_HOME", str(folder / "home"))
        return make_world(folder)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def page_of(world: dict[str, Path], out: Path, **settings: Any) -> str:
    seam.run("report", DatasetPage(**settings), world, out)
    return (out / "index.html").read_text()


class Reader(HTMLParser):
    """What a browser would make of the page: elements, attributes, text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_the_page_counts_what_is_there(world, tmp_path, home):
    page = page_of(world, tmp_path / "report")
    tiles = re.findall(r"<div><b>([\d,]+)</b>([^<]+)</div>", page)
    kept = pq.read_table(world["filtered"] / "kept.parquet").num_rows
    assert tiles == [
        ("13", "candidate pairs"),
        ("12", "pictures fetched"),
        (str(kept), "kept by the filter"),
        (str(kept - 2), "in shards, train"),
        ("2", "in shards, heldout"),
    ]
    tables = queries.Tables(world)
    found = {row["reason"]: row["n"] for row in queries.reasons(tables)}
    assert found["exact_duplicate"] == found["email"] == found["opted_out"] == found["not_downloaded"] == 1
    assert sum(found.values()) + kept == 13
    hosts = {row["name"]: (row["candidates"], row["fetched"], row["kept"]) for row in queries.by_domain(tables, 20)}
    assert hosts["two.test"][:2] == (4, 3)
    assert hosts["one.test"][:2] == (8, 8)
    assert sum(count for *_, count in hosts.values()) == kept
    assert {row["name"]: row["candidates"] for row in queries.by_language(tables, 20)} == {"en": 11, "ko": 2}
    assert {row["name"]: row["candidates"] for row in queries.by_licence(tables, 1)}["2 more"] == 2  # none stated, and the hostile one
    origins = {row["origin"]: row for row in queries.origins(tables)}
    assert (origins["alt"]["accepted"], origins["rewritten"]["captions"], origins["rewritten"]["accepted"]) == (kept, kept, -(-kept // 2))
    assert origins["rewritten"]["generators"] == "tiny-llm"


def test_histograms_hold_every_score_and_the_cut_lies_between_kept_and_dropped(world):
    (found,) = [row for row in queries.histograms(queries.Tables(world)) if row["rule"] == "cuts.clip"]
    decisions = [row for row in pq.read_table(world["filtered"] / "decisions.parquet").to_pylist() if row["rule"] == "cuts.clip"]
    assert sum(row["kept"] for row in found["bins"]) == sum(row["keep"] for row in decisions)
    assert sum(row["dropped"] for row in found["bins"]) == sum(not row["keep"] for row in decisions) > 0
    worst_kept, best_dropped = min(row["score"] for row in decisions if row["keep"]), max(row["score"] for row in decisions if not row["keep"])
    assert [best_dropped < cut["at"] <= worst_kept + 1e-6 for cut in found["cuts"]] == [True]
    for row in decisions:  # each lies in the bin that covers it
        assert any(b["low"] - 1e-9 <= row["score"] <= b["high"] + 1e-9 and b["kept" if row["keep"] else "dropped"] for b in found["bins"])


def test_hostile_captions_are_text_and_nothing_else(world, tmp_path, home):
    page = page_of(world, tmp_path / "report", title=HOSTILE)
    reader = Reader(page)
    assert {tag for tag, _ in reader.elements} & {"script", "iframe", "object", "embed", "link", "base", "form"} == set()
    assert [name for _, attributes in reader.elements for name in attributes if name.startswith("on")] == []
    assert all(attributes["src"].startswith("data:image/jpeg;base64,") for tag, attributes in reader.elements if tag == "img")
    assert {str(attributes["href"])[0] for tag, attributes in reader.elements if tag == "a"} == {"#"}
    assert sum(text == HOSTILE for text in reader.texts) >= 3  # title, heading, and the caption that was kept, letter by letter
    assert "49" not in [text for text in reader.texts]  # {{7*7}} was not evaluated
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page


def test_what_must_not_be_shown_is_counted_only(world, tmp_path, home):
    page = page_of(world, tmp_path / "report")
    assert "someone@example.org" not in page
    assert "(withheld)" in page
    objects = next(row["uid"] for row in pq.read_table(world["pairs"] / "pairs.parquet").to_pylist() if row["page_optout"])
    assert re.search(rf'<figure title="{objects}"><div class="frame">not shown</div>', page)


def test_duplicates_and_captions_stand_side_by_side(world):
    tables = queries.Tables(world)
    (pair,) = queries.duplicates(tables, 10)
    urls = {row["uid"]: row["url"] for row in pq.read_table(world["pairs"] / "pairs.parquet").to_pylist()}
    assert {urls[pair["stays"]], urls[pair["goes"]]} == {"http://one.test/0.png", "http://two.test/copy.png"}
    assert pair["reason"] == "exact_duplicate"
    beside = queries.several_captions(tables, 3)
    assert [[row["origin"] for row in sample["captions"]] for sample in beside] == [["alt", "rewritten"]] * 3


def test_equal_inputs_give_equal_bytes_and_the_page_names_what_it_shows(world, tmp_path, home):
    assert page_of(world, tmp_path / "one") == page_of(world, tmp_path / "two")
    page = (tmp_path / "one" / "index.html").read_text()
    result = json.loads((world["filtered"].with_name("filtered.run") / "result.json").read_text())
    assert result["data_version"] in page
    assert "vlm filter" in page
    assert "fraction: 0.75" in page
    assert str(tmp_path) not in page
    assert "made_up, version 111111111111" in page


def test_the_page_keeps_its_size_and_says_what_it_left_out(tmp_path, home):
    world, rng = World(), np.random.default_rng(0)
    for number in range(30):  # noise is what JPEG cannot make small
        world.add(f"noise {number} " + "long words " * 60, Image.fromarray(rng.integers(0, 256, (256, 256, 3), np.uint8)), cosine=0.5 + number / 1000)
    inputs = world.write(tmp_path)
    seam.run("filter", Filter(), inputs, tmp_path / "filtered")
    rows = [_caption(row["uid"], "alt", row["caption"]) for row in pq.read_table(tmp_path / "filtered" / "kept.parquet").to_pylist()]
    for name in ("captions", "shards"):
        (tmp_path / name).mkdir()
    pq.write_table(pa.Table.from_pylist(rows, CAPTIONS), tmp_path / "captions" / "captions.parquet")
    pq.write_table(pa.table({"uid": [row["uid"] for row in rows], "split": ["train"] * 30, "shard": ["a"] * 30}), tmp_path / "shards" / "index.parquet")
    folders = {**inputs, **{name: tmp_path / name for name in ("filtered", "captions", "shards")}}
    report = seam.run("report", DatasetPage(max_mb=0.3, sheet=30), folders, tmp_path / "report")
    size = (tmp_path / "report" / "index.html").stat().st_size
    assert 200_000 < size <= 300_000
    assert report.counts["pictures"] > 5
    assert report.counts["pictures"] + report.counts["left_out"] == 30
    assert f"{report.counts['left_out']} pictures were left out" in (tmp_path / "report" / "index.html").read_text()


def test_what_was_taken_down_is_not_on_the_page(world, tmp_path, home):
    before = page_of(world, tmp_path / "report")
    gone = pq.read_table(world["filtered"] / "kept.parquet").to_pylist()[0]
    assert gone["uid"] in before
    append(home / "catalog", "takedowns", pa.table({"takedown_id": ["t1"], "kind": ["uid"], "value": [gone["uid"]], "radius": [0]}), "t1")
    after = page_of(world, tmp_path / "report")
    assert gone["uid"] not in after


def test_the_page_goes_to_the_tracker(world, tmp_path, home):
    class Kept(NullTracker):
        found: list[tuple[str, str]] = []

        def artefact(self, path: Path, folder: str = "") -> None:
            assert path.stat().st_size > 10_000
            self.found.append((path.name, folder))

    seam.run("report", DatasetPage(), world, tmp_path / "report", Kept())
    assert Kept.found == [("index.html", "report")]


def test_missing_tables_and_columns_are_one_sentence(world, tmp_path, home):
    (tmp_path / "shards").mkdir()
    with pytest.raises(MissingInput, match=r"Found no file .*index\.parquet"):
        page_of({**world, "shards": tmp_path / "shards"}, tmp_path / "report")
    pq.write_table(pa.table({"uid": ["a"]}), tmp_path / "shards" / "index.parquet")
    with pytest.raises(SchemaMismatch, match="Found no column 'split'"):
        page_of({**world, "shards": tmp_path / "shards"}, tmp_path / "report")


def test_a_set_from_which_nothing_was_dropped_has_a_page_too(tmp_path, home):
    world = World()
    for number in range(3):
        world.add(f"picture {number}", number, cosine=None)
    inputs = world.write(tmp_path)
    seam.run("filter", Filter(), inputs, tmp_path / "filtered")
    for name in ("captions", "shards"):
        (tmp_path / name).mkdir()
    pq.write_table(pa.Table.from_pylist([], CAPTIONS), tmp_path / "captions" / "captions.parquet")
    pq.write_table(pa.table({"uid": ["x"], "split": ["train"], "shard": ["a"]}), tmp_path / "shards" / "index.parquet")
    page = page_of({**inputs, **{name: tmp_path / name for name in ("filtered", "captions", "shards")}}, tmp_path / "report")
    assert "Nothing was dropped." in page
    assert "No rule measured a score." in page
