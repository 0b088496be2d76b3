"""Faces that the filter found are blurred where shards are written, and the record says how many."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.filter_world import World, picture
from tests.data.test_faces import head
from vlm_core import run as runner
from vlm_core.data.config import Shard
from vlm_core.data.filter.config import Faces, Filter, TextRules
from vlm_core.data.sample import CAPTIONS
from vlm_core.data.shards.shards import read_manifest, read_samples
from vlm_core.errors import SchemaMismatch


def sharded(world: World, rules: Filter, config: Shard, folder: Path) -> Path:
    inputs = world.write(folder / "in")
    runner.run("filter", rules, inputs, folder / "filtered")
    (folder / "captions").mkdir()
    pq.write_table(CAPTIONS.empty_table(), folder / "captions" / "captions.parquet")
    status = pq.read_table(inputs["images"] / "status.parquet")
    for name in ("width", "height"):  # of the stored picture
        place = status.schema.get_field_index(name)
        status = status.set_column(place, name, pa.array(status[f"original_{name}"].to_pylist(), pa.int32()))
    pq.write_table(status, inputs["images"] / "status.parquet")
    stages = {**{name: inputs[name] for name in ("pairs", "images")}, "filtered": folder / "filtered", "captions": folder / "captions"}
    runner.run("shard", config, stages, folder / "shards")
    return folder / "shards"


def world() -> World:
    made = World()
    for number in range(10):
        made.add(f"a pattern {number}", picture(number, 160))
    made.add("a person", head(150))
    return made


def test_faces_are_blurred_in_the_shards_and_other_pictures_stay_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    config = Shard(held_out=0.3, blur_faces=True)
    plain = {s.record["caption"]: s for s in read_samples(sharded(world(), Filter(faces=Faces()), config.but("blur_faces=false"), tmp_path / "plain"))}
    folder = sharded(world(), Filter(faces=Faces()), config, tmp_path / "blurred")
    hidden = {s.record["caption"]: s for s in read_samples(folder)}
    assert {caption: sample.record["blurred"] for caption, sample in hidden.items() if sample.record["blurred"]} == {"a person": 1}
    assert all(sample.record["blurred"] == 0 for sample in plain.values())
    assert read_manifest(folder)["settings"]["blur_faces"] is True
    assert all(hidden[caption].jpeg == plain[caption].jpeg for caption in plain if caption != "a person")
    before, after = (np.asarray(Image.open(io.BytesIO(samples["a person"].jpeg)).convert("L"), float) for samples in (plain, hidden))
    eyes = slice(85, 115), slice(55, 160)
    assert np.abs(np.diff(after[eyes], axis=1)).mean() < 0.3 * np.abs(np.diff(before[eyes], axis=1)).mean()
    assert hidden["a person"].record["sha256"] == plain["a person"].record["sha256"]  # of the picture as fetched: takedowns still find it


def test_blurring_without_having_looked_for_faces_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    with pytest.raises(SchemaMismatch, match="Found 11 samples in .* whose faces nobody looked for"):
        sharded(world(), Filter(text=TextRules()), Shard(held_out=0.3, blur_faces=True), tmp_path)
    assert json.loads((tmp_path / "filtered.run" / "result.json").read_text())["counts"]["kept"] == 11
