"""Test sets: nothing that was trained on is tested on, whoever asks and however it is looked for."""

import hashlib
import io
import json
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.crawled_world import CORPUS, part_of, shards_of
from tests.data.small_world import stage_for
from vlm_core.data.config import DATASETS, EvalSets
from vlm_core.data.filter.config import Grouping
from vlm_core.data.crawl.corpus import Corpus
from vlm_core.data.eval_sets.groups import Look, _seen
from vlm_core.data.eval_sets.known import FILE, KNOWN
from vlm_core.data.filter.perceptual import pdq, phash
from vlm_core.data.eval_sets.eval_sets import MENU, datasets_in, eval_sets, read_dataset
from vlm_core.data.eval_sets.few_shot import base_new_split, fewshot_indices
from vlm_core.data.shards.shards import read_samples
from vlm_core.errors import BadManifest, ConfigError, MissingInput, NothingLeft
from vlm_core.stage import data_version


@pytest.fixture(scope="module")
def corpus():
    with Corpus(CORPUS) as opened:
        yield opened


@pytest.fixture(scope="module")
def shards(corpus, tmp_path_factory):
    """Two thirds of what the demo web shows."""
    shown = [p for p in corpus.pictures if p.url and "robots" not in p.dirt and p.captions[p.pages[0].split("/")[1]] and not p.serve]
    return shards_of(corpus, [p for number, p in enumerate(shown) if number % 3], tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def made(shards, tmp_path_factory):
    stage = stage_for(tmp_path_factory.mktemp("eval"), {"shards": shards}, "eval-sets")
    return stage, eval_sets(EvalSets(), stage)


@pytest.fixture(scope="module")
def few(corpus, tmp_path_factory):
    """(a corpus of a third of the pictures, shards of some of these): enough for what does not depend on the numbers."""
    root, pictures = tmp_path_factory.mktemp("few"), [p for p in corpus.pictures if p.source in ("noto", "openclipart")][::3]
    shown = [p for p in pictures if p.url and "robots" not in p.dirt and p.captions[p.pages[0].split("/")[1]]]
    return part_of(corpus, pictures, root / "few.tar"), shards_of(corpus, shown[::2], root / "shards")


@pytest.fixture(scope="module")
def sets(made):
    return {name: read_dataset(made[0].out / name) for name in DATASETS}


@pytest.fixture(scope="module")
def trained(shards):
    return list(read_samples(shards, "train"))


def words(text):
    return "".join(letter for letter in unicodedata.normalize("NFKC", text).casefold() if letter.isalnum())


def looks(images):
    """Perceptual hashes computed with the libraries themselves, as rows of bits; pictures with too little structure are None."""
    import imagehash
    import pdqhash

    out = []
    for image in images:
        bits, quality = pdqhash.compute(np.asarray(image))
        out.append((np.asarray(bits), imagehash.phash(image).hash.reshape(-1)) if quality >= 50 else None)
    return out


def nearest(mine, others):
    """(smallest PDQ distance, smallest pHash distance) between any of two lists."""
    found = []
    for place in (0, 1):
        a, b = (np.stack([row[place] for row in rows if row is not None]).astype(np.float32) for rows in (mine, others))
        found.append(int((a @ (1 - b.T) + (1 - a) @ b.T).min()))
    return found


def test_no_test_picture_has_the_bytes_or_the_caption_of_a_training_sample(sets, trained, corpus):
    content = {sample.record["sha256"] for sample in trained}
    texts = {words(caption["text"]) for sample in trained for caption in sample.record["captions"]} - {""}
    by_key = {picture.key.replace("/", "-"): picture for picture in corpus.pictures}
    for dataset in sets.values():
        tested = [dataset.keys[row] for row in dataset.rows("test")]
        assert len(tested) >= 60
        assert not content & {dataset.sha256[row] for row in dataset.rows("test")}
        assert not texts & {words(by_key[key].captions["en"]) for key in tested}


def test_no_test_picture_looks_like_a_training_sample(sets, trained):
    others = looks(Image.open(io.BytesIO(sample.jpeg)) for sample in trained)
    for dataset in sets.values():
        pdq, phash = nearest(looks(dataset.images(dataset.rows("test"))), others)
        assert pdq > Grouping().pdq_bits
        assert phash > Grouping().phash_bits


def test_no_author_of_clip_art_in_the_test_was_trained_on(sets, trained, corpus):
    content = {sample.record["sha256"] for sample in trained}
    clip_art = sets["clipart_folders"]
    author = {picture.key.replace("/", "-"): picture.author for picture in corpus.pictures}
    seen = {author[key] for key, sha256 in zip(clip_art.keys, clip_art.sha256, strict=True) if sha256 in content} - {""}
    assert len(seen) > 100
    assert not seen & {author[clip_art.keys[row]] for row in clip_art.rows("test")}


def test_what_the_filter_network_was_trained_on_is_tested_by_nobody_although_no_shard_holds_it(few, tmp_path):
    """The network's pictures are test pictures of the sets made without it, re-encoded: other bytes, same look."""
    corpus_file, shards = few
    config = EvalSets(corpus=str(corpus_file), datasets=["emoji_groups"], min_test=2)
    before = read_dataset(eval_to(tmp_path / "before", config, {"shards": shards}) / "emoji_groups")
    rows = before.rows("test")[:6]
    known = [(bytes(32), np.packbits(phash(np.asarray(image))).tobytes(), np.packbits(pdq(np.asarray(image))[0]).tobytes(), 100) for image in before.images(rows)]
    (tmp_path / "embeddings").mkdir()
    columns = dict(zip(KNOWN.names, zip(*known, strict=True), strict=True))
    pq.write_table(pa.table({name: list(column) for name, column in columns.items()}, KNOWN), tmp_path / "embeddings" / FILE)
    after = read_dataset(eval_to(tmp_path / "after", config, {"shards": shards, "embeddings": tmp_path / "embeddings"}) / "emoji_groups")
    assert not {before.keys[row] for row in rows} & {after.keys[row] for row in after.rows("test")}
    assert len(after.rows("test")) > 20


def eval_to(folder, config, inputs):
    folder.mkdir()
    stage = stage_for(folder, inputs, "eval-sets")
    eval_sets(config, stage)
    return stage.out


def test_no_group_caption_or_look_alike_lies_in_two_splits(sets, corpus):
    caption = {picture.key.replace("/", "-"): words(picture.captions["en"]) for picture in corpus.pictures}
    for dataset in sets.values():
        for a, b in (("train", "test"), ("train", "val"), ("val", "test")):
            left, right = dataset.rows(a), dataset.rows(b)
            assert not {dataset.groups[row] for row in left} & {dataset.groups[row] for row in right}
            assert not ({caption[dataset.keys[row]] for row in left} & {caption[dataset.keys[row]] for row in right}) - {""}
        pdq, phash = nearest(looks(dataset.images(dataset.rows("test"))), looks(dataset.images(np.union1d(dataset.rows("train"), dataset.rows("val")))))
        assert pdq > Grouping().pdq_bits
        assert phash > Grouping().phash_bits


def test_no_picture_is_in_a_dataset_twice_and_none_is_blank(sets):
    for dataset in sets.values():
        assert len(set(dataset.sha256)) == len(dataset)
        assert all(any(high > low for low, high in image.getextrema()) for image in dataset.images())


def test_every_class_has_enough_to_learn_from_and_enough_to_test(sets):
    for dataset in sets.values():
        assert set(dataset.labels) == set(range(len(dataset.classnames)))
        assert np.bincount(dataset.labels[dataset.rows("train")]).min() >= 16
        assert np.bincount(dataset.labels[dataset.rows("test")]).min() >= 4


def test_the_style_shift_learns_from_noto_and_tests_on_twemoji_with_the_same_classes(sets):
    shift = sets["emoji_shift"]
    assert {shift.styles[row] for row in shift.rows("test")} == {"twemoji"}
    assert {shift.styles[row] for row in np.concatenate([shift.rows("train"), shift.rows("val")])} == {"noto"}
    assert shift.classnames == sets["emoji_groups"].classnames
    assert len(shift.classnames) == 9


def test_labels_are_those_of_the_packages(sets, corpus):
    by_key = {picture.key.replace("/", "-"): picture for picture in corpus.pictures}
    for name, dataset in sets.items():
        for key, label in zip(dataset.keys, dataset.labels, strict=True):
            assert dataset.classnames[label] == MENU[name].names[by_key[key].labels[MENU[name].label]]
    groups = sets["emoji_groups"]
    known = {"noto-1f34e": "food or drink", "noto-1f697": "vehicle, place or weather", "noto-1f415": "animal or plant", "noto-1f1f0-1f1f7": "flag"}
    assert {key: groups.classnames[label] for key, label in zip(groups.keys, groups.labels, strict=True) if key in known} == known


def test_pictures_come_back_upright_on_white_and_in_the_order_asked_for(sets, corpus):
    emoji = sets["emoji_groups"]
    row = emoji.keys.index("noto-1f34e")
    image, other = emoji.images([row, 0])
    with Image.open(io.BytesIO(corpus.read("noto/1f34e.png"))) as original:
        expected = Image.new("RGBA", original.size, "white")
        expected.alpha_composite(original.convert("RGBA"))
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image, int) - np.asarray(expected.convert("RGB"), int)).max() <= 1
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert other.tobytes() == next(emoji.images()).tobytes()


