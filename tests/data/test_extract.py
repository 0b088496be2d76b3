"""Pages, tables and WAT files become pairs."""

import gzip
import io
import json
import random
from collections import Counter
from urllib.parse import urljoin

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_core.data.crawl.crawl import PAGES
from vlm_core.data.crawl.config import Columns, Extract
from vlm_core.data.crawl.html import decode_html, parse_srcset, read_page
from vlm_core.data.sample import PAIRS, make_uid
from vlm_core.data.crawl.wat import extract_links
from vlm_core.errors import BadManifest, ConfigError, MissingInput, NothingLeft, SchemaMismatch
from vlm_core.run import run

HERE = "http://a.org/d/p.html"


def pictures(markup, url=HERE):
    return read_page(markup, url).pictures


def src(markup):
    return pictures(markup)[0].src


# ---------------------------------------------------------------- a page


@pytest.mark.parametrize(
    ("markup", "address"),
    [
        ("<img src=x.jpg>", "http://a.org/d/x.jpg"), ("<img src='/x.jpg'>", "http://a.org/x.jpg"), ("<img src='//c.org/x.jpg#f'>", "http://c.org/x.jpg"),
        ("<base href='http://b.org/s/'><img src=x.jpg>", "http://b.org/s/x.jpg"), ("<base href='../up/'><img src=x.jpg>", "http://a.org/up/x.jpg"),
        ("<img src='data:image/gif;base64,AA' data-src=real.jpg>", "http://a.org/d/real.jpg"), ("<img src=blank.gif data-src=real.jpg>", "http://a.org/d/real.jpg"),
        ("<img src=s.jpg srcset='m.jpg 640w, l.jpg 1280w, s.jpg 320w'>", "http://a.org/d/l.jpg"), ("<img src=s.jpg srcset='s.jpg 1x, d.jpg 2x'>", "http://a.org/d/d.jpg"),
        ("<picture><source srcset='w.webp 800w'><img src=x.jpg></picture>", "http://a.org/d/w.webp"), ("<img src=s.jpg srcset='t.jpg'>", "http://a.org/d/s.jpg"),
        ("<img srcset='only.jpg'>", "http://a.org/d/only.jpg"), ("<img src=' x.jpg\n'>", "http://a.org/d/x.jpg"), ("<img src='file:///etc/passwd'>", "file:///etc/passwd"),
        ("<img src='http://[bad/x.jpg'>", "http://[bad/x.jpg"),
    ],
)  # fmt: skip
def test_a_picture_is_found_where_the_page_will_load_it_from(markup, address):
    assert src(markup) == address


@pytest.mark.parametrize("markup", ["<img>", "<img src=''>", "<img src='data:image/png;base64,AAAA'>", "<img src='javascript:x()'>", "<p>no picture"])
def test_inline_and_empty_pictures_are_none(markup):
    assert pictures(markup) == []


def test_texts_language_licence_and_credit_of_a_figure():
    markup = """<html lang="de-AT"><body><div lang="fr_CA"><figure><img src=a.jpg alt=" Un&amp;nbsp;chat\n noir " title="Chat"><figcaption lang=fr>Un <b>chat</b> &amp; moi</figcaption>
        <meta itemprop="creditText" content="Ana"><link itemprop="license" href="/cc0"></figure></div><img src=b.jpg alt=b></body></html>"""
    first, second = pictures(markup)
    assert first == ("http://a.org/d/a.jpg", "Un chat noir", "Un chat & moi", "Chat", "fr", "http://a.org/cc0", "Ana")
    assert second[1:] == ("b", "", "", "de", "", "")


def test_a_caption_of_several_pictures_belongs_to_none_of_them():
    assert [found.figcaption for found in pictures("<figure><img src=a><img src=b><figcaption>left and right</figcaption></figure>")] == ["", ""]


