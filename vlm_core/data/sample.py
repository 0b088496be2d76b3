"""The words in which the data half speaks: uid, statuses, reasons, and the columns of its tables.

A sample is one image with its captions, decisions and `uid`. The uid depends on the address and the raw caption only,
so it survives a re-download, another shard size and another machine (`docs/flow.md`).
"""

import hashlib
from typing import Literal, get_args
from urllib.parse import quote, urlsplit, urlunsplit

import pyarrow as pa

# How the fetching of one URL ended: exactly one of these for every candidate pair.
Status = Literal[
    "ok",
    "dns_nxdomain", "dns_timeout", "connect_refused", "connect_timeout", "tls_error",
    "http_4xx", "http_429", "http_5xx", "redirect_loop",
    "ssrf_blocked", "scheme_blocked", "robots_denied", "optout_header",
    "too_large", "deadline", "hash_mismatch", "not_image", "decode_error", "too_many_pixels",
    "too_small", "aspect_ratio", "placeholder", "blocked_hash", "taken_down",
]  # fmt: skip
STATUSES: tuple[str, ...] = get_args(Status)
RETRYABLE: frozenset[str] = frozenset({"dns_timeout", "connect_timeout", "http_429", "http_5xx", "deadline"})

# Where a caption comes from.
Origin = Literal["alt", "figcaption", "title", "og", "table", "rewritten", "translated", "synthetic", "fused"]
ORIGINS: tuple[str, ...] = get_args(Origin)

CAPTION = pa.struct([("text", pa.string()), ("origin", pa.string()), ("lang", pa.string())])

# Where a pair was seen: its page, and the file, site or batch with the row, record or member in it.
SEEN = pa.struct([("page_url", pa.string()), ("source", pa.string()), ("place", pa.string())])

# candidate_pairs/pairs.parquet, sorted by uid; captions[0] is the raw one that the uid is made of; page_url and source are those of pages[0].
# sha256 and pdq: of the picture that the author of a table saw, where the table tells.
PAIRS = pa.schema([
    ("uid", pa.string()), ("url", pa.string()), ("page_url", pa.string()), ("source", pa.string()),
    ("caption", pa.string()), ("lang", pa.string()), ("captions", pa.list_(CAPTION)),
    ("licence", pa.string()), ("credit", pa.string()), ("page_optout", pa.string()), ("pages", pa.list_(SEEN)), ("sha256", pa.string()), ("pdq", pa.string()),
])  # fmt: skip

# images/status.parquet, sorted by uid, one row per candidate pair. Pictures lie in images/NNNNN.tar as <uid>.jpg + <uid>.json.
DOWNLOADS = pa.schema([
    ("uid", pa.string()), ("url", pa.string()), ("final_url", pa.string()), ("status", pa.string()), ("http_status", pa.int32()),
    ("detail", pa.string()), ("bytes", pa.int64()), ("sha256", pa.string()), ("mime", pa.string()),
    ("width", pa.int32()), ("height", pa.int32()), ("original_width", pa.int32()), ("original_height", pa.int32()),
    ("phash", pa.string()), ("pdq", pa.string()), ("pdq_quality", pa.int32()),
    ("rights_rule", pa.string()), ("rights_evidence", pa.string()), ("shard", pa.string()),
])  # fmt: skip

# filtered/decisions.parquet: one row per sample and rule, in the order in which the rules ran.
DECISIONS = pa.schema([
    ("seq", pa.uint64()), ("uid", pa.string()), ("rule", pa.string()), ("version", pa.string()),
    ("score", pa.float64()), ("threshold", pa.float64()), ("keep", pa.bool_()), ("reason", pa.string()), ("detail", pa.string()),
])  # fmt: skip

# captions/captions.parquet: every caption that exists for a kept sample, accepted or not.
CAPTIONS = pa.schema([
    ("uid", pa.string()), ("caption_id", pa.string()), ("origin", pa.string()), ("text", pa.string()), ("lang", pa.string()),
    ("generator", pa.string()), ("prompt_sha256", pa.string()), ("params", pa.string()), ("seed", pa.int64()),
    ("text_score", pa.float64()), ("image_score", pa.float64()), ("added", pa.float64()), ("tokens_in", pa.int64()), ("tokens_out", pa.int64()),
    ("accepted", pa.bool_()), ("reason", pa.string()),
])  # fmt: skip


def canonical_url(url: str) -> str:
    """Lower-case scheme and host, default port and fragment dropped, path and query percent-encoded once."""
    parts = urlsplit(url.strip())
    host = (parts.hostname or "").rstrip(".").lower()
    if ":" in host:
        host = f"[{host}]"
    try:
        host = host.encode("idna").decode() if host and not host.isascii() else host
        port = parts.port
    except (UnicodeError, ValueError):
        port = None
    default = {"http": 80, "https": 443}.get(parts.scheme.lower())
    netloc = host if port in (None, default) else f"{host}:{port}"
    safe = "/:@!$&'()*+,;=~%-._"
    return urlunsplit((parts.scheme.lower(), netloc, quote(parts.path, safe=safe) or "/", quote(parts.query, safe=safe + "?"), ""))


def make_uid(url: str, caption: str) -> str:
    """128-bit name of a pair, 32 hex digits. A length prefix keeps ("ab", "c") and ("a", "bc") apart."""
    address = canonical_url(url).encode()
    return hashlib.sha256(b"%d:%b%b" % (len(address), address, caption.encode())).hexdigest()[:32]
