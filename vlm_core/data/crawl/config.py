"""Settings of crawl, extract and download. Torch-free."""

import os
from typing import Annotated, Literal

from pydantic import Field, field_validator

from vlm_core.config import Config
from vlm_core.errors import did_you_mean


class OptOuts(Config):
    """Which opt-outs bind. What a channel said is recorded with the picture also where it does not bind."""

    robots_txt: bool = Field(True, description="robots.txt of the picture's origin (RFC 9309)")
    ai_txt: bool = Field(True, description="/ai.txt of the origin (Spawning): rules by file type")
    tdmrep: bool = Field(True, description="/.well-known/tdmrep.json of the origin (TDM Reservation Protocol)")
    x_robots_tag: bool = Field(True, description="X-Robots-Tag headers")
    tdm_header: bool = Field(True, description="TDM-Reservation header")
    page_robots: bool = Field(True, description="the same three files of the origin of the page that shows it, where we did not crawl that page ourselves")
    page_tags: bool = Field(True, description="robots and tdm-reservation meta tags and headers of the page that shows the picture")
    c2pa: bool = Field(True, description="training and data mining assertion inside the picture (C2PA, CAWG)")
    directives: list[str] = Field(default=["noai", "noimageai", "noindex", "noimageindex", "none", "noml"], description="words of X-Robots-Tag that deny")


class Network(Config):
    """How the platform behaves on other people's servers."""

    agent: str = Field("VLMPlatformBot", pattern=r"^[A-Za-z_-]+$", description="product token: what robots.txt and X-Robots-Tag call us")
    contact: str = Field("", description="address at which site owners reach you, part of the User-Agent; required outside the demo")
    hosts: dict[str, str] = Field(default={}, description="explicit allow-list of private hosts, name: ADDRESS:PORT; all other private addresses are refused")
    ports: list[int] = Field(default=[80, 443, 8080, 8443], description="ports that an address may name")
    https_to_http: Literal["follow", "refuse"] = Field("follow", description="redirects from https to http: follow and count them, or end as scheme_blocked")
    rate_per_s: float = Field(1.0, gt=0, description="requests per second to one registrable domain")
    burst: int = Field(5, ge=1, description="requests that may come at once after a pause")
    connections_per_host: int = Field(2, ge=1, le=64, description="connections to one registrable domain at once, all processes together")
    patience_s: float = Field(10.0, ge=0, description="an address whose site has no turn within this time comes later in the run, in seconds")
    max_quiet_s: float = Field(60.0, gt=0, description="a host that asks for a longer pause (Retry-After) is left alone, in seconds")
    dns_timeout_s: float = Field(5.0, gt=0, description="for a name, in seconds")
    connect_timeout_s: float = Field(5.0, gt=0, description="for a connection, in seconds")
    read_timeout_s: float = Field(10.0, gt=0, description="for the next bytes, in seconds")
    optouts: OptOuts = Field(default=OptOuts(), description="which opt-outs bind")


class DemoWeb(Config):
    """The embedded corpus, served as a small web on loopback while the verb runs."""

    kind: Literal["demo"] = "demo"
    corpus: str = Field("infra/demo/corpus.tar", description="tar of the embedded corpus")


class Budget(Config):
    """How much of one host is read."""

    max_pages: int = Field(10_000, ge=1, description="pages of this host read at most")
    max_depth: int = Field(20, ge=0, description="links followed at most to reach a page of this host")


class Site(Config):
    """Sites on the web, breadth first from their start pages."""

    kind: Literal["site"] = "site"
    start_urls: list[str] = Field(default=[], description="pages to begin with")
    stay_on: list[str] = Field(default=[], description="hosts that links may lead to; empty: the hosts of the start pages")
    budgets: dict[str, Budget] = Field(default={}, description="limits of single hosts, by name; '*' stands for every host that is not named")


class Warc(Config):
    """Pages from a web archive."""

    kind: Literal["warc"] = "warc"
    path: str = Field("", description="WARC or WARC.gz file, a folder of them, or an fsspec URL of either (s3://bucket/folder)")


class CommonCrawl(Config):
    """Archives of Common Crawl, as many as the budget takes from one of its lists of paths: WAT files (picture links, passed on to extract) or WARC files (pages)."""

    kind: Literal["common_crawl"] = "common_crawl"
    paths: str = Field("", description="the list: wat.paths.gz or warc.paths.gz of one crawl, as a file or an fsspec URL")
    base: str = Field("https://data.commoncrawl.org/", description="what its paths are below: an fsspec URL (s3://commoncrawl/), or a folder")
    max_files: int = Field(1, ge=1, description="archives read at most")
    seed: int = Field(0, description="which ones: an order by chance without repetition; a larger budget takes the same and more")


