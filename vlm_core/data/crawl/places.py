"""Files that a recipe names: on this machine, or behind an fsspec URL; one, a folder of them, or a pattern."""

import posixpath
import re
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast
from urllib.parse import urlsplit

from vlm_core.errors import ConfigError, MissingInput, did_you_mean
from vlm_core.stage import PACKAGE

# Object stores and servers that hold data sets. Not: protocols that open other files (zip, cache, reference, git, ...), which a URL could nest.
PROTOCOLS = ("file", "memory", "s3", "gs", "gcs", "az", "abfs", "abfss", "oss", "hdfs", "webhdfs", "hf", "http", "https", "sftp")


class Place(NamedTuple):
    """A file. `name` is relative to the folder that was named, and never leads out of it."""

    name: str
    path: str
    files: Any  # fsspec's file system

    def open(self) -> BinaryIO:
        return cast(BinaryIO, self.files.open(self.path, "rb"))


def find(path: str) -> Path:
    """A file or folder named in a recipe: from here, or else from the project."""
    given = Path(path)
    found = given if given.exists() else PACKAGE.parent / given
    if not path or not found.exists():
        raise MissingInput(f"Found nothing at {path!r}, expected a file or folder; give its path.")
    return found


def places(path: str, pattern: str, what: str) -> list[Place]:
    """The files at a path or URL whose names match a pattern, sorted.

    Raises ConfigError for a URL that is not to be opened, MissingInput when there is none.
    """
    files, root = _file_system(path)
    is_page = root.startswith(("http://", "https://"))  # one file: a web server has no folders, and its '?' is no pattern
    try:
        paths = sorted(files.glob(root) if re.search(r"[*?\[]", root) and not is_page else [root] if is_page or files.isfile(root) else files.find(root))
    except (OSError, ValueError) as error:
        raise MissingInput(f"Found nothing that can be listed at {path!r} ({type(error).__name__}), expected {what}; check the address.") from None
    folder = "" if paths == [root] else root if files.isdir(root) else posixpath.dirname(re.split(r"[*?\[]", root)[0])
    named = [Place(_name(found, folder), found, files) for found in paths]
    chosen = [place for place in named if re.search(pattern, place.name, re.I) and not any(part.startswith(".") for part in place.name.split("/"))]
    if not chosen:
        raise MissingInput(f"Found no {what} at {path!r} ({len(paths)} files there), expected at least one; give its path.")
    return chosen


def below(base: str, names: list[str]) -> list[Place]:
    """Files below a folder or the URL of one, by their relative names; nobody looks whether they are there. Raises ConfigError, MissingInput."""
    files, root = _file_system(base)
    return [Place(name, f"{root.rstrip('/')}/{name}", files) for name in names]


def _name(path: str, folder: str) -> str:
    relative = posixpath.relpath(path, folder) if folder else posixpath.basename(urlsplit(path).path if "://" in path else path)
    return "/".join(part for part in relative.split("/") if part not in {"..", "."})


def _file_system(path: str) -> tuple[Any, str]:
    import fsspec

    if "::" not in path and "://" not in path:
        has_pattern = re.search(r"[*?\[]", path) and not Path(path).exists()
        return fsspec.filesystem("file"), str(Path(path).absolute() if has_pattern else find(path).absolute())
    protocol = path.partition("://")[0].lower()
    if "::" in path or protocol not in PROTOCOLS:
        raise ConfigError(f"Found the address {path!r}, expected a path or a URL of a file store; {did_you_mean(protocol, PROTOCOLS)}")
    if urlsplit(path).password:
        raise ConfigError(
            f"Found a password in the address of {protocol}://{urlsplit(path).hostname}, expected it in the environment; take it out of the address."
        )
    try:
        files, root = fsspec.core.url_to_fs(path)
    except ImportError as error:
        raise ConfigError(f"Found no driver for {protocol}:// ({error}), expected it beside fsspec; install what that sentence names.") from None
    return files, str(root)