@pytest.mark.parametrize(
    ("markup", "shared"),
    [
        ("<meta property=og:image content=/x.jpg><meta property='og:description' content='A &amp;amp; B'>", ("http://a.org/x.jpg", "A & B")),
        ("<meta property=og:image content=x.jpg><meta property=og:title content=t><meta property='og:image:alt' content=alt>", ("http://a.org/d/x.jpg", "alt")),
        ("<meta property='og:image:url' content=x.jpg>", ("http://a.org/d/x.jpg", "")), ("<meta property=og:image content=''>", ("", "")),
        ("<meta property=og:image content='data:image/png;base64,A'><meta property=og:title content=t>", ("", "")), ("<meta name=og content=x>", ("", "")),
    ],
)  # fmt: skip
def test_the_picture_that_stands_for_a_page_comes_with_the_nearest_text(markup, shared):
    assert read_page(markup, HERE).shared == shared


@pytest.mark.parametrize(
    ("markup", "canonical"),
    [
        ("<link rel=canonical href=/x#y>", "http://a.org/x"),
        ("<link rel='shortlink CANONICAL' href=x>", "http://a.org/d/x"),
        ("<a rel=canonical href=x>", ""),
        ("", ""),
    ],
)
def test_a_page_may_give_its_canonical_address(markup, canonical):
    assert read_page(markup, HERE).canonical == canonical


def test_links_are_pages_in_order_once_and_none_that_ask_not_to_be_followed():
    markup = "<a href=b>1</a><a href='b#x'>2</a><a href=mailto:x@y>3</a><a rel='ugc nofollow' href=c>4</a><a href=/>5</a><link rel=next href=n>"
    assert read_page(markup, HERE).links == ["http://a.org/d/b", "http://a.org/", "http://a.org/d/n"]
    assert read_page("<meta name=robots content='noai, NOFOLLOW'>" + markup, HERE).links == []


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        ("고양이".encode("euc-kr"), "text/html; charset=EUC-KR", "고양이"), ("<meta charset=shift_jis>猫".encode("shift_jis"), "text/html", "<meta charset=shift_jis>猫"),
        ("é".encode("latin-1"), "text/html; charset=ISO-8859-1", "é"), ("é".encode(), "text/html; charset=nonsense", "é"), (b"\xef\xbb\xbfa", "text/html; charset=latin-1", "a"),
        (b"a\xff", "text/html", "a\ufffd"),
    ],
)  # fmt: skip
def test_the_charset_comes_from_the_mark_the_header_or_the_page(body, kind, text):
    assert decode_html(body, kind) == text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a.jpg 1x, b.jpg 2x", [(1, "a.jpg"), (2, "b.jpg")]), ("a,b.jpg 100w", [(100, "a,b.jpg")]), ("a.jpg", [(1, "a.jpg")]), ("", []), (" , ", []),
        ("data:image/png;base64,AA 2x, b 1x", [(1, "b")]), ("a 1.5x,b 1x", [(1.5, "a"), (1, "b")]), ("a 10w 5h, b", [(10, "a"), (1, "b")]),
    ],
)  # fmt: skip
def test_srcset_is_read_like_a_browser_reads_it(text, found):
    assert parse_srcset(text) == found


@given(st.text(max_size=200))
def test_no_page_and_no_srcset_can_break_the_reader(text):
    read_page(text, HERE)
    read_page(f"<base href='{text}'><img src='{text}' srcset='{text}' alt='{text}'><a href='{text}'>", HERE)
    parse_srcset(text)


# ---------------------------------------------------------------- the verb


def write_pages(folder, *pages):
    folder.mkdir()
    blank = {"status": "ok", "http_status": 200, "content_type": "text/html; charset=utf-8", "lang": "", "x_robots": "", "detail": ""}
    rows = [{**blank, "url": url, "final_url": url, "html": markup.encode(), **more} for url, markup, more in pages]
    pq.write_table(pa.Table.from_pylist(rows, schema=PAGES), folder / "pages.parquet")
    return folder


