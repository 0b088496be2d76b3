"""`vlm lineage bytes`: the exact bytes of a snapshot again, from its live folder or from the DVC cache, by plain file arithmetic."""

import configparser
import json
import shutil
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from vlm_core import stage as stages
from vlm_core.data.lineage.catalog import Answer, ask
from vlm_core.errors import BadManifest, MissingInput

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


def rebuild(con: "DuckDBPyConnection", model_id: str, out: Path, cache: Path | None = None) -> Answer:
    """Every snapshot a model stands on, as OUT/<snapshot>/, taken from the live folder or the DVC cache and hashed again. Raises MissingInput, BadManifest."""
    snapshots = ask(con, "SELECT DISTINCT snapshot_md5, min(how) AS how FROM model_snapshots WHERE model_id = ? GROUP BY ALL ORDER BY ALL", model_id)
    if not snapshots:
        raise MissingInput(f"Found no snapshot behind the model {model_id[:12]}, expected at least one; it may be made from packaged weights only.")
    rows = []
    for row in snapshots:
        name = row["snapshot_md5"]
        target = out / name
        tmp = out / f"{name}.tmp"
        shutil.rmtree(tmp, ignore_errors=True)
        live = next((path for path in _live(con, name) if path.is_dir() and stages.data_version(path) == name), None)
        if live is not None:
            shutil.copytree(live, tmp)
        else:
            _from_cache(name, tmp, cache or dvc_cache(Path.cwd()))
        if (found := stages.data_version(tmp)) != name:
            raise BadManifest(f"Found bytes with the hash {found} for the snapshot {name}, expected equal ones; the source {live or 'DVC cache'} is damaged.")
        shutil.rmtree(target, ignore_errors=True)
        tmp.rename(target)
        files = [path for path in target.rglob("*") if path.is_file()]
        rows.append(
            {
                **row,
                "from": str(live or "DVC cache"),
                "files": len(files),
                "bytes": sum(path.stat().st_size for path in files),
                "verified": True,
                "path": str(target),
            }
        )
    return {"snapshots": rows}


def _live(con: "DuckDBPyConnection", snapshot: str) -> list[Path]:
    rows = ask(con, "SELECT path FROM runs WHERE output = ? UNION SELECT path FROM run_inputs WHERE ref = ? ORDER BY path", snapshot, snapshot)
    return [Path(row["path"]) for row in rows if row["path"]]


def dvc_cache(start: Path) -> Path:
    """files/md5 of the project's DVC cache: .dvc/cache, or the cache.dir of its settings."""
    root = next((folder / ".dvc" for folder in (start, *start.parents) if (folder / ".dvc").is_dir()), None)
    if root is None:
        raise MissingInput(f"Found no .dvc folder in {start} or above, expected the project that recorded the snapshot; go there or give --cache.")
    settings = configparser.ConfigParser()
    settings.read([root / "config", root / "config.local"])
    return root / settings.get("cache", "dir", fallback="cache") / "files" / "md5"


def _from_cache(snapshot: str, target: Path, cache: Path) -> None:
    listing = _cached(cache, snapshot)
    for row in json.loads(listing.read_bytes()):
        name = PurePosixPath(row["relpath"])
        if name.is_absolute() or ".." in name.parts:
            raise BadManifest(f"Found the unsafe name {row['relpath']!r} in {listing}, expected names inside the folder; do not use this cache.")
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_cached(cache, row["md5"]), file)


def _cached(cache: Path, md5: str) -> Path:
    path = cache / md5[:2] / md5[2:]
    if not path.is_file():
        raise MissingInput(f"Found no {path}, expected the bytes of {md5} in the DVC cache; run 'dvc pull', or give --cache.")
    return path
