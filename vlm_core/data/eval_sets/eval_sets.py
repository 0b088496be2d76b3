"""Labelled test sets from the embedded corpus: class names, templates, splits. Nothing in a test split resembles anything that was trained on.

Pictures with equal bytes, equal captions or nearly equal looks, and the works of one clip-art author, form a group, and a group lies in one split.
A picture that is grouped with a training sample, or whose author has one, never lies in test; nor does one that is grouped with what the filter network
was trained on that made the embeddings (input embeddings): it chose the training samples. Models of a mix (`loader.mix`) are trained on several snapshots:
each is an input, shards and shards.NAME.

    OUT/<dataset>/images.tar      <key>.png | jpg, the bytes of the corpus
    OUT/<dataset>/table.parquet   key, split, label, classname, group, style, sha256; sorted by key
    OUT/<dataset>/dataset.json    classnames and templates in order, metric, licences, counts
"""

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from vlm_core import stage as stages
from vlm_core.data.config import EvalSets
from vlm_core.data.crawl.corpus import Corpus, find
from vlm_core.data.draws import uniform
from vlm_core.data.eval_sets import names as eval_names
from vlm_core.data.eval_sets.groups import ANY_SIZE, Item, group, pool
from vlm_core.data.eval_sets.known import read_known
from vlm_core.data.fetch.picture import decode
from vlm_core.data.pictures import contact_sheet
from vlm_core.data.shards.records import read_table
from vlm_core.data.shards.tar import Member, TarWriter, members, read_member
from vlm_core.errors import BadManifest, MissingInput, NothingLeft, did_you_mean
from vlm_core.stage import Report, Stage

SPLITS = ("train", "val", "test")
TABLE = pa.schema([
    ("key", pa.string()), ("split", pa.string()), ("label", pa.int64()), ("classname", pa.string()),
    ("group", pa.string()), ("style", pa.string()), ("sha256", pa.string()),
])  # fmt: skip


class Dataset(NamedTuple):
    """What distinguishes a dataset: which label, which pictures learn and which test, names and templates."""

    label: str
    learn: str  # style of train and val
    test: str  # style of test
    names: dict[str, str]
    templates: tuple[str, ...]


MENU: dict[str, Dataset] = {
    "emoji_groups": Dataset("emoji_group", "noto", "noto", eval_names.GROUPS, eval_names.EMOJI_TEMPLATES),
    "emoji_subgroups": Dataset("emoji_subgroup", "noto", "noto", eval_names.SUBGROUPS, eval_names.EMOJI_TEMPLATES),
    "emoji_shift": Dataset("emoji_group", "noto", "twemoji", eval_names.GROUPS, eval_names.EMOJI_TEMPLATES),
    "clipart_folders": Dataset("clipart_folder", "clipart", "clipart", eval_names.FOLDERS, eval_names.CLIPART_TEMPLATES),
}


# ---------------------------------------------------------------- the verb


def eval_sets(config: EvalSets, stage: Stage) -> Report:
    """`vlm eval-sets`. Raises NothingLeft for a dataset that keeps fewer than two classes."""
    report = Report()
    with Corpus(find(config.corpus)) as corpus:
        known = read_known(stage.input("embeddings")) if "embeddings" in stage.inputs else []
        snapshots = [path for name, path in sorted(stage.inputs.items()) if name.partition(".")[0] == "shards"]
        pictures = pool(corpus, snapshots, known, config.group, stage)
        for name in config.datasets:
            made = _split(MENU[name], pictures, config)
            if len({entry.classname for entry in made.entries}) < 2:
                raise NothingLeft(
                    f"Found fewer than two classes of {name} with {config.min_train} pictures to learn from and {config.min_test} to test, "
                    "expected two; lower min_train or min_test, or take the dataset out of 'datasets'."
                )
            _write(name, made.entries, corpus, stage.out / name)
            _tell(name, made, corpus, stage, report)
    report.counts |= {"known_to_the_scorer": len(known)} if known else {}
    return report


