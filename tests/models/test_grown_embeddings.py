"""A second `vlm embed` on a crawl that grew: new pictures and texts only, the bytes of a run from nothing, and nothing that left."""

import json
from pathlib import Path

import open_clip
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from tests.models.test_embed import ARCHITECTURE
from tests.scale.verbs import listing
from tests.small_set import SCORER
from vlm_core import run as seam
from vlm_core.data.config import Embed, OpenClipScorer
from vlm_core.data.lineage import scan
from vlm_core.data.lineage.tombstones import Tombstones
from vlm_core.models import embed as verb
from vlm_core.models import open_clip_ranges, whole_batches
from vlm_core.models import scorer as scorers
from vlm_core.stage import Report


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


def pictures_of(small_set: Path) -> list[str]:
    """SHA-256 of all pictures, in an order of no meaning."""
    return sorted(set(pq.read_table(small_set / "images" / "status.parquet")["sha256"].drop_null().to_pylist()))


def inputs(small_set: Path, folder: Path, shas: list[str]) -> dict[str, Path]:
    """The small set, as if only these pictures had been fetched."""
    if not (folder / "images").exists():
        (folder / "images").mkdir(parents=True)
        (folder / "images" / "00000.tar").symlink_to(small_set / "images" / "00000.tar")
    status = pq.read_table(small_set / "images" / "status.parquet")
    pq.write_table(status.filter(pc.is_in(status["sha256"], pa.array(shas))), folder / "images" / "status.parquet")
    return {"images": folder / "images", "pairs": small_set / "candidate_pairs"}


def embed(config: Embed, given: dict[str, Path], out: Path) -> Report:
    return seam.run("embed", config, given, out)


def test_a_grown_crawl_embeds_what_is_new_and_writes_the_bytes_of_a_run_from_nothing(small_set, tmp_path, monkeypatch):
    shas, config, looked_at = pictures_of(small_set), Embed(scorer=SCORER.but("fit_pairs=20")), []
    trunk = scorers.Offline.trunk
    monkeypatch.setattr(scorers.Offline, "trunk", lambda self, images: looked_at.append(len({image.tobytes() for image in images})) or trunk(self, images))
    first = embed(config, inputs(small_set, tmp_path, shas[:45]), tmp_path / "grown")
    second = embed(config, inputs(small_set, tmp_path, shas), tmp_path / "grown")
    assert looked_at == [45, 27]
    assert (first.counts["pictures.new"], first.counts["pictures.reused"]) == (45, 0)
    assert (second.counts["pictures.new"], second.counts["pictures.reused"]) == (27, 45)
    assert (second.counts["texts.new"], second.counts["texts.reused"]) == (80 - first.counts["embedded"], first.counts["embedded"])
    embed(config, inputs(small_set, tmp_path, shas), tmp_path / "nothing")
    assert listing(tmp_path / "grown") == listing(tmp_path / "nothing")


def test_what_leaves_the_inputs_leaves_the_store_and_the_scan_sees_it_until_then(small_set, tmp_path, monkeypatch):
    monkeypatch.setattr(verb, "build_index", lambda *_: None)
    shas, config = pictures_of(small_set), Embed(scorer=SCORER.but("fit_pairs=0"))
    gone, kept = shas[7], tmp_path / "out.run" / "kept"
    stones = Tombstones(sha256s={gone: "t"}, digest="d")
    embed(config, inputs(small_set, tmp_path, shas), tmp_path / "out")
    assert str(kept / "pictures" / "keys.parquet") in {hit["path"] for hit in scan.scan([kept], stones).hits}
    report = embed(config, inputs(small_set, tmp_path, [sha for sha in shas if sha != gone]), tmp_path / "out")
    assert report.counts["pictures.new"] == report.counts["texts.new"] == 0
    assert scan.scan([kept], stones).hits == []
    assert [len(pq.read_table(kept / name / "keys.parquet")) for name in ("pictures", "texts")] == [71, report.counts["embedded"]]


def test_outputs_of_other_settings_of_the_towers_are_not_taken_over(small_set, tmp_path, monkeypatch):
    monkeypatch.setattr(verb, "build_index", lambda *_: None)
    given = inputs(small_set, tmp_path, pictures_of(small_set)[:8])
    embed(Embed(scorer=SCORER.but("fit_pairs=0")), given, tmp_path / "out")
    other = embed(Embed(scorer=SCORER.but("fit_pairs=0", "size_px=128")), given, tmp_path / "out")
    assert (other.counts["pictures.new"], other.counts["pictures.reused"]) == (8, 0)


def test_no_bit_of_a_sentence_vector_depends_on_the_other_sentences():
    few, many = ["a red fox", "two foxes in the snow at night"], ["", "an ox", *(f"picture number {number} of a long series of them" for number in range(50))]
    read = scorers.sentences()
    alone, together = (whole_batches.texts(given, read.lengths, lambda part: read(part).numpy()) for given in (few, [*many, *few]))
    assert (alone == together[-2:]).all()
    assert abs(alone - read(few).numpy()).max() < 1e-5
    assert read.lengths(["", "a red fox"]).tolist() == [2, 5]  # [CLS] .. [SEP]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_open_clip_ranges_of_any_size_and_a_grown_crawl_give_the_same_bytes(small_set, tmp_path, monkeypatch):
    monkeypatch.setattr(verb, "build_index", lambda *_: None)
    architecture, checkpoint = tmp_path / "tiny-grown-clip.json", tmp_path / "tiny.pt"
    architecture.write_text(json.dumps(ARCHITECTURE))
    open_clip.add_model_config(architecture)
    torch.manual_seed(0)
    torch.save(open_clip.create_model("tiny-grown-clip").state_dict(), checkpoint)
    config = Embed(scorer=OpenClipScorer(model="tiny-grown-clip", checkpoint=str(checkpoint), architecture=str(architecture), batch=16, workers=2))
    shas = pictures_of(small_set)
    embed(config, inputs(small_set, tmp_path, shas), tmp_path / "nothing")
    monkeypatch.setattr(open_clip_ranges, "RANGE", 40)
    first = embed(config, inputs(small_set, tmp_path, shas[:45]), tmp_path / "grown")
    second = embed(config, inputs(small_set, tmp_path, shas), tmp_path / "grown")
    assert first.counts["pairs.new"] == second.counts["pairs.reused"] > 40  # two ranges, then one
    assert second.counts["pairs.new"] == 80 - first.counts["pairs.new"]
    assert listing(tmp_path / "grown") == listing(tmp_path / "nothing")
