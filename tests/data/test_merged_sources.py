"""Captions of one picture from several sources, from two tables and a crawled page to the record in the shard."""

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.loopback import body, png, web
from vlm_core.data.captions.config import Recaption
from vlm_core.data.config import Embed, OfflineScorer, Shard
from vlm_core.data.crawl.config import Download, Extract, Fetch
from vlm_core.data.crawl.page_store import PAGES
from vlm_core.data.filter.config import ExactDuplicates, Filter, TextRules
from vlm_core.data.shards.shards import read_samples
from vlm_core.run import run

PAGE = b'<html lang="de"><body><figure><img src="/cat.png" alt="a small cat asleep on a sofa"><figcaption>eine kleine Katze</figcaption></figure></body></html>'
CAT = "a small cat asleep on a sofa"
ONE = [("http://a.test/cat.png", CAT, "CC0"), ("http://a.test/dog.png", "a brown dog", "CC0")]  # known rights: of copies this one stays
TWO = [("http://a.test/cat.png", CAT, ""), ("http://b.test/copy.png", "our cat", ""), ("http://a.test/bird.png", "two birds sing", "")]


def write_table(file: Path, rows: list[tuple[str, str, str]]) -> Path:
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([("url", "caption", "licence"), *rows])
    return file


@pytest.mark.flow
def test_one_sample_holds_the_captions_of_two_tables_and_a_page_and_of_its_exact_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    at = {name: tmp_path / name for name in ("pairs", "images", "embeddings", "filtered", "captions", "shards")}
    pages = tmp_path / "pages"
    pages.mkdir()
    row = dict.fromkeys(PAGES.names, "") | {"url": "http://a.test/page.html", "final_url": "http://a.test/page.html", "status": "ok", "http_status": 200}
    pq.write_table(pa.Table.from_pylist([{**row, "content_type": "text/html", "html": PAGE}], PAGES), pages / "pages.parquet")
    tables = {"pages": write_table(tmp_path / "one.csv", ONE), "pages.more": write_table(tmp_path / "two.csv", TWO), "pages.web": pages}
    extracted = run("extract", Extract(), tables, at["pairs"])
    assert (extracted.counts["in"], extracted.counts["merged"], extracted.counts["pairs"]) == (6, 2, 4)

    same = png(seed=1)
    with web({"/cat.png": body(same), "/copy.png": body(same), "/dog.png": body(png(seed=2)), "/bird.png": body(png(seed=3))}) as served:
        config = Download(network=served.network("a.test", "b.test"), fetch=Fetch(retries=0, deadline_s=5), processes=1, threads=2)
        run("download", config, {"pairs": at["pairs"]}, at["images"])
    scorer = OfflineScorer(fit_pairs=0, size_px=96, precision="32")
    run("embed", Embed(scorer=scorer), {"images": at["images"], "pairs": at["pairs"]}, at["embeddings"])
    inputs = {name: at[name] for name in ("pairs", "images", "embeddings")}
    run("filter", Filter(text=TextRules(), exact_duplicates=ExactDuplicates()), inputs, at["filtered"])
    run(
        "recaption",
        Recaption(rewrite=None, synthetic=None, fusion=None, translation=None),
        {name: at[name] for name in ("filtered", "pairs", "embeddings")},
        at["captions"],
    )
    run("shard", Shard(held_out=0.6), {name: at[name] for name in ("pairs", "images", "filtered", "captions")}, at["shards"])

    records = {sample.record["caption"]: sample.record for sample in read_samples(at["shards"])}
    assert len(records) == 3  # the copy went, its caption stayed
    (cat,) = (record for caption, record in records.items() if "cat" in caption)
    assert {(caption["text"], caption["lang"]) for caption in cat["captions"]} >= {("eine kleine Katze", "de")}
    assert {caption["text"] for caption in cat["captions"]} == {CAT, "eine kleine Katze", "our cat"}
    assert len(cat["captions"]) == 3  # no text twice, however many sources say it
    pair = next(row for row in pq.read_table(at["pairs"] / "pairs.parquet").to_pylist() if row["caption"] == CAT)
    assert {page["source"].split(":")[0].split("/")[-1] for page in pair["pages"]} == {"table", "page"}
    assert len(pair["pages"]) == 3  # every place that shows it
