"""Rules of the filter, each on a small made-up world with samples that stay and samples that go, through their settings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.filter_world import World, picture
from tests.data.test_faces import head
from vlm_core import run as runner
from vlm_core.data.filter import filters, pool_rules
from vlm_core.data.filter.cut_config import Cut, External, MaskedClipScore
from vlm_core.data.filter.decisions import REASONS, Trail
from vlm_core.data.filter.config import (
    BlockedWords,
    DomainCap,
    Domains,
    Faces,
    Filter,
    Hook,
    ImageRules,
    LanguageRule,
    Quality,
    TextRules,
    Titles,
    Vocabulary,
)
from vlm_core.data.filter.pool import load_pool
from vlm_core.errors import ConfigError, MissingInput, SchemaMismatch
from vlm_core.recipes import data as recipes


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


def judged(config: Filter, inputs: dict[str, Path]) -> Trail:
    return filters.judge(config, load_pool(*inputs.values()))


def reasons(config: Filter, world: World, folder: Path) -> dict[str, str]:
    """caption -> why it goes, '' when it stays."""
    inputs = world.write(folder)
    pool = load_pool(*inputs.values())
    trail = filters.judge(config, pool)
    return dict(zip(pool.caption.tolist(), trail.reason.tolist(), strict=True))


def captioned(*captions: str, **more: Any) -> World:
    world = World()
    for number, caption in enumerate(captions):
        world.add(caption, number, **more)
    return world


# ---- words


def test_captions_that_are_hardly_language_get_their_reason(tmp_path: Path) -> None:
    expected = {
        "a dog and a cat": "",
        "고양이가 창가에서 자고 있다": "",
        "Tom & Jerry": "",
        "SKU 4471-22 900132": "mostly_digits",
        "*** !!! >>> wow <<<": "mostly_punctuation",
        "dog dog dog cat": "repeated_words",
        "buy one now buy one now buy one": "repeated_words",
        "the red car the red car parked outside today": "repeated_ngrams",
        "nice &quot;view&quot; of it": "markup",
    }
    world = captioned(*(caption.replace("&quot;", "&amp;quot;") for caption in expected))
    config = Filter(quality=Quality(max_repeated_words=0.45, max_repeated_ngrams=0.2))
    assert reasons(config, world, tmp_path / "in") == expected


def test_blocked_words_go_by_whole_words_in_any_caption_and_are_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("# mine\nheck\nbad phrase\n")
    world = captioned("what the HECK", "a checked shirt", "bad, phrase!", "bad other phrase")
    world.add("harmless", 50, others=["and heck again"])
    inputs = world.write(tmp_path / "in")
    config = Filter(blocked_words=BlockedWords(file=str(tmp_path / "words.txt")))
    pool = load_pool(*inputs.values())
    trail = filters.judge(config, pool)
    found = dict(zip(pool.caption.tolist(), trail.reason.tolist(), strict=True))
    assert found == {"what the HECK": "blocked_word", "a checked shirt": "", "bad, phrase!": "blocked_word", "bad other phrase": "", "harmless": "blocked_word"}
    details = {row["detail"] for row in trail.decisions().to_pylist() if row["rule"] == "blocked_words"}
    assert details == {"", "line 2", "line 3"}
    with pytest.raises(MissingInput, match=r"expected the words of blocked_words.file, one per line"):
        judged(config.but("blocked_words.file=nowhere.txt"), inputs)


def test_the_vocabulary_keeps_captions_that_name_its_things(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("dog\ngreat white shark\n")
    world = captioned("Two DOGS!", "a great white shark", "a white shark", "a hotdog", "dog.")
    world.add("ein Dog auf Deutsch", 50, lang="de")
    words = {"file": str(tmp_path / "words.txt")}
    fixed = reasons(Filter(vocabulary=Vocabulary(**words)), world, tmp_path / "fixed")
    assert [caption for caption, why in fixed.items() if not why] == [c for c in fixed if c in {"Two DOGS!", "a great white shark", "dog."}]
    assert set(fixed.values()) == {"", "off_vocabulary"}
    kept = reasons(Filter(vocabulary=Vocabulary(**words, others="keep")), world, tmp_path / "kept")
    assert kept["ein Dog auf Deutsch"] == ""
    # DataComp's code takes words between white space as they stand: no case, no punctuation, no phrases
    world.add("one dog", 51)
    reference = reasons(Filter(vocabulary=Vocabulary(**words, mode="reference")), world, tmp_path / "reference")
    assert [caption for caption, why in reference.items() if not why] == ["one dog"]


def test_the_default_vocabulary_is_that_of_imagenet(tmp_path: Path) -> None:
    found = reasons(
        Filter(vocabulary=Vocabulary()), captioned("a tench in a pond", "golden retrievers", "abstract idea", "an African elephant"), tmp_path / "in"
    )
    assert found == {"a tench in a pond": "", "golden retrievers": "", "abstract idea": "off_vocabulary", "an African elephant": ""}


# ---- where from, what file


def test_sites_are_allowed_and_refused_with_everything_below_them(tmp_path: Path) -> None:
    world = World()
    for number, host in enumerate(("a.example.org", "example.org", "notexample.org", "b.a.example.org", "other.test")):
        world.add(host, number, url=f"http://{host}/{number}.png")
    only = reasons(Filter(domains=Domains(only=["example.org"], never=["a.example.org"])), world, tmp_path / "only")
    assert {host for host, why in only.items() if not why} == {"example.org"}
    never = reasons(Filter(domains=Domains(never=["EXAMPLE.org"])), world, tmp_path / "never")
    assert {host for host, why in never.items() if not why} == {"notexample.org", "other.test"}


def test_a_domain_fills_no_more_than_its_cap_whatever_the_order_of_rows(tmp_path: Path) -> None:
    world = World()
    for number in range(30):
        world.add(f"of many {number}", number, url=f"http://cdn{number}.big.co.uk/{number}.png")
    for number in range(3):
        world.add(f"of few {number}", 40 + number, url=f"http://small.org/{number}.png")
    config = Filter(domain_cap=DomainCap(max_samples=5))
    one = reasons(config, world, tmp_path / "one")
    shuffled = np.random.default_rng(0).permutation(33).tolist()
    pool = load_pool(*world.write(tmp_path / "two", order=shuffled).values())
    two = dict(zip(pool.caption.tolist(), filters.judge(config, pool).reason.tolist(), strict=True))
    assert one == two
    kept = [caption for caption, why in one.items() if not why]
    assert sum(caption.startswith("of many") for caption in kept) == 5
    assert sum(caption.startswith("of few") for caption in kept) == 3
    other = reasons(config.but("domain_cap.seed=1"), world, tmp_path / "three")
    assert {caption for caption, why in other.items() if not why} != set(kept)


def test_files_of_few_bytes_or_another_format_go(tmp_path: Path) -> None:
    world = World()
    world.add("small file", 1, size=4_999, mime="image/jpeg")
    world.add("enough", 2, size=5_000, mime="image/jpeg")
    world.add("a PNG", 3, size=9_000, mime="image/png")
    found = reasons(Filter(image=ImageRules(min_bytes=5_000, formats=["jpeg"])), world, tmp_path / "in")
    assert found == {"small file": "too_few_bytes", "enough": "", "a PNG": "format"}


# ---- faces, outside scores


def test_faces_are_counted_kept_as_boxes_and_limited(tmp_path: Path) -> None:
    from PIL import Image

    two = Image.new("RGB", (420, 200), (150, 170, 190))
    two.paste(head(120), (10, 10))
    two.paste(head(120), (230, 20))
    world = World()
    for caption, image in (("nobody", picture(1, 160)), ("one", head(120)), ("two", two), ("one again", head(120))):
        world.add(caption, image)
    inputs = world.write(tmp_path / "in")
    report = runner.run("filter", Filter(faces=Faces()), inputs, tmp_path / "out")
    kept = {row["caption"]: row for row in pq.read_table(tmp_path / "out" / "kept.parquet").to_pylist()}
    assert {caption: len(row["faces"]) for caption, row in kept.items()} == {"nobody": 0, "one": 1, "two": 2, "one again": 1}
    assert all(0 <= left < right <= 1 and 0 <= top < bottom <= 1 for row in kept.values() for left, top, right, bottom in row["faces"])
    assert report.counts["kept"] == 4
    limited = reasons(Filter(faces=Faces(max_faces=1)), world, tmp_path / "limited")
    assert limited == {"nobody": "", "one": "", "two": "faces", "one again": ""}
    runner.run("filter", Filter(text=TextRules()), inputs, tmp_path / "unseen")
    assert pq.read_table(tmp_path / "unseen" / "kept.parquet")["faces"].to_pylist() == [None] * 4  # nobody looked


def outside(path: Path, scores: dict[str, float], column: str = "score") -> str:
    pq.write_table(pa.table({"uid": list(scores), column: list(scores.values())}), path)
    return str(path)


def test_outside_scores_limit_on_both_sides_and_rank(tmp_path: Path) -> None:
    world = World()
    uids = {caption: world.add(caption, number) for number, caption in enumerate(("clean", "marked", "dull", "unknown"))}
    marks = outside(tmp_path / "marks.parquet", {uids["clean"]: 0.1, uids["marked"]: 0.81, uids["dull"]: 0.8}, "pwatermark")
    beauty = outside(tmp_path / "beauty.parquet", {uids["clean"]: 7.5, uids["marked"]: 9.0, uids["dull"]: 3.0})
    config = Filter(watermark=Hook(file=marks, column="pwatermark", max_score=0.8), aesthetic=Hook(file=beauty, min_score=7.0))
    assert reasons(config, world, tmp_path / "keep") == {"clean": "", "marked": "watermark", "dull": "aesthetic", "unknown": ""}
    strict = config.but("watermark.missing=drop")
    assert reasons(strict, world, tmp_path / "drop")["unknown"] == "no_score"
    ranked = Filter(cuts={"clip": Cut(score=External(file=beauty), fraction=0.4, within="all")})  # one of the three that have a score
    assert reasons(ranked, world, tmp_path / "ranked") == {"clean": "low_score", "marked": "", "dull": "low_score", "unknown": "no_score"}
    inputs = world.write(tmp_path / "in")
    with pytest.raises(SchemaMismatch, match="without usable columns uid and nothing"):
        judged(config.but("watermark.column=nothing"), inputs)
    pq.write_table(pa.table({"uid": [uids["clean"]] * 2, "score": [1.0, 2.0]}), tmp_path / "twice.parquet")
    with pytest.raises(SchemaMismatch, match="Found 1 uids twice"):
        judged(Filter(aesthetic=Hook(file=str(tmp_path / "twice.parquet"))), inputs)


def test_other_bytes_of_an_outside_file_are_another_run(tmp_path: Path) -> None:
    world = World()
    uids = [world.add(str(number), number) for number in range(3)]
    inputs = world.write(tmp_path / "in")
    config = Filter(aesthetic=Hook(file=outside(tmp_path / "s.parquet", dict.fromkeys(uids, 1.0)), min_score=0.5))
    assert runner.run("filter", config, inputs, tmp_path / "out").counts["kept"] == 3
    assert runner.run("filter", config, inputs, tmp_path / "out").reused
    outside(tmp_path / "s.parquet", {uids[0]: 1.0, uids[1]: 0.0, uids[2]: 0.0})
    again = runner.run("filter", config, inputs, tmp_path / "out")
    assert (again.reused, again.counts["kept"]) == (False, 1)


# ---- cuts


def scored(cosines: dict[str, float], **more: Any) -> World:
    world = World()
    for number, (caption, cosine) in enumerate(cosines.items()):
        world.add(caption, number, cosine=cosine, **more)
    return world


def with_exact(inputs: dict[str, Path], **columns: dict[str, float]) -> dict[str, Path]:
    """The embeddings' metadata with columns of scores by uid."""
    path = inputs["embeddings"] / "metadata" / "metadata_0.parquet"
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.append_column(name, pa.array([values[uid] for uid in table["uid"].to_pylist()], pa.float32()))
    pq.write_table(table, path)
    return inputs


