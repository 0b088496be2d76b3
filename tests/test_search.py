"""`vlm serve`: the real ClipClient over loopback, and callers that must be refused."""

import base64
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
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
    server = search.make_server(small_set, 0)
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
        ({"text": "a", "num_images": 0}, "from 1 to 200"),
        ({"text": "a", "num_images": 10**9}, "from 1 to 200"),
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
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; asks which address this machine would use
        own = probe.getsockname()[0]
    with socket.socket() as caller:
        caller.settimeout(2)
        assert own == "127.0.0.1" or caller.connect_ex((own, port)) != 0


def test_a_busy_port_and_a_missing_folder_are_one_sentence(port, small_set, tmp_path, capsys):
    with pytest.raises(ConfigError, match=rf"Found port {port} of 127\.0\.0\.1 not free \(Address already in use\)"):
        search.make_server(small_set, port)
    with pytest.raises(MissingInput, match="run the main job first"):
        search.make_server(tmp_path, 0)
    assert main(["serve", "--data", str(tmp_path), "--port", str(port)]) == 20
    assert capsys.readouterr().err.startswith("ConfigError: Found port")
