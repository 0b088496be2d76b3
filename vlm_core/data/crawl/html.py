"""One HTML page -> its pictures with their texts. Pure.

Read: `<img alt src srcset data-src title>`, `<picture><source srcset>`, `figcaption`, schema.org licence and credit, `lang` of the nearest element,
`<base href>`, `<title>`, `<link rel=canonical>`, og:image, robots metas, links. Source: `methods/data.md` 1.
"""

import html
import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urldefrag, urljoin

from selectolax.lexbor import LexborHTMLParser, LexborNode

LAZY = ("data-src", "data-original", "data-lazy-src")
LAZY_SETS = ("srcset", "data-srcset")
_SPACE = re.compile(r"\s+")
_CANDIDATE = re.compile(r"[^\s,]\S*")  # of a srcset
_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([A-Za-z0-9_.:-]{2,40})""", re.I)


class Picture(NamedTuple):
    """An `<img>` with what the page says about it. `src` is absolute, or as it stands there when it is no valid address."""

    src: str
    alt: str
    figcaption: str
    title: str
    lang: str
    licence: str
    credit: str


class Page(NamedTuple):
    pictures: list[Picture]
    links: list[str]
    metas: list[tuple[str, str]]  # name, content
    lang: str
    title: str
    canonical: str  # the address that the page gives as its own; '' when it gives none
    shared: tuple[str, str]  # og:image and its text: what stands for the page where it is shared


def decode_html(body: bytes, content_type: str) -> str:
    """By byte order mark, then the header's charset, then the page's own, then UTF-8. Wrong bytes become U+FFFD."""
    declared = re.search(r"charset\s*=\s*[\"']?([\w.:-]+)", content_type, re.I)
    inside = _CHARSET.search(body[:4096])
    names = [declared.group(1) if declared else "", inside.group(1).decode("ascii") if inside else "", "utf-8"]
    if body.startswith(b"\xef\xbb\xbf"):
        names.insert(0, "utf-8-sig")
    for name in filter(None, names):
        try:
            return body.decode({"shift_jis": "cp932", "euc-kr": "cp949", "iso-8859-1": "cp1252", "gb2312": "gb18030"}.get(name.lower(), name), "replace")
        except LookupError:
            continue
    return body.decode("utf-8", "replace")


def clean_text(text: str | None) -> str:
    """Entities undone twice (pages escape twice), NFC, white space and control characters to single spaces."""
    plain = html.unescape(html.unescape(text or ""))
    plain = "".join(letter if unicodedata.category(letter)[0] != "C" or letter in "\u200c\u200d" else " " for letter in plain)
    return unicodedata.normalize("NFC", _SPACE.sub(" ", plain)).strip()


def read_page(text: str, url: str) -> Page:
    """Everything that a page says about pictures, in document order."""
    tree = LexborHTMLParser(text)
    base = _absolute(url, _first(tree, "base[href]", "href")) or url
    root = tree.root
    lang = _lang((root.attributes.get("lang") or root.attributes.get("xml:lang")) if root is not None else "")
    licence = _first(tree, "link[rel~=license]", "href") or _first(tree, "a[rel~=license]", "href")
    page_licence = _absolute(base, licence) or licence
    pictures = [found for image in tree.css("img") if (found := _picture(image, base, lang, page_licence)) is not None]
    metas = [((meta.attributes.get("name") or "").strip().lower(), meta.attributes.get("content") or "") for meta in tree.css("meta[name]")]
    title = tree.css_first("title")
    canonical = _absolute(base, _first(tree, "link[rel~=canonical][href]", "href"))
    return Page(pictures, list(_links(tree, base, metas)), metas, lang, clean_text(title.text() if title else ""), canonical, _shared(tree, base))


def _shared(tree: LexborHTMLParser, base: str) -> tuple[str, str]:
    """The first og:image, absolute, and the text nearest to it: its alt text, else the page's description, else its title."""

    def said(name: str) -> str:
        return _first(tree, f'meta[property="{name}"]', "content")

    address = said("og:image") or said("og:image:url") or said("og:image:secure_url")
    text = said("og:image:alt") or said("og:description") or said("og:title")
    return ("", "") if not address or _inline(address) else (_absolute(base, address) or address, clean_text(text))