def test_thresholds_may_differ_by_language(tmp_path: Path) -> None:
    world = World()
    for number, (caption, lang, cosine) in enumerate((("en low", "en", 0.27), ("en high", "en", 0.29), ("ko high", "ko", 0.27), ("ko low", "ko", 0.25))):
        world.add(caption, number, lang=lang, cosine=cosine)
    config = Filter(cuts={"clip": Cut(fraction=None, threshold=0.26, thresholds={"en": 0.28})})
    assert reasons(config, world, tmp_path / "in") == {"en low": "low_score", "en high": "", "ko high": "", "ko low": "low_score"}


@pytest.mark.parametrize("within", ["source", "domain"])
def test_a_share_is_taken_of_every_source_or_domain(tmp_path: Path, within: str) -> None:
    world = World()
    for number in range(20):
        site = "good.org" if number < 10 else "poor.org"
        world.add(
            f"{site} {number % 10}", number, cosine=(0.5 if number < 10 else 0.1) + number % 10 / 100, url=f"http://w{number}.{site}/{number}", source=site
        )
    found = reasons(Filter(cuts={"clip": Cut(fraction=0.2, within=within)}), world, tmp_path / within)
    assert {caption for caption, why in found.items() if not why} == {"good.org 8", "good.org 9", "poor.org 8", "poor.org 9"}
    together = reasons(Filter(cuts={"clip": Cut(fraction=0.2, within="all")}), world, tmp_path / "all")
    assert {caption for caption, why in together.items() if not why} == {f"good.org {n}" for n in (6, 7, 8, 9)}


