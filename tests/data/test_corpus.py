"""The embedded corpus keeps what its NOTICE and issue promise."""

import collections
import hashlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm_core.data.crawl import demo_truth
from vlm_core.data.crawl.corpus import META, Corpus
from vlm_core.errors import BadManifest, MissingInput

DEMO = Path(__file__).parents[2] / "infra/demo"


@pytest.fixture(scope="module")
def corpus():
    with Corpus(DEMO / "corpus.tar") as opened:
        yield opened


@pytest.fixture(scope="module")
def truth():
    return [json.loads(line) for line in (DEMO / "truth.jsonl").read_text().splitlines()]


def test_the_archive_and_its_truth_stay_under_twenty_megabytes():
    assert sum((DEMO / name).stat().st_size for name in ("corpus.tar", "truth.jsonl")) < 20_000_000


def test_there_are_thousands_of_pictures_from_four_sources_in_two_drawing_styles_and_photographs(corpus):
    sources = collections.Counter(picture.source for picture in corpus.pictures)
    assert sources.keys() == {"noto", "twemoji", "openclipart", "gcompris", "mirror"}
    assert sources["noto"] == 1911  # every emoji of the package, see OFFLINE_DATA
    assert sources.total() - sources["mirror"] >= 3500
    assert {picture.style for picture in corpus.pictures} == {"noto", "twemoji", "clipart", "photo"}


def test_every_picture_decodes_and_is_as_small_as_promised(corpus):
    longest = {"noto": 64, "twemoji": 64, "clipart": 256, "photo": 256}
    for picture in corpus.pictures:
        with Image.open(io.BytesIO(corpus.read(picture.file))) as image:
            image.load()
            assert max(image.size) <= longest[picture.style] or picture.source == "mirror", picture.key


def test_only_free_licences_are_inside_and_each_picture_names_its_credit(corpus):
    assert {picture.licence for picture in corpus.pictures} == {"Apache-2.0", "CC-BY-4.0", "Public domain", "CC0-1.0"}
    assert all(picture.credit for picture in corpus.pictures)
    by_source = {(picture.source, picture.licence) for picture in corpus.pictures if picture.source != "mirror"}
    assert by_source == {
        ("noto", "Apache-2.0"), ("twemoji", "CC-BY-4.0"), ("openclipart", "Public domain"), ("gcompris", "Public domain"), ("gcompris", "CC0-1.0"),
    }  # fmt: skip


def test_emoji_have_captions_in_four_languages_and_known_ones_are_right(corpus):
    emoji = {picture.key: picture for picture in corpus.pictures if picture.source in ("noto", "twemoji")}
    assert all(set(picture.captions) == {"en", "ko", "ja", "fr"} and all(picture.captions.values()) for picture in emoji.values())
    book = emoji["noto/1f4d9"]
    assert book.captions == {"en": "orange book", "ko": "주황색 책", "ja": "オレンジの本", "fr": "livre orange"}
    assert book.labels == {"emoji_group": "Objects", "emoji_subgroup": "book-paper"}


def test_the_notice_counts_the_pictures_of_every_source(corpus):
    table = re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", (DEMO / "NOTICE.md").read_text(), re.M)
    assert {name: int(count.replace(",", "")) for name, count in table} == collections.Counter(picture.source for picture in corpus.pictures)


def test_twemoji_is_linked_from_nowhere(corpus):
    assert not [picture.key for picture in corpus.pictures if picture.source == "twemoji" and (picture.url or picture.pages)]


def test_keys_and_addresses_are_unique_and_copies_lie_under_two_addresses(corpus):
    urls = [picture.url for picture in corpus.pictures if picture.url]
    assert len(set(urls)) == len(urls)
    assert len({picture.key for picture in corpus.pictures}) == len(corpus.pictures)


def test_the_truth_file_is_what_the_corpus_says(corpus, truth):
    assert truth == json.loads(json.dumps(demo_truth.truth(corpus)))


def test_exact_duplicates_in_the_truth_are_all_pairs_of_equal_bytes_that_a_crawl_can_meet_and_no_others(corpus, truth):
    never = {row["url"] for row in truth if row["status"] != "ok"}
    content = {picture.url: hashlib.sha256(corpus.read(picture.file)).hexdigest() for picture in corpus.pictures if picture.url and picture.url not in never}
    told = {row["url"]: row["of"] for row in truth if row["kind"] == "exact_duplicate"}
    assert all(content[url] == content[of] for url, of in told.items())
    assert len(content) - len(told) == len(set(content.values()))  # without the told ones every picture is there once
    assert len(told) > 100


def test_pictures_told_to_be_of_one_colour_or_slivers_are_and_the_others_are_not(corpus, truth):
    told = {row["url"]: row["kind"] for row in truth if row["kind"] in ("one_colour", "too_small") and "/odd/" not in row["url"]}
    assert set(told.values()) == {"one_colour", "too_small"}
    for picture in corpus.pictures:
        if picture.url and picture.source != "noto":
            pixels = np.asarray(Image.open(io.BytesIO(corpus.read(picture.file))).convert("RGB"))
            sliver = min(pixels.shape[:2]) < 16
            assert (told.get(picture.url) == "too_small") == sliver
            assert (told.get(picture.url) == "one_colour") == (not sliver and bool((pixels == pixels[0, 0]).all()))


def test_the_natural_dirt_is_there(truth):
    kinds = collections.Counter(row["kind"] for row in truth)
    assert kinds["useless_title"] > 100
    assert kinds["near_duplicate"] == 40
    assert kinds["email"] > 30
    assert kinds["empty_title"] > 15
    assert kinds["robots"] > 30


def test_every_email_address_that_a_page_shows_is_in_the_truth(corpus, truth):
    told = {row["url"] for row in truth if row["kind"] == "email"}
    shown = {p.url for p in corpus.pictures if p.url and p.source != "mirror" and re.search(r"\w@\w+(-\w+)*\.\w", f"{p.captions.get('en')} {p.description}")}
    assert told == shown


def test_a_missing_or_broken_archive_is_named_in_one_sentence(tmp_path):
    with pytest.raises(MissingInput, match=r"Found no file .*no\.tar.*build_corpus"):
        Corpus(tmp_path / "no.tar")
    (tmp_path / "cut.tar").write_bytes((DEMO / "corpus.tar").read_bytes()[:1_000_000])
    with pytest.raises(BadManifest, match="check it out again"):
        Corpus(tmp_path / "cut.tar")
    (tmp_path / "text.tar").write_text("no tar")
    with pytest.raises(BadManifest, match=META):
        Corpus(tmp_path / "text.tar")
