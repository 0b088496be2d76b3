"""What a filter withholds is in none of its sheets and tables, and not on the dataset page."""

import base64
import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from tests.data.filter_world import World, picture
from vlm_core import run as runner
from vlm_core.data.filter import filters, look_rules, report
from vlm_core.data.filter.config import BlockedWords, Faces, Filter, Personal, Rights, Safety
from vlm_core.data.filter.decisions import REASONS, Reason
from vlm_core.data.filter.pool import load_pool
from vlm_core.data.filter.withheld import NO_PICTURE, NO_TEXT
from vlm_core.data.lineage.tombstones import Tombstones
from vlm_core.data.pictures import EDGE, LINE, LINES
from vlm_core.data.report.config import DatasetPage
from vlm_core.data.sample import CAPTIONS

MARK = (255, 0, 255)  # a colour that no other picture has in such purity
SECRETS = {"email": "ann@example.org", "phone": "+49 30 1234 5678", "blocked_word": "heck", "taken_down": "zebra"}


def marked(seed: int) -> Image.Image:
    image = picture(seed, 128)
    ImageDraw.Draw(image).rectangle((32, 32, 96, 96), fill=MARK)
    return image


class Judge:
    """Finds pictures unsafe, or faces in them, by their marks."""

    version = "marks"

    def score(self, pictures: Any) -> np.ndarray:
        return np.array([0.99 if _is_marked(Image.open(BytesIO(data))) else 0.01 for data in pictures])

    def faces(self, data: bytes) -> list[tuple[float, float, float, float]]:
        return []


def _is_marked(image: Image.Image) -> bool:
    """A patch of nearly that colour, in any scale and after JPEG."""
    rgb = np.asarray(image.convert("RGB"), np.int16)
    return bool((np.abs(rgb - MARK).max(-1) < 25).sum() > 400)


def secret_world(word: str = "zebra") -> World:
    world = World()
    for number in range(10):
        world.add(f"a plain picture number {number}", number)
    world.add(f"a {word} that somebody withdrew", marked(30), url="http://gone.test/zebra.png")
    world.add("an owner objects", marked(31), page_optout="noai")
    world.add("all rights reserved", marked(32), licence="All rights reserved")
    world.add("no licence at all", marked(33), licence="")
    world.add("not for everybody", marked(34))
    world.add(f"{SECRETS['email'] if word == 'zebra' else 'bob@example.com'} has it", 20)
    world.add(f"call {SECRETS['phone'] if word == 'zebra' else '+49 89 8765 4321'}", 21)
    world.add("what the heck" if word == "zebra" else "darn these things", 22)
    return world


def config(folder: Path) -> Filter:
    (folder / "words.txt").write_text("heck\ndarn\n")
    words = BlockedWords(file=str(folder / "words.txt"))
    return Filter(rights=Rights(refused_licences=["All rights"], unknown="deny"), blocked_words=words, personal=Personal(), safety=Safety(), faces=Faces(max_faces=3))


@pytest.fixture(autouse=True)
def made_up_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    for name in ("OpenNsfw", "HaarFaces"):
        monkeypatch.setattr(look_rules, name, lambda *_: Judge())
    stones = Tombstones(domains={"gone.test": "t1"}, digest="1" * 64)
    monkeypatch.setattr(filters.tombstones, "load", lambda home: stones)


def test_every_reason_on_the_lists_is_one_that_a_rule_gives() -> None:
    assert set(REASONS) == set(get_args(Reason))
    assert (NO_PICTURE | NO_TEXT) - set(REASONS) == set()


def test_withheld_pictures_and_texts_are_in_no_sheet_and_no_table(tmp_path: Path) -> None:
    inputs = secret_world().write(tmp_path / "in")
    done = runner.run("filter", config(tmp_path), inputs, tmp_path / "out")
    expected = ("taken_down", "opted_out", "refused_licence", "no_licence", "unsafe", "email", "phone", "blocked_word")
    assert [done.counts.get(f"dropped.{reason}") for reason in expected] == [1] * 8
    assert _is_marked(marked(30).resize((48, 48))), "the marks survive scaling"
    for name in ("kept.png", "dropped.png"):
        with Image.open(tmp_path / "out.run" / "pictures" / name) as sheet:
            assert not _is_marked(sheet), name
    said = json.dumps(done.tables)
    assert [secret for secret in (*SECRETS.values(), "gone.test") if secret in said] == []
    # other secrets, the same sheet: their texts are not drawn either
    runner.run("filter", config(tmp_path), secret_world("quagga").write(tmp_path / "in2"), tmp_path / "out2")
    sheets = [set(_tiles(tmp_path / out / "pictures" / "dropped.png")) for out in ("out.run", "out2.run")]
    assert sheets[0] == sheets[1]
    assert len(sheets[0]) > 3


def _tiles(path: Path) -> list[bytes]:
    with Image.open(path) as sheet:
        wide, high = EDGE, EDGE + LINES * LINE + 4
        return [sheet.crop((x, y, x + wide, y + high)).tobytes() for y in range(0, sheet.height, high) for x in range(0, sheet.width, wide)]


def test_withheld_pictures_and_texts_are_not_on_the_dataset_page(tmp_path: Path) -> None:
    inputs = secret_world().write(tmp_path / "in")
    runner.run("filter", config(tmp_path), inputs, tmp_path / "filtered")
    folders = {**inputs, **{name: tmp_path / name for name in ("filtered", "captions", "shards")}}
    for name in ("captions", "shards"):
        folders[name].mkdir()
    pq.write_table(CAPTIONS.empty_table(), folders["captions"] / "captions.parquet")
    pq.write_table(pa.table({name: pa.array([], pa.string()) for name in ("uid", "split", "shard")}), folders["shards"] / "index.parquet")
    runner.run("report", DatasetPage(), folders, tmp_path / "page")
    page = (tmp_path / "page" / "index.html").read_text()
    shown = [Image.open(BytesIO(base64.b64decode(code))) for code in re.findall(r'src="data:image/[a-z]+;base64,([^"]+)"', page)]
    assert len(shown) > 5
    assert not any(map(_is_marked, shown))
    assert [secret for secret in SECRETS.values() if secret in page] == []
    uids = {sample["caption"]: sample["uid"] for sample in secret_world().samples}
    assert f'title="{uids["not for everybody"]}"><div class="frame">not shown' in page


def test_the_drops_of_other_rules_are_shown(tmp_path: Path) -> None:
    world = secret_world()
    world.add("tiny thing", marked(40), original=(5, 5))
    pool = load_pool(*world.write(tmp_path / "in").values())
    trail = filters.judge(Filter(image={"min_side": 32}), pool)
    filters.write_decisions(trail, tmp_path / "decisions.parquet")
    report.pictures(pool, trail, tmp_path / "decisions.parquet", tmp_path / "pictures")
    with Image.open(tmp_path / "pictures" / "dropped.png") as sheet:
        assert _is_marked(sheet)