def test_cuts_over_the_pool_are_an_intersection_in_any_order(tmp_path: Path) -> None:
    world = scored({f"sample {number}": 0.1 + 0.8 * number / 40 for number in range(40)})
    rng = np.random.default_rng(3)
    beauty = {sample["uid"]: float(rng.normal()) for sample in world.samples}
    external = External(file=outside(tmp_path / "s.parquet", beauty))
    inputs = world.write(tmp_path / "in")
    pool = load_pool(*inputs.values())

    def kept(first: Cut, second: Cut) -> set[str]:
        return set(pool.uid[filters.judge(Filter(cuts={"first": first, "second": second}), pool).rows].tolist())

    clip, other = ({"fraction": 0.5, "within": "all", "over": over} for over in ("pool", "pool"))
    both = kept(Cut(**clip), Cut(score=external, **other))
    assert both == kept(Cut(score=external, **other), Cut(**clip))
    best = {sample["uid"] for sample in world.samples[20:]} & {uid for uid, _ in sorted(beauty.items(), key=lambda item: -item[1])[:20]}
    assert both == best
    # in sequence the second is a share of what the first left
    assert len(kept(Cut(fraction=0.5, within="all"), Cut(score=external, fraction=0.5, within="all"))) == 10


def test_the_exact_score_decides_where_rounded_vectors_would_not(tmp_path: Path) -> None:
    """Vectors in float16 move cosines by up to 1e-3; the score before rounding puts these two the right way round."""
    world = scored({"just above": 0.3, "just below": 0.3})
    inputs = world.write(tmp_path / "in")
    uid = {sample["caption"]: sample["uid"] for sample in world.samples}
    rounded = dict(zip(load_pool(*inputs.values()).uid.tolist(), load_pool(*inputs.values()).clip[np.arange(2)].tolist(), strict=True))
    exact = {uid["just above"]: 0.3001, uid["just below"]: 0.2999}
    assert all(0 < abs(rounded[name] - exact[name]) < 2e-3 for name in exact)
    with_exact(inputs, score=exact)
    pool = load_pool(*inputs.values())
    trail = filters.judge(Filter(cuts={"clip": Cut(fraction=None, threshold=0.3)}), pool)
    assert pool.caption[trail.rows].tolist() == ["just above"]
    assert sorted(pool.clip[np.arange(2)].tolist()) == pytest.approx([0.2999, 0.3001], abs=1e-7)


