"""Addresses and captions that try to be SQL, markup, formulas or terminal commands (A9), and pairs that try to poison the set (A6)."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.filter_world import World, encoded, picture
from tests.data.small_world import stage_for, write_inputs
from vlm_core.cli import main
from vlm_core.data.lineage.catalog import append, ask, open_catalog
from vlm_core.data.config import Shard
from vlm_core.data.filter.config import DomainCap, Filter, NearDuplicates, Titles
from vlm_core.data.filter.filters import filter_samples
from vlm_core.data.sample import make_uid
from vlm_core.data.shards.shards import read_index, read_samples
from vlm_core.run import run

HOSTILE = [
    "'; DROP TABLE runs; --", '"} , {"uid": "x', "<img src=x onerror=alert(1)>", "=HYPERLINK(\"http://evil.test\")", "+1+1", "@SUM(A1)", "-2+3",
    "\x1b[2J\x1b[31mred\x07", "\u202eright to left\u200b", "a\r\nb\tc", "%s %d {0} ${HOME} $(id) `id`", "\ud55c\uad6d\uc5b4 \u65e5\u672c\u8a9e",
]  # fmt: skip


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot whose captions, licences and sources are hostile, and a model that saw it."""
    root = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM_HOME", str(root / "home"))
        inputs = write_inputs(root / "in", 60)
        for name, file, columns in (("pairs", "pairs.parquet", ("licence", "source", "caption")), ("filtered", "kept.parquet", ("caption",))):
            table = pq.read_table(inputs[name] / file)
            for column in columns:
                values = [HOSTILE[int(uid, 16) % len(HOSTILE)] for uid in table["uid"].to_pylist()]
                table = table.set_column(table.column_names.index(column), column, pa.array(values))
            pq.write_table(table, inputs[name] / file)
        report = run("shard", Shard(held_out=0.3), inputs, root / "shards", recipe=HOSTILE[0])
        append(root / "home" / "catalog", "pairs", pq.read_table(inputs["pairs"] / "pairs.parquet"), "pairs")
        append(root / "home" / "catalog", "models", pa.table({"model_id": ["ab" * 32], "name": [HOSTILE[0]], "snapshot_md5": [report.data_version]}), "models")
    return root


@pytest.fixture(autouse=True)
def _home(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(hostile / "home"))


@pytest.mark.abuse("A9")
def test_hostile_texts_are_stored_as_they_are(hostile: Path) -> None:
    stored = {sample.uid: sample.record for sample in read_samples(hostile / "shards")}
    for uid, record in stored.items():
        assert record["caption"] == record["licence"] == record["source"] == HOSTILE[int(uid, 16) % len(HOSTILE)]
    known = {row["uid"]: row["caption"] for row in ask(open_catalog(hostile / "home" / "catalog"), "SELECT uid, caption FROM sample_source")}
    assert known == {uid: record["caption"] for uid, record in stored.items()}


@pytest.mark.abuse("A9")
def test_a_terminal_is_shown_no_control_character_and_a_machine_gets_the_text_itself(hostile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for uid in read_index(hostile / "shards")["uid"].to_pylist()[:30]:
        assert main(["lineage", "why", uid]) == 0
        said = capsys.readouterr().out
        assert all(letter.isprintable() or letter == "\n" for letter in said)
        assert main(["lineage", "why", uid, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["sample"][0]["caption"] == HOSTILE[int(uid, 16) % len(HOSTILE)]


@pytest.mark.abuse("A9")
def test_a_spreadsheet_is_given_no_formula(hostile: Path, tmp_path: Path) -> None:
    assert main(["lineage", "samples", "ab" * 32, "--csv", str(tmp_path / "all.csv"), "--limit", "0"]) == 0
    with (tmp_path / "all.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(read_index(hostile / "shards", "train"))
    cells = [value for row in rows for value in row.values()]
    assert not [value for value in cells if value[:1] in "=+-@" and value]
    assert '\'=HYPERLINK("http://evil.test")' in cells


@pytest.mark.abuse("A9")
@pytest.mark.parametrize("text", HOSTILE)
def test_no_selector_is_read_as_sql_or_pattern(hostile: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    before = {path.name for path in (hostile / "home" / "catalog").rglob("*")}
    for words in (
        ["lineage", "models", f"--url={text}"],
        ["lineage", "models", f"--domain={text}"],
        ["lineage", "samples", f"x{text}"],
        ["lineage", "diff", text, "x"],
        ["takedown", f"--uid={text}"],
    ):
        assert main(words) == 20
        assert capsys.readouterr().err.split(":")[0] in {"MissingInput", "ConfigError"}
    assert {path.name for path in (hostile / "home" / "catalog").rglob("*")} == before
    assert len(ask(open_catalog(hostile / "home" / "catalog"), "SELECT * FROM runs")) == 1


# ---------------------------------------------------------------- poison


def poisoned(tmp_path: Path) -> tuple[World, dict[str, set[str]]]:
    """120 honest samples; 12 pictures with a patch under one caption; 25 near copies of one picture under many captions; one site with 40 samples."""
    world, planted = World(), dict[str, set[str]]()
    for number in range(120):
        world.add(f"an honest picture of thing number {number}", number, url=f"http://site{number % 40}.test/{number}.png")
    patch = Image.fromarray(np.tile(np.array([[[255, 0, 255], [0, 255, 0]], [[0, 255, 0], [255, 0, 255]]], np.uint8), (4, 4, 1)))
    planted["patch"] = set()
    for number in range(12):
        image = picture(1000 + number)
        image.paste(patch, (80, 80))
        planted["patch"].add(world.add("a photograph of the president", image, url=f"http://bad{number}.test/{number}.png"))
    planted["flood"] = set()
    for number in range(25):
        raw = encoded(picture(2000), "JPEG", quality=60 + number)
        planted["flood"].add(world.add(f"buy this wonderful thing, offer {number}", picture(2000), raw=raw, url=f"http://flood{number}.test/x.jpg"))
    planted["site"] = {world.add(f"everything from one site, picture {n}", 3000 + n, url=f"http://w{n}.greedy.org/{n}.png") for n in range(40)}
    return world, planted


@pytest.mark.abuse("A6")
def test_planted_poison_is_dropped_by_the_rule_that_is_meant_for_it_and_honest_samples_stay(tmp_path: Path) -> None:
    world, planted = poisoned(tmp_path)
    stage = stage_for(tmp_path, world.write(tmp_path / "in"), "filter")
    config = Filter(titles=Titles(max_pictures=5), near_duplicates=NearDuplicates(), domain_cap=DomainCap(max_samples=10))
    filter_samples(config, stage)
    decisions = pq.read_table(stage.out / "decisions.parquet").to_pylist()
    dropped = {row["uid"]: row["reason"] for row in decisions if not row["keep"]}
    found = {name: sum(uid in dropped for uid in uids) for name, uids in planted.items()}
    assert {dropped[uid] for uid in planted["patch"]} == {"frequent_caption"}
    assert found["patch"] == 12, "recall on the backdoor: 12 of 12"
    assert found["flood"] == 24, "one of the copies stays"
    assert found["site"] == 30, "ten of the greedy site stay"
    honest = {make_uid(sample["url"], sample["caption"]) for sample in world.samples[:120]}
    assert not honest & dropped.keys()
    print("bad inputs refused", ", ".join(f"{name} {count}/{len(planted[name])}" for name, count in found.items()))