class Table(Config):
    """No pages: lists of picture addresses and captions, passed on to extract."""

    kind: Literal["table"] = "table"
    path: str = Field(
        "", description="csv, tsv, json, jsonl, parquet or WAT file, as it is or as .gz, .bz2, .zst; a folder of them; or an fsspec URL (s3://bucket/folder)"
    )


class Folder(Config):
    """Pictures on this machine, each with its text beside it: fox.jpg with fox.txt or fox.json, or a table of captions."""

    kind: Literal["folder"] = "folder"
    path: str = Field("", description="the folder; its sub-folders are read too")
    name: str = Field("", pattern=r"^[a-z0-9.-]*$", description="what its addresses begin with (local://NAME/...), part of every uid; empty: the folder's name")
    captions: str = Field(
        "", description="table inside the folder (csv, tsv, json, jsonl, parquet) with a row per picture; empty: texts lie beside the pictures"
    )
    file_column: str = Field("file_name", description="column of that table: picture, relative to the folder")
    caption_column: str = Field("text", description="column of that table: caption")


class WebDataset(Config):
    """Tars of pictures with .txt or .json of the same name, as img2dataset and DataComp write them."""

    kind: Literal["webdataset"] = "webdataset"
    path: str = Field("", description="tar, tar.gz or tgz, a folder of them, or an fsspec URL of either (s3://bucket/folder)")
    name: str = Field(
        "", pattern=r"^[a-z0-9.-]*$", description="what addresses begin with (local://NAME/...) where the tar tells none; empty: the folder's name"
    )


PageSource = Annotated[DemoWeb | Site | Warc | CommonCrawl | Table | Folder | WebDataset, Field(discriminator="kind")]


class Crawl(Config):
    """Pages of a site or an archive; or what needs no pages: tables of addresses, pictures on this machine."""

    source: PageSource = Field(default=DemoWeb(), description="where pages, addresses or pictures come from")
    network: Network = Field(default=Network(), description="how we behave on other people's servers")
    max_pages: int = Field(10_000, ge=1, description="pages read at most")
    max_depth: int = Field(20, ge=0, description="links followed from a start page at most")
    max_page_kb: int = Field(5_000, ge=1, description="size of one page, in KB")
    max_minutes: float = Field(600.0, gt=0, description="time budget; what was read until then is published, in minutes")
    delay_s: float = Field(1.0, ge=0, description="pause between two requests to a host, in seconds; AutoThrottle lengthens it for slow hosts")
    sitemaps: bool = Field(True, description="also read the sitemaps that robots.txt names")
    python: str = Field("", description="interpreter that runs Scrapy; empty: this one")

    @property
    def reads_the_world(self) -> bool:
        path = getattr(self.source, "path", "")  # of a folder or a URL nobody has a hash before it is read
        return isinstance(self.source, Site | CommonCrawl | Folder | WebDataset) or bool(path and not os.path.isfile(path))


class Columns(Config):
    """Which columns of a table mean what. Empty names are looked up in the preset."""

    preset: Literal["auto", "plain", "laion", "datacomp", "cc3m", "cc12m", "redcaps"] = Field(
        "auto", description="column names of a known collection; auto: by the names found"
    )
    header: bool = Field(True, description="the first line of csv and tsv names the columns; off: they are called 0, 1, ...; cc3m and cc12m have none")
    url: str = Field("", description="address of the picture")
    caption: str = Field("", description="raw caption")
    lang: str = Field("", description="language of the caption")
    page_url: str = Field("", description="page on which it was found")
    licence: str = Field("", description="licence")
    credit: str = Field("", description="whom to credit")
    sha256: str = Field("", description="SHA-256 of the picture that the author of the table saw")
    pdq: str = Field("", description="its PDQ hash, 64 hex digits")


class Extract(Config):
    """Pages, tables and pictures on this machine to candidate pairs, each once."""

    network_agent: str = Field("VLMPlatformBot", description="product token that opt-outs in pages may name")
    directives: list[str] = Field(default=OptOuts().directives, description="words of robots metas and X-Robots-Tag headers of pages that deny")
    columns: Columns = Field(default=Columns(), description="how to read tables; pages need none")
    columns_of: dict[str, Columns] = Field(default={}, description="how to read the tables of a further batch, by the batch's name")
    figcaptions: bool = Field(True, description="figcaption is a further caption, or the raw one where alt is empty")
    titles: bool = Field(True, description="the title attribute is a further caption")
    open_graph: bool = Field(True, description="og:image with og:image:alt, og:description or og:title is a pair too")
    max_caption_chars: int = Field(2_000, ge=1, description="longer captions are cut, in characters")
    max_pages_per_pair: int = Field(1_000, ge=1, description="places that are remembered for one pair; further ones are only counted")


