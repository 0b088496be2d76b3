"""Search by uid and filters, the pages for people, and data that changes under a running service."""

import base64
import http.client
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlm_core.data.lineage.catalog import append
from vlm_core.data.shards.tar import read_tar
from vlm_core.search import library
from vlm_core.search.server import make_server

SNAPSHOT = "5" * 32 + ".dir"


class Service:
    """A running `vlm serve` over a folder of its own."""

    def __init__(self, data: Path) -> None:
        self.data, self.home = data, data / "home"
        self.server = make_server(data, 0, look_every_s=0)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, data

    def find(self, **question: Any) -> list[dict[str, Any]]:
        status, data = self.ask("POST", "/knn-service", json.dumps({"num_images": 200, "deduplicate": False, **question}).encode())
        assert status == 200, data
        found: list[dict[str, Any]] = json.loads(data)
        return found

    def uids(self, **question: Any) -> set[str]:
        return {row["uid"] for row in self.find(**question)}


@pytest.fixture
def service(small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """Over a copy of the small set, with shards that hold two thirds of it, and a catalog that knows an older snapshot of the first ten."""
    data = tmp_path / "data"
    shutil.copytree(small_set, data)
    monkeypatch.setenv("VLM_HOME", str(data / "home"))
    uids = kept(data)
    splits = {uid: ("train", "heldout", "")[place % 3] for place, uid in enumerate(uids)}
    (data / "shards").mkdir()
    pq.write_table(pa.table({"uid": [u for u in uids if splits[u]], "split": [splits[u] for u in uids if splits[u]]}), data / "shards" / "index.parquet")
    rows = {
        "snapshots": [{"snapshot_md5": SNAPSHOT, "n_samples": 10}],
        "snapshot_shards": [{"snapshot_md5": SNAPSHOT, "shard_md5": "ab", "relpath": "train-00000.tar"}],
        "shards": [{"shard_md5": "ab", "split": "train"}],
        "shard_samples": [{"shard_md5": "ab", "uid": uid, "key": f"{place:05}", "pos": place} for place, uid in enumerate(uids[:10])],
        "decisions": [{"seq": 1, "uid": uids[0], "rule": "text", "keep": True, "reason": "ok"}, {"seq": 2, "uid": uids[0], "rule": "cut", "keep": True, "reason": "ok"}],
        "pairs": [{"uid": uids[0], "url": "http://emoji.demo.test/0.png", "caption": "<script>alert(1)</script>"}],
    }  # fmt: skip
    for name, table in rows.items():
        append(data / "home" / "catalog", name, pa.Table.from_pylist(table), "run1")
    running = Service(data)
    yield running
    running.server.shutdown()
    running.server.server_close()


def metadata(data: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(data / "embeddings" / "metadata" / "metadata_0.parquet").to_pylist()
    return rows


def kept(data: Path) -> list[str]:
    return sorted(pq.read_table(data / "filtered" / "kept.parquet")["uid"].to_pylist())


def republish(data: Path, uids: list[str]) -> None:
    """As `vlm filter` would: a new folder under the old name."""
    rows = {row["uid"]: row for row in metadata(data)}
    new, old = data / "filtered.tmp", data / "filtered.old"
    new.mkdir()
    pq.write_table(pa.Table.from_pylist([{"uid": uid, "caption": rows[uid]["caption"], "lang": rows[uid]["lang"]} for uid in uids]), new / "kept.parquet")
    (data / "filtered").rename(old)
    new.rename(data / "filtered")
    shutil.rmtree(old)


def test_more_like_this_gives_the_neighbours_of_a_sample_in_the_order_of_their_cosine_and_not_itself(service):
    data, rows = service.data, metadata(service.data)
    uid = kept(data)[4]
    vectors = np.load(data / "embeddings" / "img_emb" / "img_emb_0.npy").astype(np.float32)
    cosine = vectors @ vectors[[row["uid"] for row in rows].index(uid)]
    picture = {row["uid"]: row["sha256"] for row in rows}  # one picture may be two samples
    order = [picture[rows[place]["uid"]] for place in np.argsort(-cosine) if rows[place]["uid"] in kept(data) and picture[rows[place]["uid"]] != picture[uid]]
    found = service.find(uid=uid, num_images=10, deduplicate=True)
    assert [picture[row["uid"]] for row in found] == list(dict.fromkeys(order))[:10]
    assert uid not in service.uids(uid=uid)
    assert service.ask("POST", "/knn-service", b'{"uid": "00"}')[0] == 400


def test_filters_leave_exactly_the_samples_that_have_the_value(service):
    rows = [row for row in metadata(service.data) if row["uid"] in kept(service.data)]
    korean = {row["uid"] for row in rows if row["lang"] == "ko"}
    assert 0 < len(korean) < len(rows) / 8  # few enough for the exact way
    assert service.uids(text="cat", lang="ko") == service.uids(text="cat", lang="KO") == korean
    assert service.uids(text="cat", lang="en") == {row["uid"] for row in rows} - korean
    assert service.uids(text="cat", domain="emoji.demo.test") == service.uids(text="cat", domain="demo.test") == {row["uid"] for row in rows}
    assert service.uids(text="cat", domain="moji.demo.test") == set()
    splits = {split: service.uids(text="cat", split=split) for split in ("train", "heldout", "none")}
    assert splits["train"] == set(kept(service.data)[::3])
    assert splits["heldout"] == set(kept(service.data)[1::3])
    assert set.union(*splits.values()) == set(kept(service.data))
    assert service.uids(text="cat", snapshot=SNAPSHOT[:6]) == set(kept(service.data)[:10])
    assert service.uids(text="cat", snapshot=SNAPSHOT, split="heldout") == set()
    assert service.uids(text="cat", snapshot=SNAPSHOT, split="train", lang="ko") == korean & set(kept(service.data)[:10])


@pytest.mark.parametrize("question", [{"split": "dev"}, {"snapshot": "77"}, {"lang": 5}, {"domain": "a" * 300}, {"uid": "0" * 32, "text": "cat"}])
def test_filters_that_mean_nothing_are_refused(service, question):
    status, answer = service.ask("POST", "/knn-service", json.dumps({"text": "cat", **question} if "uid" not in question else question).encode())
    assert status == 400
    assert b"Found" in answer


def test_the_exact_way_and_the_index_give_the_same_answer(service, monkeypatch):
    by_index = service.find(text="a red flag", lang="en")
    monkeypatch.setattr(library, "FEW", 2.0)
    exactly = service.find(text="a red flag", lang="en")
    assert [row["uid"] for row in exactly] == [row["uid"] for row in by_index]
    assert np.allclose([row["similarity"] for row in exactly], [row["similarity"] for row in by_index], atol=2e-3)


def test_samples_that_the_filter_adds_or_drops_come_and_go_without_another_index(service):
    everyone, before = [row["uid"] for row in metadata(service.data)], kept(service.data)
    index = service.server.RequestHandlerClass.library.shelf.embedded.index["image"]  # type: ignore[attr-defined]
    added = sorted(set(everyone) - set(before))
    assert len(added) == 8
    republish(service.data, [*before[5:], *added])
    assert service.uids(text="cat") == set(before[5:]) | set(added)
    assert service.ask("GET", f"/thumbnail/{before[0]}.jpg")[0] == 404
    assert service.ask("GET", f"/thumbnail/{added[0]}.jpg")[0] == 200
    assert service.server.RequestHandlerClass.library.shelf.embedded.index["image"] is index  # type: ignore[attr-defined]


def test_what_was_taken_down_disappears_at_once_by_uid_and_by_picture(service):
    uids, rows = kept(service.data), {row["uid"]: row for row in metadata(service.data)}
    assert uids[3] in service.uids(text="cat")
    stones = [
        {"takedown_id": "t1", "kind": "uid", "value": uids[3], "radius": 0},
        {"takedown_id": "t2", "kind": "sha256", "value": rows[uids[7]]["sha256"], "radius": 0},
    ]
    append(service.home / "catalog", "takedowns", pa.Table.from_pylist(stones), "t1")
    gone = {uids[3], *(uid for uid in uids if rows[uid]["sha256"] == rows[uids[7]]["sha256"])}
    assert service.uids(text="cat") == set(uids) - gone
    assert [service.ask("GET", f"/{page}/{uids[3]}{end}")[0] for page, end in (("thumbnail", ".jpg"), ("why", ""))] == [404, 404]
    assert json.loads(service.ask("GET", "/health")[1])["taken_down"] == len(gone)


def test_a_sample_disappears_with_any_of_its_pages_and_with_the_address_it_was_fetched_from(service):
    uids, data = kept(service.data), service.data
    rows = metadata(data)
    assert {"final_url", "pages"} <= rows[0].keys()
    pages = {uids[3]: [{"page_url": f"http://{host}.test/p.html", "source": "", "place": ""} for host in ("emoji", "merged")]}
    finals = {uids[5]: "http://cdn.moved.test/5.png"}
    path = data / "embeddings" / "metadata" / "metadata_0.parquet"
    changed = [{**row, "pages": pages.get(row["uid"], row["pages"]), "final_url": finals.get(row["uid"], row["final_url"])} for row in rows]
    pq.write_table(pa.Table.from_pylist(changed, pq.read_schema(path)), path)
    assert service.uids(text="cat") == set(uids)
    stones = [{"takedown_id": name, "kind": "domain", "value": f"{name}.test", "radius": 0} for name in ("merged", "moved")]
    append(service.home / "catalog", "takedowns", pa.Table.from_pylist(stones), "t1")
    assert service.uids(text="cat") == set(uids) - {uids[3], uids[5]}


def test_a_new_set_of_embeddings_is_read_when_it_is_published(service):
    data = service.data
    rows = metadata(data)
    order = np.arange(len(rows))[::-1]  # the same samples under other row numbers, with their indexes
    new = data / "embeddings.tmp"
    shutil.copytree(data / "embeddings", new)
    import faiss

    for part, name in (("img_emb", "image"), ("text_emb", "text")):
        vectors = np.load(new / part / f"{part}_0.npy")[order]
        np.save(new / part / f"{part}_0.npy", vectors)
        flat = faiss.IndexFlatIP(vectors.shape[1])
        flat.add(vectors.astype(np.float32))
        faiss.write_index(flat, str(new / "index" / f"{name}.index"))
    pq.write_table(pq.read_table(new / "metadata" / "metadata_0.parquet").take(pa.array(order)), new / "metadata" / "metadata_0.parquet")
    before = service.find(text="a red flag", num_images=5)
    (data / "embeddings").rename(data / "embeddings.old")
    assert service.find(text="a red flag", num_images=5) == before  # between the two names: still answered from before
    new.rename(data / "embeddings")
    after = service.find(text="a red flag", num_images=5)
    uids = [row["uid"] for row in rows]
    assert [rows[uids.index(row["uid"])]["sha256"] for row in after] == [rows[row["id"]]["sha256"] for row in before]
    assert [row["id"] for row in after] == [len(rows) - 1 - uids.index(row["uid"]) for row in after]


def test_an_uploaded_picture_finds_itself_through_the_form(service):
    uid = kept(service.data)[2]
    picture = dict(read_tar(service.data / "images" / "00000.tar"))[f"{uid}.jpg"]
    mark = "x" * 20
    parts = [
        f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'.encode(),
        picture,
        f"\r\n--{mark}--\r\n".encode(),
    ]
    status, page = service.ask("POST", "/", b"".join(parts), Content_Type=f"multipart/form-data; boundary={mark}", Origin=f"http://127.0.0.1:{service.port}")
    assert status == 200
    assert re.findall(r'<figure id="([0-9a-f]{32})"', page.decode())[0] == uid
    assert service.ask("POST", "/", b"".join(parts), Content_Type=f"multipart/form-data; boundary={mark}", Origin="http://evil.test")[0] == 403
    for body in (b"", b"nonsense", base64.b64encode(os.urandom(300))):
        status, page = service.ask("POST", "/", body, Content_Type=f"multipart/form-data; boundary={mark}")
        assert status == 400
        assert b"Found" in page


def test_the_page_offers_filters_and_leads_on(service):
    status, page = service.ask("GET", "/?q=flag&lang=ko&split=train")
    text = page.decode()
    assert status == 200
    assert '<option value="ko" selected>ko (' in text
    assert '<option value="train" selected>train (' in text
    assert f'<option value="{SNAPSHOT}">' in text
    shown = re.findall(r'<figure id="([0-9a-f]{32})"', text)
    assert set(shown) <= service.uids(text="flag", lang="ko", split="train")
    assert len(shown) > 0
    assert f'href="/why/{shown[0]}"' in text
    status, page = service.ask("GET", f"/?uid={shown[0]}")
    assert status == 200
    assert shown[0] not in re.findall(r'<figure id="([0-9a-f]{32})"', page.decode())
    status, page = service.ask("GET", "/?uid=nobody")
    assert status == 400
    assert "Found no sample &#39;nobody&#39;" in page.decode()


def test_a_picture_whose_folder_is_just_being_replaced_is_asked_for_again(service):
    uid = kept(service.data)[0]
    (service.data / "images").rename(service.data / "images.old")
    status, answer = service.ask("GET", f"/thumbnail/{uid}.jpg")
    assert (status, b"ask again" in answer) == (503, True)
    (service.data / "images.old").rename(service.data / "images")
    assert service.ask("GET", f"/thumbnail/{uid}.jpg")[0] == 200
    assert service.ask("GET", "/?" + "&".join(f"a{number}=1" for number in range(30)))[0] == 400


def test_why_shows_the_trail_of_a_sample_escaped(service):
    uid = kept(service.data)[0]
    status, page = service.ask("GET", f"/why/{uid}")
    text = page.decode()
    assert status == 200
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    decisions = text.partition("<h2>decisions</h2>")[2]
    assert 0 < decisions.index("<td>text</td>") < decisions.index("<td>cut</td>")
    assert SNAPSHOT in text
    assert service.ask("GET", f"/why/{'0' * 32}")[0] == 404
