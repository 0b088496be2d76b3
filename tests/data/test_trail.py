"""The trail of decisions beside a plain loop over samples: the same rows, whatever the size of a block, in memory and in a file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.data.filter_world import World
from vlm_core.data.filter import filters, language
from vlm_core.data.filter.config import Filter, ImageRules, LanguageRule, TextRules
from vlm_core.data.filter.cut_config import Cut
from vlm_core.data.filter.decisions import Trail, Verdict, joined, reason_codes, reason_names
from vlm_core.data.filter.pool import load_pool
from vlm_core.data.filter.text_rules import plain_counts

RULES = {"text": TextRules(min_words=3, min_chars=12, max_words=6, by_script=False), "image": ImageRules(min_side=50, max_aspect=2.0, formats=["png"])}
CAPTIONS = (
    "a red ball",
    "",
    "two  small\tdogs\x1frun",
    "ein roter Ball liegt hier",
    "犬と猫 が いる ところ です",
    "no",
    "a b c d e f g h",
    "café au lait, très chaud",
)


@pytest.fixture(params=[7, 65_536])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    for module in ("vlm_core.data.blocks", "vlm_core.data.filter.decisions"):
        monkeypatch.setattr(f"{module}.BLOCK", request.param)
    return int(request.param)


def made_up(samples: int = 60) -> World:
    world, rng = World(), np.random.default_rng(3)
    for i in range(samples):
        more: dict[str, Any] = {
            "lang": str(rng.choice(["en", "de", "ja", ""])),
            "original": tuple(rng.integers(20, 200, 2).tolist()),
            "size": int(rng.integers(1, 9999)),
        }
        more["mime"], more["status"] = str(rng.choice(["image/png", "image/jpeg"], p=[0.8, 0.2])), str(rng.choice(["ok", "http_4xx"], p=[0.9, 0.1]))
        world.add(str(CAPTIONS[int(rng.integers(len(CAPTIONS)))]), 1, url=f"http://host.test/{i:03}.png", cosine=float(rng.integers(0, 20) / 20), **more)
    return world


def by_hand(world: World, clip: dict[str, float]) -> Iterator[tuple[str, str, float | None, float | None, str, str]]:
    """(uid, rule, score, threshold, reason, detail) of each sample, rule by rule until one drops it: text, picture, page language, the best half by score."""
    samples = sorted(world.samples, key=lambda sample: str(sample["uid"]))
    stays: dict[str, list[tuple[str, float | None, float | None, str, str]]] = {}
    for sample in samples:
        words, chars, (width, height) = len(sample["caption"].split()), len(sample["caption"]), sample["original"]
        text = "no_caption" if not chars else "too_few_words" if words < 3 else "too_few_chars" if chars < 12 else "too_many_words" if words > 6 else ""
        short, long, size, mime, lang = min(width, height), max(width, height), sample["size"], sample["mime"], sample["lang"]
        image = "too_small" if short < 50 else "aspect_ratio" if long > 2 * short else "format" if mime != "image/png" else ""
        trail = [("downloaded", None, None, "" if sample["status"] == "ok" else "not_downloaded", sample["status"])]
        trail += [("text", float(words), 3.0, text, f"{chars} characters"), ("image", float(short), 50.0, image, f"{width} x {height}, {size} bytes, {mime}")]
        trail += [("language", None, None, "" if lang in {"en", "de"} else "language", f"page {lang}")]
        end = next((place for place, row in enumerate(trail) if row[3]), None)
        stays[sample["uid"]] = trail if end is None else trail[: end + 1]
    left = sorted((uid for uid, trail in stays.items() if not trail[-1][3]), key=lambda uid: (-clip[uid], uid))
    kept = left[: len(left) // 2]
    for uid in left:
        stays[uid].append(("cuts.clip", clip[uid], clip[kept[-1]], "" if uid in kept else "low_score", "clip_score in all"))
    return ((uid, *row) for uid in sorted(stays) for row in stays[uid])


@pytest.mark.parametrize("scratch", [False, True])
def test_every_decision_is_what_a_loop_over_the_samples_says(tmp_path: Path, block: int, scratch: bool) -> None:
    world = made_up()
    pool = load_pool(*world.write(tmp_path / "in").values(), tmp_path if scratch else None)
    config = Filter(**RULES, language=LanguageRule(who="page", wanted=["en", "de"]), cuts={"clip": Cut(fraction=0.5, within="all")})
    trail = filters.judge(config, pool, scratch=tmp_path if scratch else None)
    expected = list(by_hand(world, dict(zip(pool.uid.tolist(), pool.clip.tolist(), strict=True))))
    found = trail.decisions().to_pylist()
    assert [(row["uid"], row["rule"], row["score"], row["threshold"], row["reason"].replace("ok", ""), row["detail"]) for row in found] == expected
    assert all(row["keep"] == (row["reason"] == "ok") for row in found)
    uids = pool.uid.tolist()
    dropped = {uid: reason for uid, _, _, _, reason, _ in expected if reason}
    assert trail.reason.tolist() == [dropped.get(uid, "") for uid in uids]
    assert {uids[row] for row in trail.rows} == set(uids) - dropped.keys()
    assert [uids[row] for row in trail.dropped("too_small")] == [uid for uid in uids if dropped.get(uid) == "too_small"]
    assert len({row["seq"] for row in found}) == len(found) > 100


def test_details_are_put_together_when_they_are_read_and_a_rule_may_see_few_rows(tmp_path: Path, block: int) -> None:
    uids = [f"{row:02}" for row in range(30)]
    for folder in (None, tmp_path):
        trail = Trail(uids, folder)
        trail.add("one", Verdict(reason_codes(["email" if row % 3 else "" for row in range(30)]), detail=[f"seen {row}" for row in range(30)]))
        with trail.segment():
            part = trail.rows[6:]
            names = pa.DictionaryArray.from_arrays(pa.array([row % 2 for row in range(len(part))], pa.int32()), pa.array(["even", "odd"]))
            trail.look("two", part, Verdict(reason_codes([""] * len(part)), part / 2, part * 1.0, joined("n ", part, ", ", names)))
        rows = [(row["uid"], row["rule"], row["score"], row["detail"]) for row in trail.decisions().to_pylist() if row["rule"] == "two"]
        assert rows == [("18", "two", 9.0, "n 18, even"), ("21", "two", 10.5, "n 21, odd"), ("24", "two", 12.0, "n 24, even"), ("27", "two", 13.5, "n 27, odd")]
        assert trail.counts() == {"in": 30, "kept": 10, "dropped.email": 20}
        assert trail.tally == {"one": {"": 10, "email": 20}, "two": {"": 4}}


def test_captions_are_counted_alike_in_any_slice_and_across_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm_core.data.filter.text_rules.WORDS_BLOCK", 3)
    texts = [caption * times for caption in (*CAPTIONS, " lead", "trail ", "\x1c\x1d", "a\x0bb\x00c", "\x85x\u3000y") for times in (1, 2)]
    column = pa.array(texts, pa.string())
    for begin, end in ((0, len(texts)), (1, 9), (5, 6), (4, 4), (11, len(texts))):
        words, chars = plain_counts(column[begin:end])
        assert words.tolist() == [len(text.split()) for text in texts[begin:end]]
        assert chars.tolist() == [len(text) for text in texts[begin:end]]


def test_the_language_that_fasttext_names_first_decides_in_reference_mode(tmp_path: Path) -> None:
    world = World()
    for number, text in enumerate(
        ("two small dogs run over the green field", "zwei kleine Hunde laufen über die grüne Wiese", "犬が二匹、緑の野原を\n走っている", "42")
    ):
        world.add(text, number, lang="fr")
    pool = load_pool(*world.write(tmp_path / "in").values())
    verdict = filters.RULES["language"](LanguageRule(who="fasttext", wanted=["en", "ja"]), pool, np.arange(4))
    said = dict(zip(pool.raw.tolist(), zip(reason_names(verdict.reason), pool.lang[np.arange(4)], strict=True), strict=True))
    model = language._lid()
    for text, (reason, lang) in said.items():
        answer = model.predict(text.replace("\n", " "))[0][0].removeprefix("__label__")
        assert (lang, reason) == (answer, "" if answer in {"en", "ja"} else "language")
    assert [lang for _, lang in sorted((text, lang) for text, (_, lang) in said.items() if text != "42")] == ["en", "de", "ja"]