def test_the_report_counts_what_was_moved_out_of_the_test(made, sets):
    report = made[1]
    for name, dataset in sets.items():
        assert [report.counts[f"{name}.{split}"] for split in ("train", "val", "test")] == [len(dataset.rows(split)) for split in ("train", "val", "test")]
        assert 0 < report.counts[f"{name}.moved_out"] < report.counts[f"{name}.seen_in_training"]
        assert sum(row["test"] for row in report.tables[name]) == len(dataset.rows("test"))
        assert (made[0].pictures / f"{name}.png").stat().st_size > 10_000


def test_every_dataset_says_names_templates_metric_and_licence(sets):
    for name, dataset in sets.items():
        about = json.loads((dataset.folder / "dataset.json").read_text())
        assert (about["name"], about["metric"]) == (name, "acc1")
        assert len(about["templates"]) == len(set(about["templates"])) == 7
        assert all(template.count("{}") == 1 for template in about["templates"])
        assert about["licences"]
        assert len(set(about["classnames"])) == len(about["classnames"])
    assert sets["emoji_shift"].about["licences"] == ["Apache-2.0", "CC-BY-4.0"]


def test_the_same_shards_give_the_same_bytes_whatever_else_is_made_and_another_seed_gives_other_splits(few, tmp_path):
    def make(name, **settings):
        stage = stage_for(tmp_path / name, {"shards": few[1]}, "eval-sets")
        eval_sets(EvalSets(corpus=str(few[0]), min_train=8, min_test=2, **settings), stage)
        return stage.out

    first = make("first", datasets=["clipart_folders", "emoji_groups"])
    again, other = make("again", datasets=["clipart_folders"]), make("other", datasets=["clipart_folders"], seed=1)
    assert data_version(again / "clipart_folders") == data_version(first / "clipart_folders")
    splits = [dict(zip(made.keys, made.splits, strict=True)) for made in (read_dataset(again / "clipart_folders"), read_dataset(other / "clipart_folders"))]
    both = splits[0].keys() & splits[1].keys()
    assert sum(splits[0][key] != splits[1][key] for key in both) > 10


