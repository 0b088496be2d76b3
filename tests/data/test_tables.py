"""Tables of addresses: every format, packing and layout; what is broken is counted; memory does not grow with the file."""

import bz2
import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.loopback import body, web
from vlm_core.data.crawl import rows as readers
from vlm_core.data.crawl.config import Columns, Crawl, Extract, Table
from vlm_core.data.crawl.pairs import Merger, Seen, make_pair
from vlm_core.data.sample import make_uid
from vlm_core.errors import BadManifest, ConfigError, MissingInput, NothingLeft
from vlm_core.run import load, run

FOX = ("http://a.org/1.jpg", "a fox, red")


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


def extract(tmp_path, given, config=None, **more):
    report = run("extract", config or Extract(), {"pages": given, **more}, tmp_path / "out")
    return pq.read_table(tmp_path / "out" / "pairs.parquet").to_pylist(), report


def through_crawl(tmp_path, path, config=None):
    """Both verbs, as a person runs them."""
    report = run("crawl", Crawl(source=Table(path=str(path))), {}, tmp_path / "pages")
    return (*extract(tmp_path, tmp_path / "pages", config), report)


def found(rows):
    return sorted((row["url"], row["caption"]) for row in rows)


def packed(data, suffix):
    match suffix:
        case ".gz":
            return gzip.compress(data[:10]) + gzip.compress(data[10:])  # two members, as pigz and cat make them
        case ".bz2":
            return bz2.compress(data)
        case ".zst":
            return pa.Codec("zstd").compress(data, asbytes=True)
    return data


# ---------------------------------------------------------------- formats, layouts, places


CONTENTS = {
    "csv": b'url,caption\nhttp://a.org/1.jpg,"a fox, red"\n',
    "tsv": b"url\tcaption\nhttp://a.org/1.jpg\ta fox, red\n",
    "jsonl": b'{"url": "http://a.org/1.jpg", "caption": "a fox, red"}\n\n',
    "json": b' [ {"url": "http://a.org/1.jpg", "caption": "a fox, red"} ] ',
}


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".zst"])
@pytest.mark.parametrize("form", CONTENTS)
def test_a_table_of_every_format_may_be_packed(tmp_path, form, suffix):
    file = tmp_path / f"list.{form}{suffix}"
    file.write_bytes(packed(CONTENTS[form], suffix))
    rows, report, crawled = through_crawl(tmp_path, file)
    assert found(rows) == [FOX]
    assert (report.counts["in"], crawled.counts["tables"]) == (1, 1)
    assert (tmp_path / "pages" / "tables" / file.name).read_bytes() == file.read_bytes()


LAYOUTS = {
    "cc3m": ("cc3m.tsv", b'a "fox, red\thttp://a.org/1.jpg\n'),  # a single quotation mark is part of the caption
    "cc12m": ("cc12m.tsv", b'http://a.org/1.jpg\ta "fox, red\n'),
    "redcaps": ("foxes_2019.json", json.dumps({"info": {"url": "https://redcaps.xyz"}, "annotations": [
        {"image_id": "x", "author": "ana", "url": "http://a.org/1.jpg", "raw_caption": "A Fox!", "caption": 'a "fox, red', "permalink": "/r/foxes/1/", "subreddit": "foxes"}]}).encode()),
    "laion": ("part.parquet", {"URL": ["http://a.org/1.jpg"], "TEXT": ['a "fox, red'], "LANGUAGE": ["en"], "LICENSE": ["?"], "similarity": [0.3]}),
    "datacomp": ("pool.parquet", {"uid": ["0"], "url": ["http://a.org/1.jpg"], "text": ['a "fox, red'], "sha256": ["ab" * 32]}),
}  # fmt: skip


