"""`vlm serve`: the real ClipClient over loopback, and callers that must be refused."""

import base64
import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from vlm_core.cli import main
from vlm_core.data.shards.tar import read_tar
from vlm_core.errors import ConfigError, MissingInput
from vlm_core.models.clip_retrieval_worker import part
from vlm_core.search import server as search

clip_client = part("clip_client")  # the real client
SAME = (2 / 3) ** 0.5  # what a question scores against the very same sample: it fills three blocks, a cross-fitted sample two of them


@pytest.fixture(scope="module")
def port(small_set) -> Iterator[int]:
    yield from serving(search.make_server(small_set, 0))


def serving(server: search.Server) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def client(port) -> Any:
    return clip_client.ClipClient(url=f"http://127.0.0.1:{port}/knn-service", indice_name="filtered", num_images=5)


def ask(port: int, method: str = "GET", path: str = "/health", body: bytes | None = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, data, dict(answer.getheaders())


def post(port: int, question: object, **headers: str) -> tuple[int, object]:
    status, data, _ = ask(port, "POST", "/knn-service", json.dumps(question).encode(), **headers)
    return status, json.loads(data)


def kept(small_set: Path) -> set[str]:
    return set(pq.read_table(small_set / "filtered" / "kept.parquet")["uid"].to_pylist())


def row_of(small_set: Path, number: int) -> dict:
    rows = pq.read_table(small_set / "embeddings" / "metadata" / "metadata_0.parquet").to_pylist()
    return [row for row in rows if row["uid"] in kept(small_set)][number]


def test_clip_client_finds_a_caption_by_its_text(client, small_set):
    row = row_of(small_set, 3)
    client.modality = clip_client.Modality.TEXT.value
    found = client.query(text=row["caption"])
    assert len(found) == 5
    assert found[0]["caption"] == row["caption"]
    assert found[0]["url"] == row["url"]
    assert found[0]["similarity"] == pytest.approx(SAME, abs=5e-3)
    assert [row["similarity"] for row in found] == sorted((row["similarity"] for row in found), reverse=True)


def test_clip_client_finds_a_picture_by_a_file_that_it_uploads(client, small_set, tmp_path):
    row = row_of(small_set, 5)
    (tmp_path / "query.jpg").write_bytes(dict(read_tar(small_set / "images" / "00000.tar"))[f"{row['uid']}.jpg"])
    found = client.query(image=str(tmp_path / "query.jpg"))
    assert found[0]["url"] == row["url"]
    assert found[0]["similarity"] == pytest.approx(SAME, abs=5e-3)


def test_clip_client_finds_a_picture_by_an_embedding_of_any_length(client, small_set):
    rows = pq.read_table(small_set / "embeddings" / "metadata" / "metadata_0.parquet")["uid"].to_pylist()
    row = row_of(small_set, 7)
    vector = np.load(small_set / "embeddings" / "img_emb" / "img_emb_0.npy")[rows.index(row["uid"])].astype(float) * 3
    found = client.query(embedding_input=vector.tolist())
    assert found[0]["url"] == row["url"]
    assert found[0]["similarity"] == pytest.approx(1, abs=5e-3)


def test_only_kept_samples_are_ever_answered_however_many_are_asked_for(port, small_set):
    status, found = post(port, {"text": "face", "num_images": 200, "deduplicate": False})
    assert status == 200
    assert {row["uid"] for row in found} == kept(small_set)
    dropped = {row["uid"] for row in pq.read_table(small_set / "embeddings" / "metadata" / "metadata_0.parquet").to_pylist()} - kept(small_set)
    assert len(dropped) == 8
    assert all(ask(port, path=f"/thumbnail/{uid}.jpg")[0] == 404 for uid in dropped)


def test_equal_pictures_are_answered_once_unless_asked_otherwise(port):
    _, all_rows = post(port, {"text": "x", "num_images": 200, "deduplicate": False})
    _, distinct = post(port, {"text": "x", "num_images": 200})
    assert len(distinct) == len({row["url"] for row in all_rows}) < len(all_rows)


def test_thumbnails_are_the_stored_pictures(port, small_set):
    uid = row_of(small_set, 0)["uid"]
    status, data, headers = ask(port, path=f"/thumbnail/{uid}.jpg")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert data == dict(read_tar(small_set / "images" / "00000.tar"))[f"{uid}.jpg"]


def test_page_shows_results_and_escapes_what_it_is_given(port):
    status, data, headers = ask(port, path="/?q=%3Cscript%3Ealert(1)%3C/script%3E")
    assert status == 200
    assert b"<script>" not in data
    assert data.count(b"<figure ") > 30
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert b"<figure" not in ask(port, path="/")[1]


def test_health_and_indices_are_told(port, small_set):
    assert json.loads(ask(port, path="/indices-list")[1]) == ["filtered"]
    health = json.loads(ask(port)[1])
    assert health["samples"] == len(kept(small_set))
    assert health["scorer"] == "offline"


@pytest.mark.parametrize("host", ["evil.test", "127.0.0.1", "127.0.0.1:1", "localhost.evil.test:80", ""])
def test_a_foreign_host_header_is_refused(port, host):
    assert ask(port, Host=host)[0] == 403


def test_other_sites_in_the_same_browser_are_refused_and_the_own_page_is_not(port):
    question = {"text": "cat", "num_images": 1}
    assert post(port, question, Origin="http://evil.test")[0] == 403
    assert post(port, question, Origin="null")[0] == 403
    assert post(port, question, Origin=f"http://127.0.0.1:{port}")[0] == 200
    assert "Access-Control-Allow-Origin" not in ask(port)[2]


FRONT = "http://front.test:3005"


@pytest.fixture(scope="module")
def open_port(small_set) -> Iterator[int]:
    yield from serving(search.make_server(small_set, 0, origins=[FRONT]))


def test_a_page_of_a_named_origin_may_ask_and_read_and_no_other(open_port):
    body, path = json.dumps({"text": "cat", "num_images": 1}).encode(), "/knn-service"
    status, data, headers = ask(open_port, "POST", path, body, Origin=FRONT)
    assert (status, len(json.loads(data)), headers["Access-Control-Allow-Origin"], headers["Vary"]) == (200, 1, FRONT, "Origin")
    assert "Access-Control-Allow-Credentials" not in headers
    assert ask(open_port, path="/indices-list", Origin=FRONT)[2]["Access-Control-Allow-Origin"] == FRONT
    for stranger in ("http://evil.test", "null", "http://front.test", "https://front.test:3005", f"{FRONT}.evil.test"):
        status, _, headers = ask(open_port, "POST", path, body, Origin=stranger)
        assert (status, "Access-Control-Allow-Origin" in headers) == (403, False)
    assert ask(open_port, "POST", path, body, Origin=FRONT, Host="evil.test")[0] == 403, "a rebound name is none of ours, whoever asks"


def test_a_browser_that_asks_first_is_told_what_a_named_page_may_do_and_others_nothing(open_port, port):
    asked = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "content-type"}
    status, data, headers = ask(open_port, "OPTIONS", "/knn-service", Origin=FRONT, **asked, Access_Control_Request_Private_Network="true")
    told = {name.removeprefix("Access-Control-"): value for name, value in headers.items() if name.startswith("Access-Control-")}
    assert (status, data) == (200, b"")
    assert told == {"Allow-Origin": FRONT, "Allow-Methods": "GET, POST", "Allow-Headers": "Content-Type", "Max-Age": "600", "Allow-Private-Network": "true"}
    for where, origin in ((open_port, "http://evil.test"), (port, FRONT)):
        status, _, headers = ask(where, "OPTIONS", "/knn-service", Origin=origin, **asked)
        assert (status, any(name.startswith("Access-Control") for name in headers)) == (403, False)
    assert ask(open_port, "OPTIONS", "/knn-service")[0] == 403