class Entry(NamedTuple):
    """A picture in its place."""

    item: Item
    group: str
    split: str
    classname: str

    @property
    def key(self) -> str:
        return self.item.picture.key.replace("/", "-")


# ---------------------------------------------------------------- splits


class Made(NamedTuple):
    """The pictures of a dataset; how many test candidates resemble training samples; how many of those a blind split would have tested."""

    entries: list[Entry]
    seen: int
    moved: int


def _split(dataset: Dataset, pictures: list[Item], config: EvalSets) -> Made:
    mine = _distinct(
        item for item in pictures if item.picture.style in (dataset.learn, dataset.test) and item.picture.labels.get(dataset.label) in dataset.names
    )
    groups = group([item.look for item in mine], config.group)
    placed = _place(dataset, mine, groups, config)
    entries = []
    for item in mine:
        split = placed[groups[item.look.uid]]
        if item.picture.style == (dataset.test if split == "test" else dataset.learn) and not (split == "test" and item.seen):
            entries.append(Entry(item, groups[item.look.uid], split, dataset.names[item.picture.labels[dataset.label]]))
    counts = Counter((entry.classname, entry.split) for entry in entries)
    full = {name for name in dataset.names.values() if counts[name, "train"] >= config.min_train and counts[name, "test"] >= config.min_test}
    seen = [item for item in mine if item.seen and item.picture.style == dataset.test]
    moved = sum(uniform(config.seed, groups[item.look.uid]) < config.test_share for item in seen)
    return Made(sorted((entry for entry in entries if entry.classname in full), key=lambda entry: entry.key), len(seen), moved)


def _distinct(items: Iterable[Item]) -> list[Item]:
    """One of each content (a copy would count twice in the interval), and none of one colour (PDQ quality 0)."""
    first: dict[str, Item] = {}
    for item in items:
        if item.look.quality:
            first.setdefault(item.look.sha256, item)
    return list(first.values())


def _place(dataset: Dataset, mine: list[Item], groups: dict[str, str], config: EvalSets) -> dict[str, str]:
    """Group -> split. Groups that were mostly not trained on fill each class of the test up to its share (without limit where another style is tested)."""
    held: dict[str, list[Item]] = {}
    for item in mine:
        held.setdefault(groups[item.look.uid], []).append(item)
    testable = Counter(item.picture.labels[dataset.label] for item in mine if item.picture.style == dataset.test)
    room = {label: config.test_share * count if dataset.learn == dataset.test else len(mine) for label, count in testable.items()}
    placed = {}
    for name in sorted(held, key=lambda name: uniform(config.seed, name)):
        test = Counter(item.picture.labels[dataset.label] for item in held[name] if item.picture.style == dataset.test and not item.seen)
        if test.total() * 2 > sum(item.picture.style == dataset.test for item in held[name]) and all(room[label] >= count for label, count in test.items()):
            placed[name] = "test"
            for label, count in test.items():
                room[label] -= count
        else:
            placed[name] = "val" if uniform(config.seed, f"val {name}") < config.val_share else "train"
    return placed


# ---------------------------------------------------------------- writing


def _write(name: str, entries: list[Entry], corpus: Corpus, out: Path) -> None:
    out.mkdir(parents=True)
    dataset, present = MENU[name], {entry.classname for entry in entries}
    classnames = [classname for classname in dict.fromkeys(dataset.names.values()) if classname in present]
    rows = []
    with TarWriter(out / "images.tar") as tar:
        for entry in entries:
            item = entry.item
            tar.add(entry.key + Path(item.picture.file).suffix, corpus.read(item.picture.file))
            place = {"key": entry.key, "split": entry.split, "label": classnames.index(entry.classname), "classname": entry.classname}
            rows.append({**place, "group": entry.group, "style": item.picture.style, "sha256": item.look.sha256})
    pq.write_table(pa.Table.from_pylist(rows, TABLE), out / "table.parquet", compression="zstd")
    stages.write_json(
        out / "dataset.json",
        {
            "name": name, "classnames": classnames, "templates": list(dataset.templates), "metric": "acc1", "n": Counter(entry.split for entry in entries),
            "licences": sorted({entry.item.picture.licence for entry in entries}), "sources": sorted({entry.item.picture.source for entry in entries}),
            "styles": {"train": dataset.learn, "val": dataset.learn, "test": dataset.test}, "images_md5": tar.md5,
        },
    )  # fmt: skip