def extract(tmp_path, given, config=None):
    report = run("extract", config or Extract(), {"pages": given}, tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "pairs.parquet")
    assert table.schema == PAIRS
    rows = table.to_pylist()
    assert [row["uid"] for row in rows] == sorted({row["uid"] for row in rows})
    assert all(row["uid"] == make_uid(row["url"], row["caption"]) and row["captions"][0]["text"] == row["caption"] for row in rows)
    return {row["url"].rsplit("/", 1)[-1]: row for row in rows}, report


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


def test_alt_is_the_raw_caption_and_figcaption_stands_in_for_an_empty_one(tmp_path):
    page = "<html lang=ko><img src=a.jpg alt=고양이 title=cat><figure><img src=b.jpg alt=''><figcaption>개</figcaption></figure><img src=c.jpg>"
    rows, report = extract(tmp_path, write_pages(tmp_path / "pages", (HERE, page, {})))
    assert [(c["text"], c["origin"], c["lang"]) for c in rows["a.jpg"]["captions"]] == [("고양이", "alt", "ko"), ("cat", "title", "ko")]
    assert rows["b.jpg"]["captions"] == [{"text": "개", "origin": "figcaption", "lang": "ko"}]
    assert report.counts == {"in": 3, "pairs": 2, "merged": 0, "dropped.no_caption": 1}


def test_the_same_pair_on_two_pages_is_one_pair_with_the_texts_and_the_opt_out_of_both(tmp_path):
    first, second = (
        "<img src=/x.jpg alt=fox><p lang=en>",
        "<meta name=robots content=noai><html lang=en><img src=http://A.ORG:80/x.jpg#z alt=fox title='A fox'>",
    )
    rows, report = extract(tmp_path, write_pages(tmp_path / "pages", (HERE, first, {}), ("http://a.org/e", second, {})))
    (row,) = rows.values()
    assert (row["url"], row["lang"], [c["text"] for c in row["captions"]], row["page_url"]) == ("http://a.org/x.jpg", "en", ["fox", "A fox"], HERE)
    assert row["page_optout"] == '<meta name="robots" content="noai">'
    assert (report.counts["in"], report.counts["merged"]) == (2, 1)


def test_og_image_is_a_pair_of_its_own_unless_the_page_shows_the_picture(tmp_path):
    head = "<meta property=og:image content={}><meta property=og:description content='all about foxes'><img src=a.jpg alt=fox>"
    pages = write_pages(tmp_path / "pages", (HERE, head.format("a.jpg"), {}), ("http://a.org/d/q", head.format("big.jpg"), {"x_robots": "noai"}))
    rows, _ = extract(tmp_path, pages)
    assert {name: [(c["text"], c["origin"]) for c in row["captions"]] for name, row in rows.items()} == {
        "a.jpg": [("fox", "alt")],
        "big.jpg": [("all about foxes", "og")],
    }
    assert rows["big.jpg"]["page_optout"] == "X-Robots-Tag: noai"
    assert set(extract(tmp_path, pages, Extract(open_graph=False))[0]) == {"a.jpg"}