@pytest.mark.parametrize("origin", ["*", "null", "front.test", "http://front.test/", "http://a.test http://b.test", "file://x"])
def test_what_is_no_single_origin_is_refused_before_anything_is_served(small_set, origin):
    with pytest.raises(ConfigError, match="expected scheme, host and perhaps port"):
        search.make_server(small_set, 0, origins=[origin])


def test_clip_client_may_ask_for_more_than_there_are_and_gets_all_best_first(client, small_set):
    client.num_images, client.deduplicate = 10_000, False
    found = client.query(text="face")
    assert {row["uid"] for row in found} == kept(small_set)
    assert [row["similarity"] for row in found] == sorted((row["similarity"] for row in found), reverse=True)


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ({"image_url": "http://169.254.169.254/latest"}, "not fetched"),
        ({"image": "/etc/passwd"}, "not base64"),
        ({"image": base64.b64encode(b"plain text, not a picture").decode()}, "refused"),
        ({}, "nothing to search"),
        ({"text": "a", "image": "b"}, "exactly one"),
        ({"text": "a" * 2_001}, "at most 2,000"),
        ({"text": ["a"]}, "expected a string"),
        ({"embedding_input": [1.0, 2.0]}, "expected 896"),
        ({"embedding_input": [float("nan")] * 896}, "expected 896"),
        ({"embedding_input": ["a"]}, "expected 896"),
        ({"text": "a", "num_images": 0}, "from 1 to 10,000"),
        ({"text": "a", "num_images": 10_001}, "from 1 to 10,000"),
        ({"text": "a", "modality": "audio"}, "image or text"),
        ({"text": "a", "indice_name": "../etc"}, "expected 'filtered'"),
        ([1], "not an object"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence_and_status_400(port, question, says):
    status, answer = post(port, question)
    assert status == 400
    assert says in answer["error"]


def test_bodies_without_end_and_other_methods_are_refused(port):
    assert ask(port, "POST", "/knn-service", b"not json")[0] == 400
    assert ask(port, "POST", "/knn-service", b"[" * 200_000)[0] == 400
    assert ask(port, "POST", "/knn-service", b"x", Content_Length=str(10**12))[0] == 413
    assert ask(port, "POST", "/other", b"{}")[0] == 404
    assert ask(port, "PUT", "/knn-service", b"{}")[0] == 501
    assert ask(port, path="/thumbnail/../../etc/passwd")[0] == 404


def test_it_listens_on_loopback_only(port):
    ours = psutil.Process().net_connections("tcp")
    assert {place.laddr.ip for place in ours if place.status == psutil.CONN_LISTEN and place.laddr.port == port} == {"127.0.0.1"}


def test_a_busy_port_and_a_missing_folder_are_one_sentence(port, small_set, tmp_path, capsys):
    with pytest.raises(ConfigError, match=rf"Found port {port} of 127\.0\.0\.1 not free \(Address already in use\)"):
        search.make_server(small_set, port)
    with pytest.raises(MissingInput, match="run the main job first"):
        search.make_server(tmp_path, 0)
    assert main(["serve", "--data", str(tmp_path), "--port", str(port)]) == 20
    assert capsys.readouterr().err.startswith("ConfigError: Found port")