def test_scores_that_do_not_belong_to_their_vectors_are_refused(tmp_path: Path) -> None:
    world = scored({"a": 0.3, "b": 0.5})
    one, two = (sample["uid"] for sample in world.samples)
    with pytest.raises(SchemaMismatch, match=r"Found 2 scores that differ from their embeddings by more than 0.004"):
        load_pool(*with_exact(world.write(tmp_path / "in"), score={one: 0.5, two: 0.3}).values())


def test_the_masked_score_ranks_what_fits_without_its_lettering(tmp_path: Path) -> None:
    world = scored({"fits by its text": 0.6, "fits by its looks": 0.5, "fits badly": 0.1, "so does this": 0.05})
    masked = dict(zip((sample["uid"] for sample in world.samples), (0.1, 0.5, 0.1, 0.05), strict=True))
    inputs = with_exact(world.write(tmp_path / "in"), masked_score=masked)
    pool = load_pool(*inputs.values())
    trail = filters.judge(recipes.tmars_filter(), pool)
    assert pool.caption[trail.rows].tolist() == ["fits by its looks"]
    with pytest.raises(SchemaMismatch, match="embed again with text_mask"):
        judged(Filter(cuts={"clip": Cut(score=MaskedClipScore())}), world.write(tmp_path / "bare"))