class Fetch(Config):
    """Budgets of one picture."""

    max_bytes: int = Field(32 * 2**20, ge=1, description="size as fetched, in bytes")
    deadline_s: float = Field(60.0, gt=0, description="for the whole exchange, redirects included, in seconds")
    retries: int = Field(2, ge=0, le=10, description="further passes of one run over what failed in a way that may pass")
    retry_wait_s: float = Field(1.0, ge=0, description="pause before the first further pass, doubled each time, in seconds")
    max_pixels: int = Field(64_000_000, ge=1, le=89_000_000, description="pixels of the whole picture, from its header")
    max_decoded_mb: int = Field(96, ge=1, description="memory that decoding one picture may take, in MB")
    decode_s: float = Field(60.0, gt=0, description="for decoding, resizing and hashing it; then its process is ended, as if the decoder had crashed, in seconds")
    min_side: int = Field(16, ge=1, description="shortest side, in pixels")
    max_aspect: float = Field(12.0, ge=0, description="longer side / shorter side; 0: any")


class HashList(Config):
    """A list of pictures that must not be kept."""

    kind: Literal["sha256", "md5", "pdq"] = Field("sha256", description="what its lines are, in hex; pdq also finds near copies")
    path: str = Field(description="text file, one hash a line")


RETRY_HOURS = {"dns_timeout": 1.0, "connect_timeout": 1.0, "connect_refused": 6.0, "http_429": 1.0, "http_5xx": 1.0, "deadline": 6.0, "tls_error": 24.0}


class Download(Config):
    """Candidate pairs to pictures: img2dataset with a hardened client of our own under it."""

    demo: str = Field("", description="tar of the embedded corpus: serve it on loopback meanwhile; empty: the web itself")
    network: Network = Field(default=Network(), description="how we behave on other people's servers")
    fetch: Fetch = Field(default=Fetch(), description="budgets of one picture")
    retry: dict[str, float] = Field(
        default=RETRY_HOURS,
        description="status: hours. The next run asks again at once, later ones after these hours, doubled each time; a status that is not named is final",
    )
    give_up_after: int = Field(5, ge=1, description="runs in which an address may fail before its failure is final")
    recheck_after_days: float = Field(
        30.0, ge=0, description="an address that gave a picture is looked at again after this time (HEAD, rules of its origins), in days; 0: never"
    )
    verify_hash: Literal["drop", "flag", "accept_if_pdq_near"] = Field(
        "drop", description="bytes that differ from the SHA-256 in the table: drop; keep and say so; keep if they look as its PDQ says"
    )
    hash_lists: dict[str, HashList] = Field(default={}, description="lists of pictures that must not be kept, by name; matches are never written to disk")
    placeholder_captions: int = Field(20, ge=2, description="one picture, or near copies of it, under this many different captions is a placeholder")
    image_size: int = Field(256, ge=16, le=4096, description="side that the resize mode is about, in pixels")
    resize_mode: Literal["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"] = Field("keep_ratio", description="img2dataset's resize mode")
    only_if_bigger: bool = Field(True, description="never enlarge")
    jpeg_quality: int = Field(95, ge=1, le=100, description="of the stored pictures")
    full_decode: bool = Field(False, description="decode every pixel before making pictures smaller, as img2dataset does, instead of what is needed: its pixels for more CPU")
    processes: int = Field(2, ge=1, le=256, description="downloading processes")
    threads: int = Field(16, ge=1, le=1024, description="connections of one process at once")
    shard_size: int = Field(1_000, ge=1, description="pictures in one tar, and in one unit of work of img2dataset")
    python: str = Field("", description="interpreter that runs img2dataset; empty: this one")

    @field_validator("retry")
    @classmethod
    def _known_statuses(cls, value: dict[str, float]) -> dict[str, float]:
        from vlm_core.data.sample import STATUSES  # brings pyarrow

        for name, hours in value.items():
            if name not in STATUSES or name == "ok":
                raise ValueError(f"Found the status {name!r} in retry, expected a known failure; {did_you_mean(name, STATUSES)}")
            if hours < 0:
                raise ValueError(f"Found {hours} hours for {name!r} in retry, expected 0 or more; change that number.")
        return value

    @property
    def reads_the_world(self) -> bool:
        return not self.demo