@pytest.mark.parametrize("preset", LAYOUTS)
def test_the_layouts_of_known_collections_are_presets(tmp_path, preset):
    name, content = LAYOUTS[preset]
    file = tmp_path / name
    file.write_bytes(content) if isinstance(content, bytes) else pq.write_table(pa.table(content), file)
    rows, _ = extract(tmp_path, file, Extract(columns=Columns(preset=preset)))
    (row,) = rows
    assert (row["url"], row["caption"]) == ("http://a.org/1.jpg", 'a "fox, red')
    assert row["pages"] == [{"page_url": row["page_url"], "source": f"table:{name}", "place": "0"}]
    wanted = {"redcaps": ("page_url", "https://www.reddit.com/r/foxes/1/"), "laion": ("lang", "en"), "datacomp": ("sha256", "ab" * 32)}
    field, value = wanted.get(preset, ("lang", ""))
    assert row[field] == value
    assert row["credit"] == ("ana" if preset == "redcaps" else "")


def test_a_table_without_header_is_mapped_by_the_numbers_of_its_columns(tmp_path):
    file = tmp_path / "list.csv"
    file.write_text('7,"a fox, red",http://a.org/1.jpg\n8,an owl,http://a.org/2.jpg\n')
    rows, _ = extract(tmp_path, file, Extract(columns=Columns(header=False, url="2", caption="1")))
    assert found(rows) == [FOX, ("http://a.org/2.jpg", "an owl")]


def test_a_folder_a_pattern_and_an_fsspec_url_name_many_tables_and_all_are_read(tmp_path):
    store = fsspec.filesystem("memory")
    for place, (number, suffix) in {"/lists/a/one.csv": (1, ""), "/lists/two.jsonl.gz": (2, ".gz"), "/lists/notes.txt": (3, ""), "/lists/.hidden.csv": (4, "")}.items():  # fmt: skip
        line = f"url,caption\nhttp://a.org/{number}.jpg,fox\n" if "csv" in place else json.dumps({"url": f"http://a.org/{number}.jpg", "caption": "fox"})
        store.pipe(place, packed(line.encode(), suffix))
        (tmp_path / place[1:]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place[1:]).write_bytes(store.cat(place))
    wanted = [("http://a.org/1.jpg", "fox"), ("http://a.org/2.jpg", "fox")]
    versions = set()
    for path in (tmp_path / "lists", "memory://lists", f"file://{tmp_path}/lists"):
        rows, _, crawled = through_crawl(tmp_path, path)
        assert found(rows) == wanted
        assert [row["source"] for row in sorted(rows, key=lambda row: row["url"])] == ["table:a/one.csv", "table:two.jsonl.gz"]
        versions.add(crawled.data_version)
    assert len(versions) == 1, "the same tables are the same version, wherever they lie"
    rows, _, _ = through_crawl(tmp_path, "memory://lists/*.gz")
    assert found(rows) == wanted[1:]


def test_a_table_may_lie_on_a_web_server(tmp_path):
    table = b"url,caption\n" + b"".join(b"http://a.org/%d.jpg,fox %d\n" % (n, n) for n in range(50_000))
    with web({"/lists/all.csv?download=1": body(table, "text/csv")}) as site:
        rows, _, _ = through_crawl(tmp_path, f"http://{site.address}/lists/all.csv?download=1")
        assert (len(rows), rows[0]["source"]) == (50_000, "table:all.csv")
        with pytest.raises(MissingInput, match="cannot be read"):
            through_crawl(tmp_path, f"http://{site.address}/gone.csv")


@pytest.mark.parametrize(
    ("path", "error", "said"),
    [
        ("zip://x.csv::memory://a.zip", ConfigError, "zip://"), ("reference://x", ConfigError, "reference://"), ("javascript://x", ConfigError, "s3"),
        ("https://ann:hunter2@a.org/x.csv", ConfigError, "environment"), ("s3://bucket/x.csv", ConfigError, "s3fs"), ("memory://nothing/here", MissingInput, "nothing/here"),
        ("no/such/folder", MissingInput, "no/such/folder"),
    ],
)  # fmt: skip
def test_an_address_that_is_not_to_be_opened_is_refused_in_one_sentence(tmp_path, path, error, said):
    with pytest.raises(error, match=said) as raised:
        through_crawl(tmp_path, path)
    assert "hunter2" not in str(raised.value)


