"""Which files there are, and which table knows them."""

import functools
import importlib
import importlib.util
from pathlib import Path

from tests.golden.check import Entry


def files(folder: Path) -> list[tuple[str, Path]]:
    """(family, file) of every array file under a folder of families, or in one family's folder."""
    own = sorted(folder.glob("*.npz"))
    return [(folder.resolve().name, path) for path in own] or [(path.parent.name, path) for path in sorted(folder.glob("*/*.npz"))]


@functools.cache
def table(family: str) -> dict[str, Entry]:
    """The entries of `tests/golden/table_<family>.py`; empty when there is no such table."""
    name = f"tests.golden.table_{family}"
    return dict(importlib.import_module(name).TABLE) if importlib.util.find_spec(name) else {}