def _tell(name: str, made: Made, corpus: Corpus, stage: Stage, report: Report) -> None:
    """Counts, a table of classes and a contact sheet of the test split."""
    splits = Counter(entry.split for entry in made.entries)
    report.counts |= {f"{name}.{split}": splits[split] for split in SPLITS} | {f"{name}.seen_in_training": made.seen, f"{name}.moved_out": made.moved}
    report.counts["in"] = report.counts.get("in", 0) + len(made.entries)
    cells = Counter((entry.classname, entry.split) for entry in made.entries)
    report.tables[name] = [{"class": label, **{split: cells[label, split] for split in SPLITS}} for label in dict.fromkeys(label for label, _ in cells)]
    test = sorted((entry for entry in made.entries if entry.split == "test"), key=lambda entry: uniform(0, entry.key))[:48]
    contact_sheet(((_upright(corpus.read(entry.item.picture.file)), entry.classname) for entry in test), stage.pictures / f"{name}.png")
    report.pictures[f"{name}: test pictures"] = f"{name}.png"


# ---------------------------------------------------------------- reading


class EvalSet:
    """A dataset as `read_dataset` gives it: arrays in the order of the table, pictures by key."""

    def __init__(self, folder: Path) -> None:
        """Raises MissingInput, SchemaMismatch, BadManifest."""
        about = json.loads((folder / "dataset.json").read_bytes())
        table = read_table(folder / "table.parquet", tuple(TABLE.names))
        self.folder, self.name, self.metric = folder, str(about["name"]), str(about["metric"])
        self.classnames: list[str] = about["classnames"]
        self.templates: list[str] = about["templates"]
        self.about: dict[str, Any] = about
        self.keys, self.groups, self.styles, self.sha256 = (table[name].to_pylist() for name in ("key", "group", "style", "sha256"))
        self.splits = np.array(table["split"].to_pylist())
        self.labels = table["label"].to_numpy().astype(np.int64)
        self._where = {member.name.rpartition(".")[0]: member for member in members(folder / "images.tar")}
        if missing := [key for key in self.keys if key not in self._where]:
            raise BadManifest(f"Found no picture {missing[0]!r} in {folder / 'images.tar'}, expected all that table.parquet lists; run 'vlm eval-sets' again.")

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self, split: str) -> NDArray[np.int64]:
        """Row numbers of a split."""
        return np.flatnonzero(self.splits == split)

    def images(self, rows: Sequence[int] | NDArray[np.int64] | None = None) -> Iterator[Image.Image]:
        """Upright RGB pictures of these rows (of all rows), transparent ones on white."""
        with (self.folder / "images.tar").open("rb") as stream:
            for row in range(len(self)) if rows is None else rows:
                member: Member = self._where[self.keys[row]]
                yield _upright(read_member(stream, member))


def _upright(content: bytes) -> Image.Image:
    """RGB, transparent parts white."""
    return decode(io.BytesIO(content), ANY_SIZE)[0].convert("RGB")


def read_dataset(folder: Path) -> EvalSet:
    """One dataset of an eval_sets folder: `read_dataset(eval_sets / "emoji_groups")`. Raises MissingInput, naming those that are there."""
    if not (folder / "dataset.json").is_file():
        there = sorted(path.parent.name for path in folder.parent.glob("*/dataset.json"))
        raise MissingInput(f"Found no dataset at {folder}, expected one made by 'vlm eval-sets'; {did_you_mean(folder.name, there)}")
    return EvalSet(folder)


def datasets_in(folder: Path) -> list[str]:
    """Names of the datasets of an eval_sets folder, in the order of the menu."""
    there = {path.parent.name for path in folder.glob("*/dataset.json")}
    return [name for name in MENU if name in there] + sorted(there - set(MENU))
