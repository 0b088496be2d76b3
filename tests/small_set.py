"""Eighty real pairs cut from the embedded corpus, and their embeddings by the offline scorer: made once per test process.

pytest_plugins = ["tests.small_set"]
def test_...(small_set): small_set / "images", "candidate_pairs", "embeddings", "filtered"
"""

import hashlib
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlm_core import run as seam
from vlm_core.data.config import Embed, OfflineScorer
from vlm_core.data.crawl.corpus import PROJECT, Corpus, Picture
from vlm_core.data.sample import DOWNLOADS, PAIRS, make_uid
from vlm_core.data.shards.tar import TarWriter

SCORER = OfflineScorer(trusted=["emoji.demo.test"], fit_pairs=56, fit_epochs=10, precision="32", size_px=96)
DROPPED = 8  # kept.parquet lacks the last ones


def jpeg(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as picture:
        rgba = picture.convert("RGBA")
    out = io.BytesIO()
    Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB").save(out, "JPEG", quality=95)
    return out.getvalue()


def _rows(corpus: Corpus) -> list[tuple[Picture, str, bytes]]:
    """(picture, language, JPEG): 72 Noto emoji in English, the first 8 of them in Korean too."""
    found = [picture for picture in corpus.pictures if picture.source == "noto" and picture.url and not picture.dirt][::20][:72]
    both = [(picture, "en") for picture in found] + [(picture, "ko") for picture in found[:8]]
    return [(picture, lang, jpeg(corpus.read(picture.file))) for picture, lang in both]


def write_inputs(folder: Path) -> None:
    """candidate_pairs/, images/ (one pair ended as http_4xx) and filtered/ as the data verbs would leave them."""
    with Corpus(PROJECT / "infra/demo/corpus.tar") as corpus:
        rows = _rows(corpus)
    pairs, downloads, pictures = [], [], {}
    for picture, lang, data in rows:
        text, url = picture.captions[lang], picture.url
        uid = make_uid(url, text)
        captions = [{"text": text, "origin": "alt", "lang": lang}]
        pairs.append({"uid": uid, "url": url, "page_url": "http://emoji.demo.test/", "source": "noto", "caption": text, "lang": lang, "captions": captions})
        downloads.append({"uid": uid, "url": url, "status": "ok", "shard": "00000.tar", "sha256": hashlib.sha256(data).hexdigest()})
        pictures[uid] = data
    gone = make_uid("http://emoji.demo.test/gone.png", "gone")
    pairs.append({**pairs[0], "uid": gone, "url": "http://emoji.demo.test/gone.png", "caption": "gone"})
    downloads.append({"uid": gone, "url": "http://emoji.demo.test/gone.png", "status": "http_4xx"})
    for name in ("candidate_pairs", "images", "filtered"):
        (folder / name).mkdir(parents=True)
    ordered = sorted(pairs, key=lambda row: row["uid"])
    pq.write_table(pa.Table.from_pylist(ordered, PAIRS), folder / "candidate_pairs" / "pairs.parquet")
    pq.write_table(pa.Table.from_pylist(sorted(downloads, key=lambda row: row["uid"]), DOWNLOADS), folder / "images" / "status.parquet")
    with TarWriter(folder / "images" / "00000.tar") as tar:
        for uid in sorted(pictures):
            tar.add(f"{uid}.jpg", pictures[uid])
            tar.add(f"{uid}.json", json.dumps({"uid": uid}).encode())
    kept = [{"uid": row["uid"], "caption": row["caption"], "lang": row["lang"]} for row in ordered if row["uid"] != gone][:-DROPPED]
    pq.write_table(pa.Table.from_pylist(kept), folder / "filtered" / "kept.parquet")


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with candidate_pairs, images, filtered and embeddings. Read it, do not change it."""
    folder = tmp_path_factory.mktemp("small_set")
    write_inputs(folder)
    inputs = {"images": folder / "images", "pairs": folder / "candidate_pairs"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM_HOME", str(folder / "home"))
        seam.run("embed", Embed(scorer=SCORER), inputs, folder / "embeddings")
    return folder
