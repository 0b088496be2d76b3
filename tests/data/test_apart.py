"""A mix of snapshots trains on nothing that resembles what any of them holds out: by uid, bytes, looks or caption."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pdqhash
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.small_world import stage_for
from vlm_core.data.config import Loader, Mixed, Shard
from vlm_core.data.sample import CAPTIONS, DOWNLOADS, PAIRS, make_uid
from vlm_core.data.shards import apart
from vlm_core.data.shards.samples import MixedSamples, ShardSamples, training_samples
from vlm_core.data.shards.shards import shard, split_of
from vlm_core.data.shards.tar import TarWriter
from vlm_core.stage import home

CONFIG = Shard(held_out=0.3)


class Made(NamedTuple):
    """A sample as wanted: which side of the split, which picture, which captions."""

    side: str
    picture: bytes
    caption: str
    reworded: str = ""
    sha256: str = ""

    @property
    def url(self) -> str:
        return f"http://pictures.test/{self.caption.replace(' ', '_')}.jpg"

    @property
    def uid(self) -> str:
        return make_uid(self.url, self.caption)


def scene(seed: int, quality: int = 95) -> bytes:
    """A picture of large soft spots, which hashes can tell from others; another quality has other bytes and nearly the same looks."""
    spots = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(spots).resize((96, 96), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def flat() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (96, 96), "white").save(stream, "JPEG")
    return stream.getvalue()


def snapshot(root: Path, samples: list[Made]) -> Path:
    """Shards of these samples, each a group of its own whose name falls on the wanted side."""
    pairs, status, kept, captions = [], [], [], []
    for number, made in enumerate(sorted(samples, key=lambda made: made.uid)):
        group = next(name for name in (f"{number}-{tried}" for tried in range(99)) if split_of(name, CONFIG) == made.side)
        pairs.append({"uid": made.uid, "url": made.url, "source": "test", "caption": made.caption, "lang": "en", "captions": [{"text": made.caption, "origin": "alt", "lang": "en"}]})
        sha256 = made.sha256 or f"{int(made.uid, 16):064x}"
        status.append({"uid": made.uid, "url": made.url, "status": "ok", "shard": "00000.tar", "sha256": sha256, "width": 96, "height": 96})
        kept.append({"uid": made.uid, "caption": made.caption, "lang": "en", "clip_score": 0.3, "group": group})
        if made.reworded:
            captions.append({"uid": made.uid, "caption_id": made.uid, "origin": "rewritten", "text": made.reworded, "lang": "en", "accepted": True})
    folders = {name: root / name for name in ("pairs", "images", "filtered", "captions")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(pairs, PAIRS), folders["pairs"] / "pairs.parquet")
    pq.write_table(pa.Table.from_pylist(status, DOWNLOADS), folders["images"] / "status.parquet")
    pq.write_table(pa.Table.from_pylist(kept), folders["filtered"] / "kept.parquet")
    pq.write_table(pa.Table.from_pylist(captions, CAPTIONS), folders["captions"] / "captions.parquet")
    with TarWriter(folders["images"] / "00000.tar") as tar:
        for made in sorted(samples, key=lambda made: made.uid):
            tar.add(f"{made.uid}.jpg", made.picture)
            tar.add(f"{made.uid}.json", b"{}")
    stage = stage_for(root, folders)
    shard(CONFIG, stage)
    return stage.out


FOX, BOAT, TREE, BLANK = (
    Made("heldout", scene(0), "a red fox!"), Made("heldout", scene(1), "the old boat", sha256="b" * 64), Made("heldout", scene(2), "one tall tree"),
    Made("heldout", flat(), "nothing at all"),
)  # fmt: skip
LIKE_TESTED = Made("train", scene(50, 60), "a house by a lake")  # of the main snapshot; the other one tests it
OWN = [Made("train", scene(10 + number), f"main picture {number}") for number in range(6)]
OTHERS = {
    "uid": [FOX._replace(side="train", picture=scene(20))],
    "bytes": [Made("train", scene(21), "some ship or other", sha256="b" * 64)],
    "looks": [Made("train", scene(2, quality=50), "a big plant")],
    "caption": [Made("train", scene(22), "A  Red, FOX"), Made("train", scene(23), "animal in a wood", reworded="a red fox")],
}
FREE = [*(Made("train", scene(30 + number), f"web picture {number}") for number in range(5)), Made("train", flat(), "an empty sheet"), Made("train", scene(41), "a red foxtrot")]
TESTED = Made("heldout", scene(50), "somebody's home")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of a mix's pictures are kept there."""
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("apart")
    main = snapshot(root / "main", [FOX, BOAT, TREE, BLANK, LIKE_TESTED, *OWN])
    return main, snapshot(root / "web", [TESTED, *FREE, *(made for some in OTHERS.values() for made in some)])


def mixed(two: tuple[Path, Path]) -> MixedSamples:
    samples = training_samples(two[0], Loader(batch_size=4, mix={"web": Mixed(shards=str(two[1]))}))
    assert isinstance(samples, MixedSamples)
    return samples


def test_what_resembles_a_held_out_sample_of_any_snapshot_is_not_trained_on_and_counted_by_what_gave_it_away(two: tuple[Path, Path]) -> None:
    samples = mixed(two)
    assert set(samples.parts[0].uids) == {made.uid for made in OWN}
    assert set(samples.parts[1].uids) == {made.uid for made in FREE}
    assert samples.kept_out == {"kept_out.same_uid": 1, "kept_out.same_bytes": 1, "kept_out.same_looks": 2, "kept_out.same_caption": 2}


def test_one_snapshot_alone_is_read_whole(two: tuple[Path, Path]) -> None:
    samples = training_samples(two[0], Loader(batch_size=4))
    assert (len(samples), samples.kept_out) == (len(OWN) + 1, {})


def test_hashes_are_those_of_the_library_kept_without_names_and_made_again_where_the_file_is_damaged(two: tuple[Path, Path]) -> None:
    samples = ShardSamples(two[1], "heldout")
    made = apart.looks_of(samples)
    file = home() / "looks" / f"{samples.digest}-heldout.npz"
    with Image.open(io.BytesIO(samples.jpeg(0))) as picture:
        bits, quality = pdqhash.compute(np.asarray(picture.convert("RGB")))
    assert np.unpackbits(made.pdq[0]).tolist() == bits.tolist()
    assert made.quality.tolist() == [quality]
    stored = file.read_bytes()
    assert TESTED.uid.encode() not in stored
    for damaged in (stored[: len(stored) // 2], b""):
        file.write_bytes(damaged)
        assert all(np.array_equal(one, two) for one, two in zip(apart.looks_of(samples), made, strict=True))
