"""The readers with which the corpus is cut from its packages, on small packages made here."""

import collections
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from infra.demo import sources

RDF = """<svg><metadata><rdf:RDF><cc:Work><dc:title>{title}</dc:title><dc:description></dc:description>
<dc:subject><rdf:Bag><rdf:li></rdf:li><rdf:li>cat</rdf:li><rdf:li>R&amp;amp;D</rdf:li></rdf:Bag></dc:subject>
<dc:creator><cc:Agent><dc:title>Ann &lt;ann@example.org&gt;</dc:title></cc:Agent></dc:creator>
<cc:license rdf:resource="{licence}"/></cc:Work></rdf:RDF></metadata><path d="</svg>"""
README = """Copyright: Ann, 2019
Source: https://commons.wikimedia.org/wiki/File:A_red%C3%A9_fox_1.jpg
License: Public Domain
Files:
redFox12.webp

Copyright: Bob
License: CC-BY-SA 4.0
Files:
owl.webp

Copyright:
  Copyright 2005 NASA
License: CC0-1.0
Files:
  hen.webp
  hen_2.webp
"""


def archive(files, version=2):
    """A Qt resource archive: one folder with files, written from the format's description."""
    names, data, nodes = b"", b"", b""
    width = 14 if version == 1 else 22

    def name(text):
        nonlocal names
        at = len(names)
        names += struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")
        return at

    nodes += struct.pack(">IHII", name(""), 2, 1, 1).ljust(width, b"\0") + struct.pack(">IHII", name("animals"), 2, len(files), 2).ljust(width, b"\0")
    for number, (text, content) in enumerate(files.items()):
        packed = struct.pack(">I", len(content)) + zlib.compress(content) if number % 2 else content
        nodes += struct.pack(">IHHHI", name(text), number % 2, 0, 0, len(data)).ljust(width, b"\0")
        data += struct.pack(">I", len(packed)) + packed
    head = 20
    return b"qres" + struct.pack(">4I", version, head, head + len(nodes), head + len(nodes) + len(data)) + nodes + data + names


@pytest.mark.parametrize("version", [1, 2, 3])
def test_files_come_out_of_a_qt_archive_packed_or_not(tmp_path, version):
    files = {"README": README.encode(), "redFox12.webp": b"fox" * 99, "owl.webp": b"owl"}
    (tmp_path / "a.rcc").write_bytes(archive(files, version))
    assert dict(sources._qt_archive(tmp_path / "a.rcc")) == {f"/animals/{name}": content for name, content in files.items()}


def test_something_else_than_a_qt_archive_is_refused(tmp_path):
    (tmp_path / "a.rcc").write_bytes(b"PK\3\4 zip")
    with pytest.raises(SystemExit, match="expected a Qt resource archive"):
        sources._qt_archive(tmp_path / "a.rcc")


def test_only_photographs_in_the_public_domain_are_taken_with_name_title_author_and_source(tmp_path):
    empty = archive({})
    for name in sources.PHOTO_ARCHIVES:
        (tmp_path / f"{name}.rcc").write_bytes(empty)
    files = {"README": README.encode(), "redFox12.webp": b"fox", "owl.webp": b"owl", "hen.webp": b"hen", "hen_2.webp": b"part of a hen"}
    (tmp_path / "categorization.rcc").write_bytes(archive(files))
    fox, hen = sources.gcompris(tmp_path)
    assert (fox.name, fox.captions["en"], fox.description, fox.author, fox.licence) == (
        "animals/redFox12",
        "red fox",
        "A redé fox 1",
        "Ann, 2019",
        "Public domain",
    )
    assert (fox.picture, fox.labels) == (b"fox", {"photo_topic": "animals"})
    assert (hen.captions["en"], hen.licence, hen.author) == ("hen", "CC0-1.0", "Copyright 2005 NASA")


def test_clip_art_is_taken_only_when_its_own_record_says_public_domain_and_bad_xml_is_read(tmp_path):
    for name, title, licence in (
        ("animals/cat_01", "Cat &amp;amp; dog", "http://web.resource.org/cc/PublicDomain"),
        ("animals/gpl", "x", "http://creativecommons.org/licenses/GPL/2.0/"),
        ("tools/none", "x", ""),
    ):
        for folder in ("png", "svg"):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "png" / f"{name}.png")
        (tmp_path / "svg" / f"{name}.svg").write_text(RDF.format(title=title, licence=licence))
    (cat,) = sources.open_clip_art(tmp_path, tmp_path)
    assert (cat.name, cat.captions["en"], cat.tags, cat.author) == ("animals/cat_01", "Cat & dog", ("cat", "R&D"), "Ann")
    assert cat.labels == {"clipart_folder": "animals"}


def test_titles_that_say_nothing_are_known_as_such(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(sources.__file__).parent))  # the script imports its neighbour
    from infra.demo.build_corpus import title_dirt

    titles = collections.Counter({"gramastar": 1375, "a fox": 8, "card": 9, "12_3": 1})
    found = {title: title_dirt(sources.Found("x", b"", {"en": title}), titles) for title in ("gramastar", "a fox", "card", "12_3", "fox by ann@example.org")}
    assert found == {
        "gramastar": {"useless_title": ""},
        "a fox": {},
        "card": {"useless_title": ""},
        "12_3": {"useless_title": ""},
        "fox by ann@example.org": {"email": ""},
    }
