"""What the demo web shows: four sites made of the embedded corpus, with the kindness and the malice of the real web.

    emoji.demo.test     Noto emoji; pages in English, Korean, Japanese (one in Shift_JIS) and French; a folder that robots.txt forbids
    clipart.demo.test   Open Clip Art as it was titled; relative addresses
    photos.demo.test    photographs; opt-out headers, srcset, odd and hostile pictures under /en/odd/ and /en/hostile/, one picture for 24 captions
    mirror.demo.test    copies of the others' pictures, to the byte or re-encoded

Everything is a function of the corpus. `demo_truth` says, address by address, what a crawl must find out.
"""

import html
import re
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote

from vlm_core.data.crawl.corpus import Corpus, Picture
from vlm_core.data.sample import Status

EMOJI, CLIPART, PHOTOS, MIRROR = "emoji.demo.test", "clipart.demo.test", "photos.demo.test", "mirror.demo.test"
HOSTS = (EMOJI, CLIPART, PHOTOS, MIRROR)
START_URLS = tuple(f"http://{host}/" for host in HOSTS)
FIGURES = 24  # on a page

# How a real picture is served, in the order in which the corpus hands these roles to photographs.
SERVED = ("slow", "wrong_type", "exif_rotated", "noarchive", *["noai"] * 8, *["noarchive_noai"] * 4)
HEADERS = {
    "noai": {"X-Robots-Tag": "noai"},
    "noarchive_noai": {"X-Robots-Tag": "noarchive, noai, max-snippet:-1"},
    "noarchive": {"X-Robots-Tag": "noarchive"},  # no opt-out from training: must be kept
    "wrong_type": {"Content-Type": "text/plain"},
}
OPTOUT_SECTION = "music"  # its pages carry <meta name="robots" content="noai">
SHIFT_JIS_SECTION = "ja/activities"
COMING_SOON = tuple(
    f"{what} in {when}" for what in ("castle", "bridge", "market", "church", "harbour", "garden") for when in ("spring", "summer", "autumn", "winter")
)
FORBIDDEN = {EMOJI: "/private/", CLIPART: "/members/"}
TYPES = {"png": "image/png", "jpg": "image/jpeg", "gif": "image/gif"}
LICENCES = {"Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0", "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/"}


class Reply(NamedTuple):
    """What the server says to one address. The body is bytes, or a member of the corpus, or endless."""

    status: int = 200
    headers: dict[str, str] = {}
    body: bytes = b""
    member: str = ""
    delay_s: float = 0.0
    endless: bool = False


class Odd(NamedTuple):
    """A picture that is not what it seems, and the status that a careful downloader ends with. Those without a reply are refused unasked."""

    kind: str
    address: str
    alt: str
    status: Status | None
    reply: Reply | None = None


Site = dict[str, dict[str, Reply]]  # host -> path -> reply


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# ---------------------------------------------------------------- odd pictures