def _picture(image: LexborNode, base: str, page_lang: str, page_licence: str) -> Picture | None:
    address = _address(image)
    if not address:
        return None
    figure = _ancestor(image, "figure")
    caption = figure.css_first("figcaption") if figure is not None else None
    alone = figure is not None and len(figure.css("img")) == 1
    return Picture(
        _absolute(base, address) or address,
        clean_text(image.attributes.get("alt")),
        clean_text(caption.text(separator=" ")) if caption is not None and alone else "",
        clean_text(image.attributes.get("title")),
        _nearest_lang(image) or page_lang,
        _property(figure, "license", base) or page_licence,
        clean_text(_property(figure, "creditText", "") or _property(figure, "creator", "")),
    )


def _address(image: LexborNode) -> str:
    """The widest of srcset, else what lazy loading will show, else src. '' for inline data and for nothing."""
    attributes, sets = image.attributes, [image.attributes.get(name) or "" for name in LAZY_SETS]
    around = image.parent
    if around is not None and around.tag == "picture":
        sets += [source.attributes.get(name) or "" for source in around.css("source") for name in LAZY_SETS]
    offered = [candidate for text in sets for candidate in parse_srcset(text)]
    plain = [(attributes.get(name) or "").strip() for name in (*LAZY, "src")]
    first = next((address for address in plain if address and not _inline(address)), "")
    widest = max((width for width, _ in offered), default=0.0)
    if widest > 1 or (offered and not first):
        return next(address for width, address in offered if width == widest)
    return first


def parse_srcset(text: str) -> list[tuple[float, str]]:
    """(width or density, address) of every candidate; a comma inside an address is part of it, as in the HTML standard."""
    found, at = [], 0
    while start := _CANDIDATE.search(text, at):
        address, at, size = start.group(), start.end(), 1.0
        if address.endswith(","):
            address = address.rstrip(",")
        else:
            end = text.find(",", at)
            words = text[at : end if end >= 0 else len(text)].split(None, 1)
            at = end + 1 if end >= 0 else len(text)
            size = _number(words[0][:-1]) if words and words[0][-1] in "wx" else 1.0
        if not _inline(address):
            found.append((size, address))
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 1.0


def _inline(address: str) -> bool:
    return address.partition(":")[0].strip().lower() in {"data", "blob", "javascript", "about"}


def _absolute(base: str, address: str) -> str:
    """'' when it cannot be joined."""
    try:
        return urldefrag(urljoin(base, address.strip())).url if address.strip() else ""
    except ValueError:
        return ""


def _ancestor(node: LexborNode, tag: str) -> LexborNode | None:
    here = node.parent
    while here is not None and here.tag != tag:
        here = here.parent
    return here


def _nearest_lang(node: LexborNode) -> str:
    here: LexborNode | None = node
    while here is not None and here.tag != "html":
        if found := _lang(here.attributes.get("lang")):
            return found
        here = here.parent
    return ""


def _lang(tag: str | None) -> str:
    """The primary subtag: 'pt-BR' -> 'pt'."""
    code = (tag or "").strip().lower().replace("_", "-").partition("-")[0]
    return code if re.fullmatch(r"[a-z]{2,3}", code) else ""


def _property(figure: LexborNode | None, name: str, base: str) -> str:
    found = figure.css_first(f'[itemprop~="{name}"]') if figure is not None else None
    if found is None:
        return ""
    value = found.attributes.get("content") or found.attributes.get("href") or found.text()
    return (_absolute(base, value) or value) if base else (value or "")


def _first(tree: LexborHTMLParser, selector: str, attribute: str) -> str:
    node = tree.css_first(selector)
    return (node.attributes.get(attribute) or "").strip() if node is not None else ""


def _links(tree: LexborHTMLParser, base: str, metas: list[tuple[str, str]]) -> Iterator[str]:
    """Addresses of other pages, in document order; none that the page asks not to follow."""
    if any(name == "robots" and re.search(r"\b(nofollow|none)\b", content.lower()) for name, content in metas):
        return
    seen = set()
    for link in tree.css("a[href], area[href], link[rel=next][href]"):
        if "nofollow" in (link.attributes.get("rel") or "").lower().split():
            continue
        address = _absolute(base, link.attributes.get("href") or "")
        if address.partition(":")[0].lower() in {"http", "https"} and address not in seen:
            seen.add(address)
            yield address
