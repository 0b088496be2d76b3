"""The verb `embed`, with the offline scorer and, through clip-retrieval in its own process, with an open_clip model of our own."""

import json
from pathlib import Path

import faiss
import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch

from tests.small_set import SCORER, write_inputs
from vlm_core import run as seam
from vlm_core.data.config import Embed, OpenClipScorer
from vlm_core.errors import CheckpointError, MissingInput, NothingLeft
from vlm_core.models import embed as verb
from vlm_core.models import picture_ranges
from vlm_core.models import scorer as scorers

ARCHITECTURE = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def vectors(folder: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    image, text = (np.load(folder / part / f"{part}_0.npy") for part in ("img_emb", "text_emb"))
    return image, text, pq.read_table(folder / "metadata" / "metadata_0.parquet")["uid"].to_pylist()


def test_rows_are_the_fetched_samples_sorted_by_uid_in_the_layout_of_clip_retrieval(small_set):
    image, text, uids = vectors(small_set / "embeddings")
    status = pq.read_table(small_set / "images" / "status.parquet").to_pylist()
    assert uids == sorted(row["uid"] for row in status if row["status"] == "ok")
    assert len(uids) == 80
    assert image.dtype == text.dtype == np.float16
    assert image.shape == text.shape == (80, 896)
    for rows in (image, text):
        assert np.allclose(np.linalg.norm(rows.astype(np.float32), axis=1), 1, atol=2e-3)


def test_stored_vectors_are_what_the_loaded_scorer_says_about_picture_and_caption(small_set):
    image, text, uids = vectors(small_set / "embeddings")
    scorer = scorers.load(small_set / "embeddings")
    store = verb.Pictures(small_set / "images")
    captions = pq.read_table(small_set / "embeddings" / "metadata" / "metadata_0.parquet")["caption"].to_pylist()
    asked_image, asked_text = scorer.encode_images([store.image(uid) for uid in uids]), scorer.encode_texts(captions)
    for asked, stored in ((asked_image, image), (asked_text, text)):
        own = stored != 0  # a sample has zeros where heads would score that have seen its picture
        assert set(own[:, 384:].sum(1)) == {256}
        assert np.allclose((asked * (3 / 2) ** 0.5)[own], stored[own], atol=2e-3)
    assert np.array_equal(image[:, 384:] != 0, text[:, 384:] != 0)


def test_heads_that_score_a_sample_have_not_seen_its_picture(small_set, tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    samples = pq.read_table(small_set / "embeddings" / "metadata" / "metadata_0.parquet").to_pylist()
    block = [0 if row[384:640].any() else 1 for row in vectors(small_set / "embeddings")[0]]
    seen: list[np.ndarray] = []

    def fit(features, texts, seed, epochs):
        seen.append(features.numpy())
        return scorers.Heads().eval()

    monkeypatch.setattr(verb, "fit_heads", fit)
    monkeypatch.setattr(verb, "build_index", lambda *_: None)
    seam.run("embed", Embed(scorer=SCORER), {"images": small_set / "images", "pairs": small_set / "candidate_pairs"}, tmp_path / "again")
    store, scorer = verb.Pictures(small_set / "images"), scorers.load(small_set / "embeddings")
    features = scorer.trunk([store.image(row["uid"]) for row in samples])[0].numpy()
    for row, sample, own in zip(features, samples, block, strict=True):
        nearest = [np.abs(fitted - row).max(1).min() for fitted in seen]
        assert nearest[own] > 1e-3
        assert not sample["fitted"] or nearest[1 - own] < 1e-3


def test_index_holds_every_row_and_finds_each_picture_by_its_own_vector(small_set):
    image, _, _ = vectors(small_set / "embeddings")
    index = faiss.read_index(str(small_set / "embeddings" / "index" / "image.index"))
    assert index.ntotal == 80
    scores, places = index.search(image.astype(np.float32), 2)
    assert np.allclose(scores[:, 0], 1, atol=4e-3)
    own = np.arange(80)
    assert all(row in places[row] or np.allclose(image[places[row][0]], image[row], atol=2e-3) for row in own)


def test_one_picture_with_two_captions_is_seen_once_and_gets_equal_image_vectors(small_set):
    image, _, uids = vectors(small_set / "embeddings")
    sha = dict(zip(*(pq.read_table(small_set / "images" / "status.parquet")[name].to_pylist() for name in ("uid", "sha256")), strict=True))
    by_picture: dict[str, list[int]] = {}
    for row, uid in enumerate(uids):
        by_picture.setdefault(sha[uid], []).append(row)
    twice = [rows for rows in by_picture.values() if len(rows) == 2]
    assert len(twice) == 8
    assert all(np.array_equal(image[a], image[b]) for a, b in twice)


def test_fitted_pairs_are_marked_and_no_more_than_asked_for(small_set):
    table = pq.read_table(small_set / "embeddings" / "metadata" / "metadata_0.parquet").to_pylist()
    report = json.loads((small_set / "embeddings.run" / "result.json").read_text())
    fitted = [row for row in table if row["fitted"]]
    assert len(fitted) == report["metrics"]["fit_pairs"] == SCORER.fit_pairs == 56
    assert {row["lang"] for row in fitted} == {"en"}
    assert len({row["caption"] for row in fitted}) == 56
    assert report["counts"] == {
        "in": 81,
        "without_picture": 1,
        "unreadable": 0,
        "embedded": 80,
        "pictures.new": 72,
        "pictures.reused": 0,
        "texts.new": 80,
        "texts.reused": 0,
    }


def test_same_inputs_give_the_same_bytes_and_a_killed_run_goes_on_from_its_blocks(small_set, tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(picture_ranges, "RANGE", 32)
    inputs = {"images": small_set / "images", "pairs": small_set / "candidate_pairs"}
    seen = []
    trunk = scorers.Offline.trunk

    def dies_in_the_third_block(self, images):
        seen.append(len(images))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return trunk(self, images)

    monkeypatch.setattr(scorers.Offline, "trunk", dies_in_the_third_block)
    with pytest.raises(KeyboardInterrupt):
        seam.run("embed", Embed(scorer=SCORER), inputs, tmp_path / "again")
    report = seam.run("embed", Embed(scorer=SCORER), inputs, tmp_path / "again")
    assert seen == [64, 64, 64, 64]  # 72 pictures in three blocks, each filled up to a batch; the two finished ones were not looked at again
    assert report.data_version == json.loads((small_set / "embeddings.run" / "result.json").read_text())["data_version"]


def test_open_clip_model_of_our_own_runs_through_clip_retrieval_and_agrees_with_the_model_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    write_inputs(tmp_path)
    architecture, checkpoint = tmp_path / "tiny-test-clip.json", tmp_path / "tiny.pt"
    architecture.write_text(json.dumps(ARCHITECTURE))
    open_clip.add_model_config(architecture)
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-test-clip")
    torch.save(model.state_dict(), checkpoint)
    settings = OpenClipScorer(model="tiny-test-clip", checkpoint=str(checkpoint), architecture=str(architecture), batch=16, workers=1)
    inputs = {"images": tmp_path / "images", "pairs": tmp_path / "candidate_pairs"}
    report = seam.run("embed", Embed(scorer=settings), inputs, tmp_path / "embeddings")
    image, text, uids = vectors(tmp_path / "embeddings")
    assert uids == sorted(uids)
    assert image.shape == text.shape == (80, 24)
    store, captions = verb.Pictures(tmp_path / "images"), pq.read_table(tmp_path / "embeddings" / "metadata" / "metadata_0.parquet")["caption"].to_pylist()
    _, _, preprocess = open_clip.create_model_and_transforms("tiny-test-clip", pretrained=str(checkpoint))
    tokens = open_clip.get_tokenizer("tiny-test-clip")(captions)
    with torch.no_grad():
        expected_image = model.eval().encode_image(torch.stack([preprocess(store.image(uid)) for uid in uids]), normalize=True).numpy()
        expected_text = model.encode_text(tokens, normalize=True).numpy()
    assert np.allclose(image, expected_image, atol=2e-3)
    assert np.allclose(text, expected_text, atol=2e-3)
    score = np.array(pq.read_table(tmp_path / "embeddings" / "metadata" / "metadata_0.parquet")["score"].to_pylist())
    assert np.abs(score - (expected_image * expected_text).sum(1)).max() < 1e-5
    assert np.abs(score - (image.astype(np.float32) * text).sum(1)).max() > 1e-5  # rounded vectors would give other scores
    assert json.loads((tmp_path / "embeddings" / "scorer.json").read_text())["scorer"] == "open_clip:tiny-test-clip"
    assert not [file for file in (tmp_path / "embeddings").rglob("*") if file.is_file() and str(tmp_path).encode() in file.read_bytes()]
    assert np.allclose(scorers.load(tmp_path / "embeddings").encode_texts(captions[:3]), text[:3], atol=2e-3)
    assert report.counts["embedded"] == 80
    torch.save({name: value + 0.1 for name, value in model.state_dict().items()}, checkpoint)
    with pytest.raises(CheckpointError, match="run 'vlm embed' again"):
        scorers.load(tmp_path / "embeddings")


def test_no_fetched_picture_and_no_scorer_are_one_sentence_each(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    write_inputs(tmp_path)
    status = pq.read_table(tmp_path / "images" / "status.parquet")
    pq.write_table(status.slice(0, 0), tmp_path / "images" / "status.parquet")
    inputs = {"images": tmp_path / "images", "pairs": tmp_path / "candidate_pairs"}
    with pytest.raises(NothingLeft, match="Found none of 81 candidate pairs"):
        seam.run("embed", Embed(scorer=SCORER), inputs, tmp_path / "embeddings")
    with pytest.raises(MissingInput, match=r"Found no scorer\.json"):
        scorers.load(tmp_path)