def test_datasets_are_listed_in_the_order_of_the_menu(made):
    assert datasets_in(made[0].out) == list(MENU) == list(DATASETS)


def test_a_wrong_name_a_missing_picture_and_impossible_wishes_are_told_in_one_sentence(made, few, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'emoji_groups'"):
        EvalSets.read({"datasets": ["emoji_group"]})
    with pytest.raises(MissingInput, match="did you mean 'emoji_shift'"):
        read_dataset(made[0].out / "emoji_shif")
    stage = stage_for(tmp_path, {"shards": few[1]}, "eval-sets")
    with pytest.raises(NothingLeft, match=r"fewer than two classes of emoji_groups with 5000 pictures.*lower min_train"):
        eval_sets(EvalSets(corpus=str(few[0]), min_train=5000), stage)
    copy = tmp_path / "emoji_shift"
    copy.mkdir()
    for file in ("dataset.json", "table.parquet"):
        (copy / file).write_bytes((made[0].out / "emoji_shift" / file).read_bytes())
    (copy / "images.tar").write_bytes((made[0].out / "clipart_folders/images.tar").read_bytes())
    with pytest.raises(BadManifest, match=r"Found no picture 'noto-.*run 'vlm eval-sets' again"):
        read_dataset(copy)


def look(uid, caption="", sha256="", author="", pdq="0" * 64, quality=0):
    return Look(uid, caption, sha256 or uid, hashlib.sha256(uid.encode()).hexdigest()[:16], pdq, quality, author)  # unlike pHashes


def test_a_picture_is_seen_through_bytes_caption_look_author_and_chains_of_these():
    far, near, other = "0f" * 32, "0f" * 31 + "0e", "f0" * 32
    looks = [
        look("a", "red ball"), look("b", sha256="same"), look("c", pdq=near, quality=90), look("d", pdq=near, quality=10),
        look("e", author="ann"), look("f", author="ann", sha256="same2"), look("g", author="bob"), look("h", "new", pdq=other, quality=90),
        look("i", "new"), look("j", author="ann", caption="old"), look("k", "old"),
    ]  # fmt: skip
    trained = [look("~1", "Red  BALL!"), look("~2", sha256="same"), look("~3", pdq=far, quality=90), look("~4", sha256="same2")]
    assert _seen(looks, trained, Grouping(max_credit_share=1)) == {"a", "b", "c", "e", "f", "j"}  # k shares a caption with j, which was not trained on
    assert _seen(looks, [*trained, look("~5", pdq=other, quality=90)], Grouping(max_credit_share=1)) == {"a", "b", "c", "e", "f", "j", "h", "i"}


def test_a_few_shots_are_the_asked_number_of_each_class_and_all_of_a_rare_one():
    labels = [2] * 5 + [0] * 30 + [1] * 3
    train, val = fewshot_indices(labels, 4, seed=1, val_labels=[0] * 9 + [1])
    assert [int(label) for label in np.asarray(labels)[train]] == [2] * 4 + [0] * 4 + [1] * 3  # classes as they first appear
    assert len(set(train.tolist())) == len(train)
    assert len(val) == 5
    assert fewshot_indices(labels, 16, seed=1, val_labels=[0] * 9)[1].shape == (4,)
    assert not np.array_equal(train, fewshot_indices(labels, 4, seed=2)[0])


def test_base_classes_are_the_first_half_rounded_up_and_new_ones_count_from_zero():
    labels = [7, 3, 3, 9, 5, 7]
    base, new = base_new_split(labels, "base"), base_new_split(labels, "new")
    assert [a.tolist() for a in base] == [[1, 2, 4], [0, 0, 1]]
    assert [a.tolist() for a in new] == [[0, 3, 5], [0, 1, 0]]
    odd, rest = base_new_split([4, 5, 6], "base"), base_new_split([4, 5, 6], "new")
    assert (odd[0].tolist(), rest[0].tolist()) == ([0, 1], [2])


def test_paths_in_settings_are_found_from_any_folder(tmp_path, monkeypatch):
    from vlm_core.data.crawl.corpus import find

    monkeypatch.chdir(tmp_path)
    assert find("infra/demo/corpus.tar").samefile(CORPUS)
    (tmp_path / "mine.tar").touch()
    assert find("mine.tar") == Path("mine.tar")


def test_what_another_snapshot_of_a_mix_trains_on_is_tested_by_nobody(corpus, tmp_path):
    named = [p for p in corpus.pictures if p.source == "noto" and p.url and "robots" not in p.dirt and p.captions[p.pages[0].split("/")[1]]]
    pictures, config = named[::3][:160], EvalSets(corpus=str(tmp_path / "small.tar"), datasets=["emoji_groups"], min_train=1, min_test=1)
    part_of(corpus, pictures, tmp_path / "small.tar")
    shards = shards_of(corpus, pictures[:60], tmp_path / "shards")
    tested = _tested(eval_to(tmp_path / "before", config, {"shards": shards}))
    web = shards_of(corpus, [p for p in pictures if hashlib.sha256(corpus.read(p.file)).hexdigest() in tested], tmp_path / "web")
    trained = {sample.record["sha256"] for sample in read_samples(web, "train")}
    assert len(tested & trained) >= 8, "else this shows nothing"
    after = _tested(eval_to(tmp_path / "after", config, {"shards": shards, "shards.web": web}))
    assert after - trained == after != set()


def _tested(folder):
    table = pq.read_table(folder / "emoji_groups" / "table.parquet").to_pydict()
    return {sha for sha, split in zip(table["sha256"], table["split"], strict=True) if split == "test"}
