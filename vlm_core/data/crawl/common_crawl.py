"""Archives of Common Crawl, chosen from a list of paths as it publishes them (wat.paths.gz, warc.paths.gz).

Which files a budget takes is a function of the list and the seed: the list in the order of a hash, its first `max_files`, none twice. A larger budget
takes the same files and more. The reference draws with replacement (rom1504/cc2dataset main.py). Source: `methods/data.md` 1.
"""

import errno
import gzip
import hashlib
import os
import re
import zlib
from collections import Counter
from pathlib import Path

from vlm_core.data.crawl.config import CommonCrawl
from vlm_core.data.crawl.places import Place, below, places
from vlm_core.data.crawl.tables import FOLDER
from vlm_core.errors import BadManifest, ServiceError
from vlm_core.stage import Stage

LIST, WHAT = r"\.paths(\.gz)?$", "list of paths (.paths or .paths.gz)"
OURS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE}  # of this machine: no fault of a file far away
_PATH = re.compile(r"(?!.*\.\.)[\w.-]+(/[\w.-]+)*\.(wat|warc)(\.gz)?", re.A)


def choose(source: CommonCrawl, counts: Counter[str]) -> list[Place]:
    """The files that the budget takes, in the order of their hash. Counts `listed`, `bad_path` for lines that are no path below the base.

    Raises MissingInput without a list, BadManifest when it cannot be read, names no archive, or both kinds.
    """
    names = set[str]()
    for place in places(source.paths, LIST, WHAT):
        for line in _lines(place):
            if _PATH.fullmatch(line):
                names.add(line)
            else:
                counts["bad_path"] += bool(line)
    if not names or len({_is_wat(name) for name in names}) > 1:
        found = "WAT and WARC files together" if names else f"no path of an archive ({counts['bad_path']} other lines)"
        raise BadManifest(f"Found {found} in {source.paths}, expected the paths of one kind, one a line; give wat.paths.gz or warc.paths.gz of one crawl.")
    counts["listed"] = len(names)
    order = sorted(names, key=lambda name: hashlib.sha256(f"{source.seed}:{name}".encode()).digest())
    return below(source.base, order[: source.max_files])


def _lines(place: Place) -> list[str]:
    try:
        with place.open() as stream:
            data = stream.read()
        text = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        return [line.strip() for line in text.decode().splitlines()]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise BadManifest(f"Found a list that cannot be read at {place.name} ({type(error).__name__}), expected {WHAT}; fetch it again.") from None


def _is_wat(name: str) -> bool:
    return name.removesuffix(".gz").endswith(".wat")


def are_wat(chosen: list[Place]) -> bool:
    return _is_wat(chosen[0].name)


def copy(chosen: list[Place], stage: Stage, counts: Counter[str]) -> int:
    """Copy WAT files to OUT/tables; returns their bytes. What was copied before a kill is not asked for again, a file that cannot be read is counted.

    Raises ServiceError when not one could be read.
    """
    import aiohttp  # fsspec's client for http

    done = stage.state / FOLDER
    for number, place in enumerate(chosen, 1):
        file = done / place.name
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_name(f"{file.name}.part")
            try:
                place.files.get_file(place.path, str(part))
                part.rename(file)
            except (OSError, ValueError, aiohttp.ClientError) as error:
                if isinstance(error, OSError) and error.errno in OURS:
                    raise
                part.unlink(missing_ok=True)
                counts[f"unreadable.{type(error).__name__}"] += 1
        stage.progress("archives", number, len(chosen))
    return _publish(done, [place for place in chosen if (done / place.name).exists()], stage.out, counts)


def _publish(done: Path, read: list[Place], out: Path, counts: Counter[str]) -> int:
    if not read:
        raise ServiceError(f"Found not one archive that could be read ({dict(counts)}), expected some; check source.base, or run the same command later.")
    size = 0
    for place in read:
        target = out / FOLDER / place.name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(done / place.name, target)  # no second copy; a kill from here on costs nothing of what was fetched
        size += target.stat().st_size
    return size