# ---- order


def test_the_order_decides_who_drops_a_sample_and_not_who_stays(tmp_path: Path) -> None:
    world = captioned("logo")
    world.add("a red fish", 5)
    world.add("a tiny fish", 6, original=(8, 8))
    world.add("icon", 7, original=(8, 8))
    config = Filter(titles=Titles(), image=ImageRules(min_side=32))
    usual = reasons(config, world, tmp_path / "usual")
    turned = reasons(config.but("order=[image, titles]"), world, tmp_path / "turned")
    assert usual == {"logo": "boilerplate", "a red fish": "", "a tiny fish": "too_small", "icon": "boilerplate"}
    assert turned == {**usual, "icon": "too_small"}


def test_an_order_that_is_unknown_incomplete_or_repeats_itself_is_refused() -> None:
    config = {"titles": {}, "image": {}}
    with pytest.raises(ConfigError, match=r"Found the rule 'imag' in order, expected one that is set; did you mean 'image'\?"):
        Filter.read({**config, "order": ["titles", "imag"]})
    with pytest.raises(ConfigError, match=r"Found an order without image, expected every rule that is set"):
        Filter.read({**config, "order": ["titles"]})
    with pytest.raises(ConfigError, match=r"Found the rule 'image' twice in order"):
        Filter.read({**config, "order": ["titles", "image", "image"]})
    assert Filter.read(config).chosen() == ["titles", "image"]
    assert set(Filter.menu()) | {"downloaded", "taken_down"} == set(filters.RULES)


@settings(max_examples=15, deadline=None)
@given(st.permutations(["text", "quality", "titles", "image", "language"]))
def test_rules_on_single_samples_keep_the_same_ones_in_every_order(tmp_path_factory: pytest.TempPathFactory, order: list[str]) -> None:
    folder = tmp_path_factory.getbasetemp() / "orders"
    if not folder.exists():
        world = captioned("a red fish", "logo", "x", "dog dog dog dog", "Eine schwarze Katze schläft auf der alten Gartenmauer", "12 34 56")
        world.add("a tiny one", 30, original=(8, 8))
        world.write(folder)
    config = Filter(
        text=TextRules(min_words=2), quality=Quality(), titles=Titles(), image=ImageRules(min_side=32), language=LanguageRule(wanted=["en"]), order=order
    )
    pool = load_pool(*(folder / name for name in ("pairs", "images", "embeddings")))
    assert pool.caption[filters.judge(config, pool).rows].tolist() == ["a red fish"]


# ---- recipes of published data sets


def published() -> World:
    world = World()
    jpeg = {"mime": "image/jpeg", "size": 60_000, "original": (640, 480)}
    for caption, more in {
        "a brown dog on a green lawn": {},
        "a small picture of a dog": {"original": (640, 400)},
        "a panorama of the wide sea": {"original": (1_280, 512)},
        "a wider panorama of the sea": {"original": (1_290, 512)},
        "a drawing of a dog": {"mime": "image/png"},
        "two words": {},
        "dog, cat, dog, bird, dog, fox, dog, cow": {},
        "the same": {"cosine": 0.27},
    }.items():
        world.add(caption, len(world.samples), **{"cosine": 0.5, **jpeg, **more})
    return world