def test_a_changed_file_in_a_folder_is_read_again_and_an_equal_one_gives_the_same_version(tmp_path):
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "a.csv").write_text("url,caption\nhttp://a.org/1.jpg,fox\n")
    first = through_crawl(tmp_path, folder)[2]
    assert through_crawl(tmp_path, folder)[2].data_version == first.data_version
    (folder / "a.csv").write_text("url,caption\nhttp://a.org/2.jpg,fox\n")
    rows, _, second = through_crawl(tmp_path, folder)
    assert (found(rows), second.data_version != first.data_version) == ([("http://a.org/2.jpg", "fox")], True)


def test_a_recipe_may_be_chosen_many_times_in_params_yaml_under_names_of_its_own(tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text(
        "crawl: {demo_crawl: {}, table_crawl@laion: {source: {path: /l}}, table_crawl@cc12m: {source: {path: /c}}, table_crawl: {source: {path: /x}}}"
    )
    found = {name: load("crawl", name, params)[1].source.path for name in ("table_crawl@laion", "table_crawl@cc12m", "table_crawl")}
    assert found == {"table_crawl@laion": "/l", "table_crawl@cc12m": "/c", "table_crawl": "/x"}
    assert load("crawl", None, params)[0] == "demo_crawl"
    with pytest.raises(ConfigError, match="'table_crow@laion'"):
        load("crawl", "table_crow@laion", params)


# ---------------------------------------------------------------- broken rows


def test_every_broken_row_is_counted_by_its_reason_and_the_others_are_read(tmp_path):
    tables = {
        "a.csv": b"url,caption\nhttp://a.org/1.jpg,fox\nhttp://a.org/2.jpg\nhttp://a.org/3.jpg,fox,more\nhttp://a.org/4.jpg,f\xffx\n\n",
        "b.jsonl": b'{"url": "http://a.org/5.jpg", "caption": "fox"}\n{"url": \nnull\n{"url": "http://a.org/6.jpg"}\n',
        "c.json": b'[{"url": "http://a.org/7.jpg", "caption": "fox"}, 3, {"url": "http://a.org/8.jpg", "caption": ',
        "d.csv.gz": gzip.compress(b"url,caption\nhttp://a.org/9.jpg,fox\n" + b"".join(b"http://a.org/x%d.jpg,owl %d\n" % (n, n * n) for n in range(20_000)))[
            :-2_000
        ],
        "e.parquet": b"PAR1 no",
        "f.csv": b"url,caption\nhttp://a.org/local.jpg,fox\nlocal://mine/1.jpg,steals a picture\nhttp://[x/,bad\n",
    }
    folder = tmp_path / "lists"
    folder.mkdir()
    for name, content in tables.items():
        (folder / name).write_bytes(content)
    rows, report, _ = through_crawl(tmp_path, folder)
    captions = Counter(row["caption"].split()[0] for row in rows)
    assert captions["fox"] == 5
    assert captions["f\ufffdx"] == 1
    assert 10_000 < captions["owl"] < 20_000
    reasons = {name.removeprefix("dropped."): count for name, count in report.counts.items() if name.startswith("dropped.")}
    assert reasons == {"wrong_number_of_fields": 2, "unreadable_row": 1, "not_an_object": 2, "damaged_file": 3, "no_caption": 1, "bad_address": 2}


def test_an_open_quotation_mark_loses_some_lines_and_says_how_many(tmp_path):
    lines = [f"http://a.org/{n}.jpg,fox number {n}" for n in range(20_000)]
    lines[100] = 'http://a.org/x.jpg,"never closed'
    file = tmp_path / "list.csv"
    file.write_text("url,caption\n" + "\n".join(lines) + "\n")
    rows, report = extract(tmp_path, file)
    lost = report.counts.get("dropped.unreadable_row", 0) + report.counts.get("dropped.wrong_number_of_fields", 0)
    assert len(rows) + lost == 20_000
    assert len(rows) > 15_000


def test_only_a_single_table_without_one_row_ends_the_run(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(BadManifest, match="x.parquet"):
        through_crawl(tmp_path, tmp_path / "one")
    (tmp_path / "one" / "y.csv").write_text("url,caption\n")
    with pytest.raises(NothingLeft, match="damaged_file"):
        through_crawl(tmp_path, tmp_path / "one")


@given(st.binary(max_size=300), st.sampled_from(["csv", "tsv", "jsonl", "json", "csv.gz", "jsonl.bz2", "json.zst"]))
def test_no_bytes_can_break_a_reader(tmp_path_factory, data, form):
    file = tmp_path_factory.getbasetemp() / f"any.{form}"
    file.write_bytes(data)
    trouble = Counter[str]()
    for _ in readers.read(file, True, lambda names: {name: name for name in names}, trouble):
        pass


def test_a_json_list_is_read_element_by_element_across_any_boundary(tmp_path):
    values = [{"n": n, "text": "x" * (n % 4000), "deep": {"a": [1, {"b": "]},{"}]}} for n in range(600)]
    file = tmp_path / "list.json"
    file.write_text(json.dumps({"info": {"list": ["a"]}, "annotations": values, "more": [1]}, indent=1))
    trouble = Counter[str]()
    rows = [row for _, row in readers.read(file, True, lambda names: {name: name for name in names}, trouble)]
    assert (rows, trouble) == (values, Counter())


# ---------------------------------------------------------------- merging


def test_pairs_merge_on_disk_as_they_would_in_memory(tmp_path, monkeypatch):
    def pairs():
        for n in range(3_000):
            seen, url = Seen(f"http://p.org/{n}", "table:x", str(n)), f"http://a.org/{n % 700}.jpg"
            yield make_pair(url, [("fox", "alt"), (f"fox {n % 7}", "title")], "en" if n > 1_500 else "", Extract(), Counter(), seen)

    def merged():
        merger = Merger(tmp_path / "pairs", 3)
        for pair in pairs():
            merger.add(pair)
        found = list(merger.sorted())
        assert merger.surplus == 200 * 2 + 500 * 1, "200 addresses occur five times, 500 four times, and three places are kept"
        return found

    whole = merged()
    monkeypatch.setattr("vlm_core.data.crawl.pairs.HELD", 100)
    monkeypatch.setattr("vlm_core.data.crawl.pairs.BUCKET_PAIRS", 5)
    assert merged() == whole
    assert [pair["uid"] for pair in whole] == sorted(make_uid(f"http://a.org/{n}.jpg", "fox") for n in range(700))
    assert not (tmp_path / "pairs").exists()
    first = next(pair for pair in whole if pair["url"].endswith("/0.jpg"))
    assert [seen["place"] for seen in first["pages"]] == ["0", "700", "1400"]
    assert ([caption["text"] for caption in first["captions"]], first["lang"]) == (["fox", "fox 0"], "en")


PEAK = """
import sys
from pathlib import Path
from vlm_core.data.crawl.config import Extract
from vlm_core.run import run
from vlm_core.stage import own_peak_mb
report = run("extract", Extract(), {"pages": Path(sys.argv[1])}, Path(sys.argv[2]))
print(report.counts["pairs"], own_peak_mb())
"""


def peak_mb(tmp_path, rows):
    file = tmp_path / f"{rows}.csv"
    with file.open("w") as stream:
        stream.write("url,caption\n")
        stream.writelines(f"http://host{n % 997}.org/pictures/{n}.jpg,a picture of fox number {n} in the snow of last winter\n" for n in range(rows))
    words = [sys.executable, "-c", PEAK, str(file), str(tmp_path / f"out{rows}")]
    done = subprocess.run(words, cwd=Path.cwd(), capture_output=True, text=True, check=True)
    pairs, peak = done.stdout.split()[-2:]
    assert int(pairs) == rows
    return float(peak)


@pytest.mark.slow
def test_eight_times_the_rows_take_the_same_memory(tmp_path):
    small, large = peak_mb(tmp_path, 60_000), peak_mb(tmp_path, 480_000)
    print(f"peak memory: {small:.0f} MB for 60,000 rows, {large:.0f} MB for 480,000")
    assert large < 1.25 * small
    assert large < 300
