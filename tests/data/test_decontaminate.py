"""Evaluation pictures and captions are kept out of the pool, however they were turned, cropped or compressed."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests.data.filter_world import WIDTH, World, encoded, picture
from tests.data.test_dedup import planted
from vlm_core import run as runner
from vlm_core.data.filter import fingerprints
from vlm_core.data.filter import near_hashes, perceptual
from vlm_core.data.filter.decontaminate import runs
from vlm_core.data.filter.config import Decontaminate, Filter
from vlm_core.errors import BadManifest, MissingInput, NothingLeft, SchemaMismatch

SCORER = "made_up@111111111111"
SENTENCE = "two brown dogs are running over a wide green field behind the old red barn"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


def printed(path: Path, *pictures: Image.Image, captions: list[str] | None = None, vectors: np.ndarray | None = None, scorer: str = SCORER) -> str:
    """A file of fingerprints of these pictures, in the set `set`, with keys 0, 1, ..."""
    vectors = np.eye(len(pictures), WIDTH) if vectors is None else vectors
    rows = [
        {"set": "set", "key": str(number), "sha256": "", "captions": captions or [], "vector": vectors[number].tolist(), **fingerprints.hashes(image)}
        for number, image in enumerate(pictures)
    ]
    fingerprints.write_prints(path, rows, scorer, 0.9)
    return str(path)


def verdicts(world: World, config: Decontaminate, folder: Path) -> dict[str, str]:
    """Caption -> '' or the detail of the drop."""
    runner.run("filter", Filter(decontaminate=config), world.write(folder / "in"), folder / "out")
    caption = {sample["uid"]: sample["caption"] for sample in world.samples}
    rows = pq.read_table(folder / "out" / "decisions.parquet").to_pylist()
    return {caption[row["uid"]]: "" if row["keep"] else row["detail"] for row in rows if row["rule"] == "decontaminate"}


@pytest.mark.parametrize("name", ["jpeg 40", "half the size", "mirrored"])
def test_hashes_find_what_was_turned_compressed_or_made_smaller(tmp_path: Path, name: str) -> None:
    world, original = World(), picture(1, 256)
    world.add("a copy", fingerprints.COPIES[name](original))
    world.add("turned, too", fingerprints.COPIES[name](original).rotate(90))
    world.add("another picture", picture(2, 256))
    found = verdicts(world, Decontaminate(prints=printed(tmp_path / "prints.parquet", original), use_vectors=False), tmp_path)
    assert found["another picture"] == ""
    assert {found["a copy"].split(": ")[0], found["turned, too"].split(": ")[0]} == {"set/0"}


def test_hashes_of_altered_versions_find_crops_off_the_grid_small_turns_and_negatives(tmp_path: Path) -> None:
    world, original = World(), picture(1, 256)
    box = tuple(round(256 * side) for side in (0.061, 0.037, 0.061 + 0.88, 0.037 + 0.88))
    world.add("a crop", original.crop(box))
    world.add("a crop, mirrored", ImageOps.mirror(original.crop(box)))
    world.add("askew", original.rotate(4, fillcolor="white"))
    world.add("negative", ImageOps.invert(original))
    for number in range(2, 12):
        world.add(f"another {number}", picture(number, 256))
    prints = printed(tmp_path / "prints.parquet", original)
    found = verdicts(world, Decontaminate(prints=prints, use_vectors=False), tmp_path)
    assert {found[name] for name in ("a crop", "a crop, mirrored", "askew", "negative")} == {"set/0: altered"}
    assert [name for name, detail in found.items() if detail and name.startswith("another")] == []
    strict = verdicts(world, Decontaminate(prints=prints, use_vectors=False, altered_bits=0), tmp_path / "strict")
    assert [name for name, detail in strict.items() if "altered" in detail] == ["negative"]


def test_a_vector_as_close_as_the_calibrated_cosine_gives_a_crop_away(tmp_path: Path) -> None:
    world = World()
    uids = [world.add(caption, number) for number, caption in enumerate(("close", "just not", "far", "no vector"))]
    world.samples[3]["cosine"] = None
    inputs = world.write(tmp_path / "in")
    image = np.load(inputs["embeddings"] / "img_emb" / "img_emb_0.npy")
    axes = np.eye(3, WIDTH)
    for row, cosine in enumerate((0.92, 0.88, 0.0)):
        image[row] = cosine * axes[0] + np.sqrt(1 - cosine**2) * axes[1]
    np.save(inputs["embeddings"] / "img_emb" / "img_emb_0.npy", image)
    prints = printed(tmp_path / "prints.parquet", picture(90), picture(91), vectors=axes[[0, 2]])

    def gone(config: Decontaminate, out: str) -> list[str]:
        runner.run("filter", Filter(decontaminate=config), inputs, tmp_path / out)
        rows = pq.read_table(tmp_path / out / "decisions.parquet").to_pylist()
        return sorted(row["detail"] for row in rows if row["reason"] == "contaminated" and row["uid"] in uids)

    assert gone(Decontaminate(prints=prints), "out") == ["set/0: vector"]
    assert gone(Decontaminate(prints=prints, min_cosine=0.85), "lower") == ["set/0: vector"] * 2
    assert gone(Decontaminate(prints=prints, use_vectors=False), "hashes") == []
    with pytest.raises(SchemaMismatch, match="Found fingerprints by the scorer other@2 in"):
        gone(Decontaminate(prints=printed(tmp_path / "other.parquet", picture(90), scorer="other@2")), "never")


def test_a_run_of_thirteen_words_gives_a_caption_away_and_a_short_one_goes_as_a_whole(tmp_path: Path) -> None:
    world = World()
    short = "a cat sleeps on the sofa"
    for number, caption in enumerate((
        f"Look: {SENTENCE}!", " ".join(SENTENCE.split()[:12]), short.upper() + ".", f"{short} at home", "a cat sleeps", "something else entirely is seen here",
    )):  # fmt: skip
        world.add(caption, number)
    found = verdicts(
        world, Decontaminate(prints=printed(tmp_path / "prints.parquet", picture(90), captions=[SENTENCE, short, "a cat sleeps"]), use_vectors=False), tmp_path
    )
    assert [bool(found[sample["caption"]]) for sample in world.samples] == [True, False, True, False, False, False]
    assert list(runs("One two, three four five six", 4)) == ["one two three four", "two three four five", "three four five six"]


def test_equal_bytes_are_found_without_structure_or_vector(tmp_path: Path) -> None:
    world, plain = World(), Image.new("RGB", (64, 64), "white")
    world.add("white", plain, cosine=None)
    world.add("also white", plain, cosine=None, raw=b"other bytes")
    world.add("a picture", 3)
    row = {"set": "set", "key": "0", "sha256": world_sha(world), "captions": [], "vector": [1.0] + [0.0] * (WIDTH - 1), **fingerprints.hashes(plain)}
    fingerprints.write_prints(tmp_path / "prints.parquet", [row], SCORER, 0.999)
    found = verdicts(world, Decontaminate(prints=str(tmp_path / "prints.parquet")), tmp_path)
    assert found == {"white": "set/0: bytes", "also white": "", "a picture": ""}


def world_sha(world: World) -> str:
    return hashlib.sha256(world.samples[0]["raw"]).hexdigest()


@pytest.mark.parametrize(("parts", "radius"), [(16, 31), (16, 0), (4, 2), (4, 6)])
def test_the_index_finds_the_first_hash_of_the_base_within_the_radius(parts: int, radius: int) -> None:
    codes = planted(seed=radius, n=400, parts=parts, most=2 * radius + 3)
    ours, base = codes[::2], codes[1::2]
    gaps = perceptual.distance(ours[:, None], base[None, :])
    expected = np.where((gaps <= radius).any(axis=1), (gaps <= radius).argmax(axis=1), -1)
    assert np.array_equal(near_hashes.NearTo(base, radius).first(ours), expected)
    assert (expected >= 0).any()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 1))
def test_the_calibrated_cosine_is_the_largest_that_reaches_the_recall(seed: int, recall: float) -> None:
    rng = np.random.default_rng(seed)
    cosine, hashed = rng.uniform(-1, 1, 50), rng.random(50) < 0.5
    least = fingerprints.calibrate(cosine, hashed, recall)

    def reached(value: float) -> float:
        return float((hashed | (cosine >= value)).mean())

    assert reached(least) >= recall - 1e-9
    assert least == 1.0 or reached(np.nextafter(least, 2)) < recall - 1e-9


def test_the_eight_turns_are_distinct_and_closed_under_turning() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    names = {turn.tobytes() + bytes(turn.shape) for turn in fingerprints.turns(rgb)}
    assert len(names) == 8
    for turn in fingerprints.turns(rgb):
        assert {again.tobytes() + bytes(again.shape) for again in fingerprints.turns(turn)} == names


def test_plain_folders_are_evaluation_sets_with_their_captions(tmp_path: Path) -> None:
    for name in ("flickr/a", "flickr/b", "coco/c"):
        file = tmp_path / f"{name}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(encoded(picture(1)))
    (tmp_path / "coco" / "c.txt").write_text("a dog\n\n two dogs \n")
    found = {item.key: (item.dataset, item.captions) for item in fingerprints.eval_pictures(tmp_path, ["test"])}
    assert found == {"coco/c.png": ("coco", ("a dog", "two dogs")), "flickr/a.png": ("flickr", ()), "flickr/b.png": ("flickr", ())}
    (tmp_path / "flickr" / "b.png").write_bytes(b"not a picture")
    with pytest.raises(BadManifest, match="b.png unreadable"):
        list(fingerprints.eval_pictures(tmp_path, ["test"]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(NothingLeft, match="neither a dataset.json nor a picture"):
        list(fingerprints.eval_pictures(tmp_path / "empty", ["test"]))


@pytest.mark.parametrize(("damage", "error", "match"), [
    (lambda path: path.unlink(), MissingInput, "expected the fingerprints of the evaluation sets"),
    (lambda path: pq.write_table(pq.read_table(path).replace_schema_metadata(None), path), SchemaMismatch, "without the columns of fingerprints"),
])  # fmt: skip
def test_a_file_that_is_no_fingerprints_is_refused(tmp_path: Path, damage: Callable[[Path], Any], error: type[Exception], match: str) -> None:
    path = Path(printed(tmp_path / "prints.parquet", picture(1)))
    damage(path)
    with pytest.raises(error, match=match):
        fingerprints.read_prints(path)