def test_cc3m_and_cc12m_differ_in_the_aspect_that_they_allow(tmp_path: Path) -> None:
    found = {name: reasons(getattr(recipes, name)().but("safety=null"), published(), tmp_path / name) for name in ("cc3m_filter", "cc12m_filter")}
    expected = {
        "a brown dog on a green lawn": "", "a small picture of a dog": "too_small", "a panorama of the wide sea": "", "a wider panorama of the sea": "aspect_ratio",
        "a drawing of a dog": "format", "two words": "too_few_words", "dog, cat, dog, bird, dog, fox, dog, cow": "repeated_words", "the same": "too_few_words",
    }  # fmt: skip
    assert found["cc12m_filter"] == expected
    assert found["cc3m_filter"] == {**expected, "a panorama of the wide sea": "aspect_ratio"}


def test_laion_takes_short_texts_any_format_and_its_own_thresholds(tmp_path: Path) -> None:
    world = published()
    for caption, more in {"abcd": {}, "abcde": {}, "a file that is small": {"size": 4_000}, "검은 고양이": {"lang": "ko", "cosine": 0.27}}.items():
        world.add(caption, len(world.samples), **{"cosine": 0.5, "size": 60_000, "mime": "image/webp", **more})
    found = reasons(recipes.laion_filter().but("safety=null", "order=[text, image, language, cuts.clip, exact_duplicates]"), world, tmp_path / "in")
    gone = {caption: why for caption, why in found.items() if why}
    assert gone == {"abcd": "too_few_chars", "a file that is small": "too_few_bytes", "the same": "low_score"}


def test_datacomps_recipe_keeps_what_its_authors_kept(tmp_path: Path) -> None:
    """The whole verb on the arrays of their code: basic rules, and the best 30 % of the pool with all ties. The page stands for the language that fastText named there."""
    golden = np.load(Path(__file__).parents[1] / "golden" / "data" / "datacomp_basic.npz")
    world = World()
    for text, lang, width, height in zip(*(golden[name].tolist() for name in ("text", "lang", "width", "height")), strict=True):
        world.add(text, 0, lang=lang, original=(width, height))
    scores = dict(zip((sample["uid"] for sample in world.samples), golden["clip_score"].astype(float).tolist(), strict=True))
    for sample in world.samples:
        sample["cosine"] = scores[sample["uid"]]
    inputs = with_exact(world.write(tmp_path / "in"), score=scores)
    runner.run("filter", recipes.datacomp_filter().but("language.who=page"), inputs, tmp_path / "out")
    kept = set(pq.read_table(tmp_path / "out" / "kept.parquet")["uid"].to_pylist())
    best = golden["keep_top"][golden["fractions"].tolist().index(0.3)]
    assert kept == {sample["uid"] for sample, stays in zip(world.samples, golden["keep_basic"] & best, strict=True) if stays}
    assert len(kept) > 3


def test_recipes_that_need_targets_or_entries_run_with_them(tmp_path: Path) -> None:
    world = World()
    for number in range(90):
        world.add(f"a dog that is number {number} of many", number, cosine=0.3 + number / 200)
    inputs = world.write(tmp_path / "in")
    np.save(tmp_path / "targets.npy", np.load(inputs["embeddings"] / "img_emb" / "img_emb_0.npy")[:3])
    (tmp_path / "entries.txt").write_text("dog\n")
    file = f"{tmp_path}/targets.npy"
    sizes = {
        "negcliploss_filter": (f"cuts.norm_sim.score.targets={file}", 18),  # 30 % of 90, and two thirds of that
        "semdedup_filter": ("semantic_duplicates.iterations=5", 90),
        "metaclip_filter": (f"balance.entries={tmp_path}/entries.txt", 90),
    }
    found = {name: len(judged(getattr(recipes, name)().but(change), inputs).rows) for name, (change, _) in sizes.items() if name != "metaclip_filter"}
    found["metaclip_filter"] = len(judged(recipes.metaclip_filter().but(sizes["metaclip_filter"][0], "safety=null"), inputs).rows)
    assert found == {name: size for name, (_, size) in sizes.items()}
    image = judged(recipes.datacomp_image_filter().but(f"targets.targets={file}", "language.who=page"), inputs)
    assert set(image.tally) == {"downloaded", "text", "language", "targets", "cuts.clip"}
    assert image.tally["cuts.clip"][""] == len(image.rows) <= 28  # 30 % of the pool and one more, less the clusters without a target