def _png(width: int, height: int, grey: int, bits: int = 8) -> bytes:
    """A picture of one grey, written by hand: a few bytes for any number of pixels."""
    packer, row = zlib.compressobj(9), b"\0" + bytes([grey]) * ((width * bits + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    parts = [(b"IHDR", struct.pack(">2I5B", width, height, bits, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts)


def _gone(status: int) -> Reply:
    return Reply(status, {"Content-Type": "text/html"}, b"<title>error</title>")


def _moved(where: str) -> Reply:
    return Reply(302, {"Location": where})


def _picture(body: bytes, kind: str = "jpeg") -> Reply:
    return Reply(200, {"Content-Type": f"image/{kind}"}, body)


def odd_pictures(corpus: Corpus) -> list[Odd]:
    """The figures of /en/odd/ and /en/hostile/ on the site of photographs."""
    photo = next(picture for picture in corpus.pictures if picture.style == "photo" and picture.url and not picture.serve)
    whole, page = corpus.read(photo.file), b"<!doctype html><title>Sign in</title><p>Please sign in to see this picture."
    spacer = b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff!\xf9\4\1\0\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
    here = f"http://{PHOTOS}/odd/"
    return [
        Odd("redirect", here + "moved.jpg", "a picture that has moved to another address", "ok", _moved(photo.url)),
        Odd("missing", here + "missing.jpg", "a lighthouse on a cliff", "http_4xx", _gone(404)),
        Odd("missing", here + "forbidden.jpg", "a harbour with fishing boats", "http_4xx", _gone(403)),
        Odd("missing", here + "gone.jpg", "a wooden bridge over a river", "http_4xx", _gone(410)),
        Odd("server_error", here + "error.jpg", "a field of sunflowers in summer", "http_5xx", _gone(500)),
        Odd("html_as_picture", here + "sign-in.jpg", "a market square in the morning", "not_image", _picture(page)),
        Odd("html_as_picture", here + "page.jpg", "an old steam locomotive", "not_image", Reply(200, {"Content-Type": "text/html"}, page)),
        Odd("empty_body", here + "empty.jpg", "two children flying a kite", "not_image", _picture(b"")),
        Odd("truncated", here + "truncated.jpg", "a glass of water on a table", "decode_error", _picture(whole[: whole.index(b"\xff\xda") - 20])),
        Odd("oversized", here + "huge.png", "a very large map of the city", "too_many_pixels", _picture(_png(12_000, 12_000, 0, bits=1), "png")),
        Odd("too_small", here + "spacer.gif", "spacer", "too_small", _picture(spacer, "gif")),
        Odd("aspect_ratio", here + "banner.png", "advertisement for a department store", "aspect_ratio", _picture(_png(640, 40, 90), "png")),
        Odd("placeholder", here + "placeholder.png", "", "placeholder", _picture(_png(128, 128, 200), "png")),
        Odd("endless", here + "endless.jpg", "a panorama of the mountains", "too_large", Reply(200, {"Content-Type": "image/jpeg"}, endless=True)),
        Odd("redirect_loop", here + "loop-a.jpg", "a spiral staircase from above", "redirect_loop", _moved(here + "loop-b.jpg")),
        Odd("redirect_private", here + "metadata.jpg", "a castle by the lake", "ssrf_blocked", _moved("http://169.254.169.254/latest/meta-data/")),
        Odd("redirect_file", here + "file.jpg", "a garden with roses", "scheme_blocked", _moved("file:///etc/hostname")),
        Odd("private_address", "http://10.0.0.1/camera.jpg", "a camera in somebody's house", "ssrf_blocked"),
        Odd("private_address", "http://127.0.0.1:22/door.jpg", "a green door", "ssrf_blocked"),
        Odd("private_address", "http://0x7f000001/window.jpg", "a window with flowers", "ssrf_blocked"),
        Odd("private_address", "http://[::ffff:127.0.0.1]/roof.jpg", "a roof with red tiles", "ssrf_blocked"),
        Odd("scheme", "file:///etc/passwd", "a list of names", "scheme_blocked"),
        Odd("scheme", f"ftp://{PHOTOS}/p/boat.jpg", "a sailing boat", "scheme_blocked"),
    ]


# ---------------------------------------------------------------- pages


class Figure(NamedTuple):
    src: str
    alt: str
    caption: str = ""
    srcset: str = ""
    credit: str = ""
    licence: str = ""

    def html(self) -> str:
        text = {name: html.escape(value) for name, value in self._asdict().items()}
        wide = f' srcset="{text["srcset"]}"' if self.srcset else ""
        below = f'<figcaption itemprop="caption">{text["caption"]}</figcaption>' if self.caption else ""
        credit = f'<meta itemprop="creditText" content="{text["credit"]}">' if self.credit else ""
        licence = f'<link itemprop="license" href="{text["licence"]}">' if self.licence else ""
        return (
            f'<figure itemscope itemtype="https://schema.org/ImageObject"><img src="{text["src"]}"{wide} alt="{text["alt"]}">{below}{credit}{licence}</figure>'
        )


def section_path(page: str) -> tuple[str, str]:
    """(host, path) of a section named host/language/section; a forbidden section lies at the root of its site."""
    host, _, rest = page.partition("/")
    section = rest.partition("/")[2]
    return host, f"/{section}/" if f"/{section}/" == FORBIDDEN.get(host) else f"/{rest}/"


def page_urls(page: str, shown: int) -> list[str]:
    """Addresses of the pages of a section with that many figures."""
    host, path = section_path(page)
    return [f"http://{host}{path}" + (str(number + 1) if number else "") for number in range(max(1, -(-shown // FIGURES)))]


def sections(corpus: Corpus) -> dict[str, list[Picture]]:
    shown: dict[str, list[Picture]] = defaultdict(list)
    for picture in corpus.pictures:
        for page in picture.pages:
            shown[page].append(picture)
    return dict(sorted(shown.items()))


def _figure(picture: Picture, page: str) -> Figure:
    host, lang = page.split("/")[:2]
    alt, src, srcset = picture.captions.get(lang, ""), picture.url, ""
    tags = ", ".join(picture.tags[:6])
    caption = {"noto": f"{alt}: {tags}" if lang == "en" and tags else "", "clipart": picture.description or tags}.get(picture.style, picture.description)
    if host == CLIPART:
        src = "../../" + src.removeprefix(f"http://{CLIPART}/")
    elif page == f"{PHOTOS}/en/animals":
        src, srcset = _thumbnail(picture), f"{_thumbnail(picture)} 112w, {picture.url.removeprefix(f'http://{PHOTOS}')} 224w"
    elif host == EMOJI:
        src = src.removeprefix(f"http://{EMOJI}")
    licence = LICENCES.get(picture.licence, "https://creativecommons.org/publicdomain/mark/1.0/")
    return Figure(src, alt, caption, srcset, picture.credit, licence)


def _thumbnail(picture: Picture) -> str:
    return "/t/" + picture.url.rsplit("/p/", 1)[-1]


def _document(title: str, body: str, lang: str, head: str = "", charset: str = "utf-8") -> Reply:
    attribute = f' lang="{lang}"' if lang else ""
    start = f'<!doctype html>\n<html{attribute}><head><meta charset="{charset}"><title>{html.escape(title)}</title>{head}</head>\n<body>\n'
    text = f"{start}<h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    return Reply(200, {"Content-Type": f"text/html; charset={charset}"}, text.encode(charset, "xmlcharrefreplace"))


def _gallery(page: str, figures: list[Figure]) -> Iterator[tuple[str, str, Reply]]:
    """(host, path, reply) of every page of a section."""
    host, _ = section_path(page)
    lang, section = page.split("/")[1:]
    urls = page_urls(page, len(figures))
    charset = "shift_jis" if f"{lang}/{section}" == SHIFT_JIS_SECTION else "utf-8"
    head = '<meta name="robots" content="noai">' if section == OPTOUT_SECTION else ""
    for number, url in enumerate(urls):
        body = "\n".join(figure.html() for figure in figures[number * FIGURES :][:FIGURES])
        after = f'<a rel="next" href="{urls[number + 1]}">{number + 2}</a>' if number + 1 < len(urls) else ""
        links = f'<nav><a href="/">{host}</a> <a href="mailto:post@{host}">post</a> <a href="#top">^</a> {after}</nav>'
        title = section.replace("-", " ") + (f" {number + 1}" if number else "")
        yield host, url.removeprefix(f"http://{host}"), _document(title, f"{body}\n{links}", "" if host == MIRROR else lang, head, charset)


def _front(host: str, pages: list[str]) -> Reply:
    links = [f'<li><a href="{section_path(page)[1]}">{page.partition("/")[2]}</a></li>' for page in pages]
    more = [f'<li><a href="http://{other}/">{other}</a></li>' for other in HOSTS if other != host]
    dead = '<li><a href="/en/closed/">closed</a></li><li><a href="/en/moved/">moved</a></li><li><a href="/about.txt">about</a></li>'
    return _document(host, "<ul>\n" + "\n".join([*links, *more, dead]) + "\n</ul>", "en")


def _robots(host: str) -> Reply:
    rule = f"Disallow: {FORBIDDEN[host]}\n" if host in FORBIDDEN else "Disallow:\n"
    return Reply(200, {"Content-Type": "text/plain"}, f"User-agent: *\n{rule}Sitemap: http://{host}/sitemap.xml\n".encode())


def _sitemap(host: str, paths: list[str]) -> Reply:
    rows = "".join(f"<url><loc>http://{host}{path}</loc></url>\n" for path in paths if not path.startswith(FORBIDDEN.get(host, "\n")))
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{rows}</urlset>\n'
    return Reply(200, {"Content-Type": "application/xml"}, text.encode())


# ---------------------------------------------------------------- the whole


def pages(corpus: Corpus) -> dict[str, list[Figure]]:
    """Section -> its figures, the odd ones included."""
    shown = {page: [_figure(picture, page) for picture in pictures] for page, pictures in sections(corpus).items()}
    for odd in odd_pictures(corpus):
        alts = COMING_SOON if odd.kind == "placeholder" else (odd.alt,)
        shown.setdefault(section_of(odd), []).extend(Figure(odd.address, alt) for alt in alts)
    return shown


def section_of(odd: Odd) -> str:
    return f"{PHOTOS}/en/" + ("coming-soon" if odd.kind == "placeholder" else "odd" if odd.reply else "hostile")


def build_site(corpus: Corpus) -> Site:
    """Every address that the demo web answers, with its answer. Any other one is a 404."""
    site: Site = {host: {} for host in HOSTS}
    galleries = pages(corpus)
    for page, figures in galleries.items():
        for host, path, reply in _gallery(page, figures):
            site[host][path] = reply
    for host, paths in site.items():
        own = sorted(page for page in galleries if page.startswith(host))
        paths["/sitemap.xml"] = _sitemap(host, ["/", *paths])
        paths["/"], paths["/robots.txt"] = _front(host, own), _robots(host)
        paths["/about.txt"] = Reply(200, {"Content-Type": "text/plain"}, b"Pictures for a demonstration.\n")
        paths["/en/moved/"] = Reply(301, {"Location": section_path(own[0])[1]})
    for picture in corpus.pictures:
        if picture.url:
            _place(site, picture)
    for odd in odd_pictures(corpus):
        if odd.reply:
            site[PHOTOS][odd.address.removeprefix(f"http://{PHOTOS}")] = odd.reply
    site[PHOTOS]["/odd/loop-b.jpg"] = _moved(f"http://{PHOTOS}/odd/loop-a.jpg")
    return site


def _place(site: Site, picture: Picture) -> None:
    host, _, path = picture.url.removeprefix("http://").partition("/")
    headers = {"Content-Type": TYPES[picture.file.rsplit(".", 1)[1]], **HEADERS.get(picture.serve, {})}
    site[host]["/" + path] = Reply(200, headers, member=picture.file, delay_s=2.0 if picture.serve == "slow" else 0.0)
    if f"{PHOTOS}/en/animals" in picture.pages:
        site[PHOTOS][_thumbnail(picture)] = Reply(200, headers, member=picture.file)


def quoted(path: str) -> str:
    """A path as it stands in an address."""
    return quote(path, safe="/-_.~")