def test_batches_merge_into_one_pair_with_all_captions_and_all_places(tmp_path):
    first = write_pages(tmp_path / "pages", (HERE, "<img src=/x.jpg alt=fox title='A fox'>", {}))
    second = write_pages(
        tmp_path / "more",
        (
            "http://b.org/",
            "<html lang=en><meta name=robots content=noai><figure><img src=http://a.org/x.jpg alt=fox><figcaption>Reynard</figcaption></figure>",
            {},
        ),
    )
    (tmp_path / "list.csv").write_text("url,caption,licence\nhttp://A.org/x.jpg#f,fox,CC0\nhttp://a.org/y.jpg,hen,\n")
    inputs = {"pages": first, "pages.shop": second, "pages.list": tmp_path / "list.csv"}
    report = run("extract", Extract(), inputs, tmp_path / "out")
    rows = {row["caption"]: row for row in pq.read_table(tmp_path / "out" / "pairs.parquet").to_pylist()}
    assert set(rows) == {"fox", "hen"}
    fox = rows["fox"]
    assert [(c["text"], c["origin"]) for c in fox["captions"]] == [("fox", "alt"), ("A fox", "title"), ("Reynard", "figcaption")]
    assert fox["pages"] == [
        {"page_url": HERE, "source": "page:a.org", "place": ""}, {"page_url": "", "source": "list/table:list.csv", "place": "1"},
        {"page_url": "http://b.org/", "source": "shop/page:b.org", "place": ""},
    ]  # fmt: skip
    assert (fox["page_url"], fox["source"], fox["lang"], fox["licence"]) == (HERE, "page:a.org", "en", "CC0")
    assert fox["page_optout"], "an opt-out on one of its pages holds"
    assert report.tables["batches"] == [{"batch": "pages", "pairs": 1}, {"batch": "list", "pairs": 2}, {"batch": "shop", "pairs": 1}]
    again = run("extract", Extract(), dict(reversed(inputs.items())), tmp_path / "again")
    assert again.data_version == report.data_version
    with pytest.raises(ConfigError, match="columns_of.lost"):
        run("extract", Extract(columns_of={"lost": Columns()}), inputs, tmp_path / "no")
    with pytest.raises(ConfigError, match="'page.shop'"):
        run("extract", Extract(), {"pages": first, "page.shop": second}, tmp_path / "no")


def test_hostile_and_odd_addresses_become_pairs_that_the_download_refuses_but_invalid_ones_do_not(tmp_path):
    page = "<img src=file:///etc/passwd alt=a><img src=http://10.0.0.1/x alt=b><img src='http://[bad/x' alt=c><img src='https:///y' alt=d><img src=ftp://a.org/f alt=e>"
    rows, report = extract(tmp_path, write_pages(tmp_path / "pages", (HERE, page, {})))
    assert {row["caption"] for row in rows.values()} == {"a", "b", "e"}
    assert report.counts["dropped.bad_address"] == 2


def test_headers_of_the_page_opt_out_and_pages_that_failed_are_not_read(tmp_path):
    pages = write_pages(
        tmp_path / "pages", (HERE, "<img src=a.jpg alt=a>", {"x_robots": "nofollow\nnoai"}), ("http://a.org/z", "<img src=z.jpg alt=z>", {"status": "http_4xx"})
    )
    rows, _ = extract(tmp_path, pages)
    assert {name: row["page_optout"] for name, row in rows.items()} == {"a.jpg": "X-Robots-Tag: nofollow | X-Robots-Tag: noai"}


def test_a_tdm_header_of_a_page_and_the_words_of_the_profile_opt_out(tmp_path):
    pages = write_pages(
        tmp_path / "pages", (HERE, "<img src=a.jpg alt=a>", {"tdm_reservation": "1"}), ("http://a.org/z", "<img src=z.jpg alt=z>", {"tdm_reservation": "0"}),
        ("http://a.org/s", "<meta name=robots content=nosnippet><img src=s.jpg alt=s>", {}), ("http://a.org/n", "<img src=n.jpg alt=n>", {"x_robots": "noai"}),
    )  # fmt: skip
    rows, _ = extract(tmp_path, pages, Extract(directives=["nosnippet"]))
    assert {name: row["page_optout"] for name, row in rows.items()} == {
        "a.jpg": "TDM-Reservation: 1", "z.jpg": "", "s.jpg": '<meta name="robots" content="nosnippet">', "n.jpg": "",
    }  # fmt: skip