def test_other_languages_are_thinned_to_the_share_of_rare_entries_that_english_has() -> None:
    """English: entry 0 twice, entries 1 and 2 once; t = 2 makes half of its matches rare. French counts are (4, 1, 1): half of 6 lies nearest to a count of 1."""
    english, french = [[0], [0], [1], [2]], [[0]] * 4 + [[1], [2]]
    langs = np.array(["en"] * 4 + ["fr"] * 6)
    prob = pool_rules.balanced([*english, *french], langs, 3, t=2)
    assert prob == pytest.approx([1.0] * 4 + [0.25] * 4 + [1.0] * 2)
    with pytest.raises(SchemaMismatch, match="in any English caption of 6"):
        pool_rules.balanced(french, langs[4:], 3, t=2)


def test_any_number_of_cuts_run_by_their_names_or_in_the_order_given() -> None:
    cuts = {name: {"fraction": 0.5} for name in ("c", "a", "b")}
    assert Filter.read({"cuts": cuts, "text": {}, "balance": {"entries": "x"}}).chosen() == ["text", "cuts.a", "cuts.b", "cuts.c", "balance"]
    assert Filter.read({"cuts": cuts, "order": ["cuts.c", "cuts.a", "cuts.b"]}).chosen() == ["cuts.c", "cuts.a", "cuts.b"]
    with pytest.raises(ConfigError, match=r"Found the rule 'cuts' in order, expected one that is set"):
        Filter.read({"cuts": cuts, "order": ["cuts"]})
    with pytest.raises(ConfigError, match=r"Found the cut 'A.b', expected a name of small letters"):
        Filter.read({"cuts": {"A.b": {}}})


def test_decisions_and_reports_hold_no_blocked_word_and_no_number_of_a_person(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("heck\n")
    world = captioned("a red fish", "what the heck", "card 4111 1111 1111 1111", "from 192.168.10.12")
    config = Filter(blocked_words=BlockedWords(file=str(tmp_path / "words.txt")), personal={})
    report = runner.run("filter", config, world.write(tmp_path / "in"), tmp_path / "out")
    said = json.dumps(report.model_dump(mode="json", exclude={"provenance"})) + str(pq.read_table(tmp_path / "out" / "decisions.parquet").to_pylist())
    assert [secret for secret in ("heck", "4111", "192.168") if secret in said] == []
    assert report.counts["dropped.card"] == report.counts["dropped.ip_address"] == report.counts["dropped.blocked_word"] == 1


def test_every_score_that_was_cut_has_its_histogram(tmp_path: Path) -> None:
    world = scored({f"sample {number}": 0.1 + 0.02 * number for number in range(20)})
    beauty = outside(tmp_path / "s.parquet", {sample["uid"]: float(number) for number, sample in enumerate(world.samples)})
    config = Filter(cuts={"clip": Cut(fraction=0.5), "beauty": Cut(score=External(file=beauty), fraction=0.5, within="all")})
    report = runner.run("filter", config, world.write(tmp_path / "in"), tmp_path / "out")
    assert {"CLIP score and its cut", "external and its cut"} <= set(report.pictures)
    assert all((tmp_path / "out.run" / "pictures" / file).stat().st_size > 3_000 for file in report.pictures.values())


def test_every_rule_and_every_reason_has_its_place_in_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "filters.md").read_text()
    table = [line for line in page.splitlines() if line.startswith("| ")]
    named = {name for line in table for name in line.split("|")[1].replace("`", "").replace(",", " ").split()}
    assert [name for name in Filter.menu() if name not in named] == []
    assert [reason for reason in REASONS if f"`{reason}`" not in page] == []
    assert [name for name in runner.recipes("filter") if name not in {"demo_filter", "web_filter"} and f"`{name}`" not in page] == []
