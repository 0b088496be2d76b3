"""The samples of an address or a site: of pictures, of where they led, and of every page that shows them. A takedown and a question about models ask the same."""

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from vlm_core.data.lineage.catalog import ask
from vlm_core.data.lineage.tombstones import Tombstones, standard

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# Every address at which a sample or one of its pages was seen, of hosts whose name holds the one that is asked for. Addresses of pictures are canonical, their
# hosts in lower case; those of pages need not be (a table may bring them). Each table is read once: this is what a takedown of a site costs.
PAGES = "lower(array_to_string(list_transform(pages, lambda page: page.page_url), ' '))"
SEEN_AT = f"""SELECT DISTINCT uid, url, page_url, pages, final_url FROM (
    SELECT uid, url, page_url, pages, NULL AS final_url FROM pairs
        WHERE contains(url, $1) OR contains(lower(page_url), $1) OR (len(pages) > 1 AND contains({PAGES}, $1))
    UNION ALL SELECT uid, url, page_url, NULL, NULL FROM samples WHERE contains(url, $1) OR contains(lower(page_url), $1)
    UNION ALL SELECT uid, url, NULL, NULL, final_url FROM downloads WHERE contains(url, $1) OR contains(final_url, $1))"""


def seen_at(con: "DuckDBPyConnection", kind: str, value: str) -> set[str]:
    """uids that the catalog knows for a `url` or a `domain` and everything below it."""
    value = standard(kind, value)
    stone = Tombstones(urls={value: "x"} if kind == "url" else {}, domains={value: "x"} if kind == "domain" else {}, digest="x")
    host = value if kind == "domain" else urlsplit(value).hostname
    return {row["uid"] for row in ask(con, SEEN_AT, host) if stone.hit(row)}
