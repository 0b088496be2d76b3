"""The proof that nothing of what was taken down is left: a scan of every live product and of the DVC cache, printed and kept.

    vlm takedown --scan | --purge                           exit code 20 while anything is left, or could not be looked at
    vlm takedown-proof --out data/takedown_proof            the same as a run: proof.json, counts, and the catalog knows it
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlm_core import stage as stages
from vlm_core.data.config import TakedownProof
from vlm_core.data.lineage import scan
from vlm_core.data.lineage.exact_bytes import dvc_cache
from vlm_core.data.lineage.tombstones import load
from vlm_core.errors import DataError
from vlm_core.stage import Report, Stage


def say(cache: Path | None, also: list[Path], *, purge: bool, as_json: bool) -> int:
    """`vlm takedown --scan`."""
    home = stages.home()
    found = prove(home, [*scan.products(home), *also], _cache(cache), purge=purge)
    print(json.dumps(found, indent=1, ensure_ascii=False) if as_json else _sentence(found))
    return 0 if is_clean(found) else 20


def takedown_proof(config: TakedownProof, stage: Stage) -> Report:
    """The verb. It ends well whatever it finds: whoever reads the proof decides. Without any takedown there is nothing to look for."""
    home, counts = stages.home(), dict.fromkeys(("hits", "not_readable", "not_looked_at", "files", "values", "takedowns", "cached"), 0)
    found: dict[str, Any] = {}
    if stones := load(home):
        found = prove(home, [*scan.products(home), *map(Path, config.also)], _cache(Path(config.cache) if config.cache else None), purge=config.purge)
        counts |= {name: found[name] for name in ("hits", "files", "values")} | {name: len(found[name]) for name in ("not_readable", "not_looked_at")}
        counts |= {"takedowns": len(stones.ids), "cached": len(found["cached_files_that_hold_it"])}
        stage.progress(_sentence(found))
    stages.write_json(stage.out / "proof.json", found)
    tables = {"found": found.get("found", []), "not looked at": [{"file": said} for said in found.get("not_looked_at", []) + found.get("not_readable", [])]}
    return Report(counts=counts, tables=tables)


def is_clean(found: dict[str, Any]) -> bool:
    """Nothing is left, and nothing was passed over: what cannot be read proves nothing."""
    return not (found["hits"] or found["not_readable"] or found["not_looked_at"])


def prove(home: Path, folders: list[Path], cache: Path | None, *, purge: bool = False) -> dict[str, Any]:
    """Scan the folders for everything that was ever taken down; the finding is printed and kept under takedowns/ of the platform home. Raises DataError."""
    stones = load(home)
    if not stones:
        raise DataError(f"Found no takedown in {home / 'catalog'}, expected one to look for; take something down first.")
    found = scan.scan(folders, stones)
    cached, seen = scan.scan_cache(cache, stones) if cache else ([], scan.Found())
    purged = [scan.drop(path) for path in cached] if purge else []
    proof = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"), "takedowns": stones.digest, "uids": len(stones.uids), "folders": [str(path) for path in folders],
        "files": found.files, "values": found.values, "not_readable": found.unreadable + seen.unreadable, "not_looked_at": found.passed_over + seen.passed_over,
        "looked_at_by_name": found.by_name, "hits": sum(hit["hits"] for hit in found.hits), "found": found.hits,
        "pages_as_crawled": found.pages, "pages_that_show_it": found.shown,
        "cache": str(cache or ""), "cached_files_that_hold_it": [path.name for path in cached if not purge], "purged": purged,
    }  # fmt: skip
    (home / "takedowns").mkdir(parents=True, exist_ok=True)
    stages.write_json(home / "takedowns" / f"proof-{stones.digest[:12]}.json", proof)
    return proof


def _cache(given: Path | None) -> Path | None:
    if given is not None:
        return given
    try:
        return dvc_cache(Path.cwd())
    except DataError:  # no DVC project here: nothing is cached
        return None


def _sentence(proof: dict[str, Any]) -> str:
    lines = [f"{proof['hits']} hits in {proof['files']:,} files ({proof['values']:,} values) of {len(proof['folders'])} folders for {proof['uids']:,} samples; "
             f"{proof['looked_at_by_name']:,} of the files are arrays, weights and pictures, which are known by their names"]
    lines += [f"  {hit['hits']:6,}  {hit['path']}" for hit in proof["found"]]
    lines += [f"  not readable: {said}" for said in proof["not_readable"]]
    lines += [f"  not looked at: {said}" for said in proof["not_looked_at"]]
    lines += [f"  {len(hit['pages']):6,}  pages as crawled in {hit['path']}, such as {hit['pages'][0]}" for hit in proof["pages_that_show_it"]]
    if proof["pages_that_show_it"]:
        lines.append(
            "Pages are source material, which 'vlm extract' refuses to read where they show it; crawl them again or remove them if they shall go, too."
        )
    if proof["hits"]:
        lines.append("Run the stages that made these folders again (job 'data', or 'dvc repro'), then scan again.")
    if held := proof["cached_files_that_hold_it"]:
        lines.append(f"{len(held)} files of the DVC cache {proof['cache']} hold it still; --purge deletes them. Remotes are yours to clean.")
    if proof["purged"]:
        lines.append(f"{len(proof['purged'])} files deleted from the DVC cache {proof['cache']}. Remotes are yours to clean.")
    return "\n".join(lines)