TABLES = {
    "plain.csv": b'url,caption,lang\nhttp://a.org/1.jpg,"a fox, red",en\nhttp://a.org/2.jpg,,en\n',
    "laion.parquet": {"URL": ["http://a.org/1.jpg", None], "TEXT": ["a fox, red", "no address"], "LANGUAGE": ["en", "en"], "NSFW": ["UNLIKELY", ""]},
    "datacomp.jsonl": b'{"url": "http://a.org/1.jpg", "text": "a fox, red", "uid": "0"}\n{"url": "http://[x/", "text": "bad"}\n',
    "list.json": b'[{"url": "http://a.org/1.jpg", "text": "a fox, red"}, {"url": "http://a.org/3.jpg", "text": null}]',
    "cc3m.tsv": b"a fox, red\thttp://a.org/1.jpg\n\thttp://a.org/4.jpg\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_any_kind_gives_the_pairs_that_it_names(tmp_path, name):
    file, content = tmp_path / name, TABLES[name]
    file.write_bytes(content) if isinstance(content, bytes) else pq.write_table(pa.table(content), file)
    rows, report = extract(tmp_path, file, Extract(columns=Columns(preset="cc3m" if "cc3m" in name else "auto")))
    assert [(row["url"], row["caption"], row["captions"][0]["origin"]) for row in rows.values()] == [("http://a.org/1.jpg", "a fox, red", "table")]
    assert report.counts["in"] == 2


def test_columns_of_any_name_can_be_given_and_a_missing_one_is_named(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("bild,text,von\nhttp://a.org/1.jpg,ein Fuchs,Ana\n")
    rows, _ = extract(tmp_path, file, Extract(columns=Columns(url="bild", caption="text", credit="von")))
    assert rows["1.jpg"]["credit"] == "Ana"
    with pytest.raises(SchemaMismatch, match="bild, text, von.*expected one for the url"):
        extract(tmp_path, file)
    with pytest.raises(SchemaMismatch, match="no column 'bilt'.*did you mean 'bild'"):
        extract(tmp_path, file, Extract(columns=Columns(url="bilt", caption="text")))


def test_unreadable_and_empty_inputs_end_in_one_sentence(tmp_path):
    broken, empty, other = tmp_path / "broken.parquet", tmp_path / "empty.csv", tmp_path / "x.zip"
    broken.write_bytes(b"PAR1 no")
    empty.write_text("url,caption\nhttp://a.org/1.jpg,\n")
    other.write_bytes(b"")
    for file, error in ((broken, BadManifest), (empty, NothingLeft), (other, MissingInput)):
        with pytest.raises(error):
            extract(tmp_path, file)


# ---------------------------------------------------------------- WAT


def wat(*bodies, cut=0):
    records = []
    for body in bodies:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"WARC/1.0\r\nWARC-Type: metadata\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n".encode()
        records.append(gzip.compress(head + text + b"\r\n\r\n"))
    return io.BytesIO(b"".join(records)[: -cut or None])


def envelope(*links, page=HERE, **head):
    found = {"Links": [{"path": "IMG@/src", **link} for link in links], "Head": head}
    return {"Envelope": {"WARC-Header-Metadata": {"WARC-Target-URI": page}, "Payload-Metadata": {"HTTP-Response-Metadata": {"HTML-Metadata": found}}}}


def test_wat_records_that_are_broken_or_cut_off_do_not_lose_the_others():
    good, late = envelope({"url": "x.jpg", "alt": "a"}), envelope({"url": "y.jpg", "alt": "b"})
    trouble = Counter()
    odd = [b'{"IMG@/src', b'["IMG@/src"]', b'{"Envelope": "IMG@/src"}', b'"\xff IMG@/src"', b'{"IMG@/src": NaN}']
    assert [link.url for link in extract_links(wat(good, *odd, late), trouble=trouble)] == ["http://a.org/d/x.jpg", "http://a.org/d/y.jpg"]
    assert trouble == {"broken_record": 5}
    assert [link.url for link in extract_links(wat(good, late, cut=30), trouble=trouble)] == ["http://a.org/d/x.jpg"]
    assert trouble == {"broken_record": 5, "damaged_archive": 1}, "the record that is cut off"


@pytest.mark.parametrize(
    "junk",
    [
        b"\x1f\x8b not a record" * 9,
        b"\x1f\x8b\x08" * 50_000,
        b"x" * 200_000,
        gzip.compress(random.Random(0).randbytes(200_000))[:100_000],
        gzip.compress(random.Random(0).randbytes(900))[:500],
        b"\x1f\x8b\x08\x1f",
    ],
)
@pytest.mark.fault("F8")
def test_wat_damage_in_the_middle_costs_what_is_damaged_and_is_counted_once(junk):
    good, late = wat(envelope({"url": "x.jpg", "alt": "a"})).read(), wat(envelope({"url": "y.jpg", "alt": "b"}), envelope({"url": "z.jpg", "alt": "c"})).read()
    trouble = Counter()
    links = list(extract_links(io.BytesIO(good + junk + late), trouble=trouble))
    assert [(link.url[-5:], link.offset) for link in links] == [("x.jpg", 0), ("y.jpg", len(good + junk)), ("z.jpg", len(good + junk + late) - len(wat(envelope({"url": "z.jpg", "alt": "c"})).read()))]  # fmt: skip
    assert trouble == {"damaged_archive": 1}


def test_wat_may_be_unpacked_and_its_members_may_hold_several_records():
    bodies = [envelope({"url": f"{n}.jpg", "alt": "a" * n}) for n in range(1, 40)]
    packed = wat(*bodies).read()
    plain = gzip.decompress(packed)
    names = [f"http://a.org/d/{n}.jpg" for n in range(1, 40)]
    for data in (packed, plain, gzip.compress(plain), plain.replace(b"WARC-Type", b"warc-type")):
        trouble = Counter()
        assert [link.url for link in extract_links(io.BytesIO(data), trouble=trouble)] == names
        assert not trouble


def test_a_wat_member_that_grows_without_end_is_left_out(monkeypatch):
    monkeypatch.setattr("vlm_core.data.crawl.wat.RECORD_BYTES", 100_000)
    trouble = Counter()
    links = extract_links(io.BytesIO(wat(envelope({"url": "x.jpg", "alt": "a"})).read() + gzip.compress(bytes(50_000_000)) + wat(envelope({"url": "y.jpg", "alt": "b"})).read()), trouble=trouble)  # fmt: skip
    assert [link.url[-5:] for link in links] == ["x.jpg", "y.jpg"]
    assert trouble == {"damaged_archive": 1}


@given(
    st.text("/.?ab%&=~-_:;#@ \t", max_size=12),
    st.sampled_from([HERE, "https://a.org", "http://a.org:80/x?y#z", "http://[::1]/x", "ftp://a.org/", "http://a@b.org/x"]),
)
def test_wat_addresses_are_joined_as_urljoin_joins_them(address, page):
    links = [link.url for link in extract_links(wat(envelope({"url": address, "alt": "a"}, page=page)), strict=False)]
    try:
        joined = urljoin(page, address) if address else page
    except ValueError:
        joined = address
    assert links == ([joined] if joined.startswith(("http://", "https://")) else [])


def test_wat_strict_drops_what_cannot_be_fetched_and_the_reference_keeps_it():
    page = envelope({"url": "http://[x/a.jpg", "alt": "bad"}, {"url": "", "alt": "empty"}, {"url": "f.jpg#z", "alt": "ok"}, Base="../up/")
    assert [link.url for link in extract_links(wat(page))] == ["http://a.org/up/f.jpg"]
    assert [link.url for link in extract_links(wat(page), strict=False)] == ["http://[x/a.jpg", "http://a.org/up/", "http://a.org/up/f.jpg#z"]


def test_a_wat_file_is_a_table_for_the_verb(tmp_path):
    file = tmp_path / "CC.warc.wat.gz"
    file.write_bytes(wat(envelope({"url": "x.jpg", "alt": "a fox"}, {"url": "x.jpg", "alt": "a fox"})).read())
    rows, report = extract(tmp_path, file)
    assert (rows["x.jpg"]["page_url"], report.counts["merged"]) == (HERE, 1)
    assert rows["x.jpg"]["pages"] == [{"page_url": HERE, "source": "wat:CC.warc.wat.gz", "place": "0"}]
    assert Counter(c["origin"] for row in rows.values() for c in row["captions"]) == {"alt": 1}
