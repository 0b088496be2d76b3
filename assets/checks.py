"""What must be true of the assets, asked of their bytes rather than of their reports."""

from pathlib import Path

import dagster as dg

from assets.data_checks import DATA_CHECKS
from assets.filtered import filtered
from assets.images import images
from assets.registry import registrations
from assets.shards import shards, snapshot
from assets.tables import count
from assets.upkeep import takedown_proof
from pipelines.ledger import lock_version
from pipelines.resources import Launcher
from vlm_core.data.lineage.tombstones import load
from vlm_core.errors import VlmError
from vlm_core.stage import Report, data_version, record_of


@dg.asset_check(asset=shards, blocking=True, description="There is something to train on and something held out.")
def not_empty(launcher: Launcher) -> dg.AssetCheckResult:
    found = count("SELECT count(*) FILTER (split = 'train') AS train, count(*) FILTER (split = 'heldout') AS heldout FROM samples", samples=_index(launcher))
    return dg.AssetCheckResult(passed=min(found.values()) > 0, metadata=found)


@dg.asset_check(
    asset=shards, blocking=True, description="Training and held-out samples share no uid and no group (equal caption, near-duplicate picture or author)."
)
def splits_are_disjoint(launcher: Launcher) -> dg.AssetCheckResult:
    sides = """SELECT DISTINCT "{0}" FROM samples WHERE split = 'train' AND "{0}" IS NOT NULL INTERSECT SELECT "{0}" FROM samples WHERE split = 'heldout'"""
    shared = ", ".join(f'(SELECT count(*) FROM ({sides.format(name)})) AS "shared {name}s"' for name in ("uid", "group"))
    found = count(f"SELECT {shared}", samples=_index(launcher))
    return dg.AssetCheckResult(passed=not any(found.values()), metadata=found)


def _index(launcher: Launcher) -> Path:
    return launcher.at(launcher.data("shards")) / "index.parquet"


def no_takedown_leak(asset: dg.AssetsDefinition, look: str) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=asset, name="no_takedown_leak", blocking=True, description="Nothing that was taken down, by uid, address, site, bytes or look, is in it."
    )
    def check(launcher: Launcher) -> dg.AssetCheckResult:
        from vlm_core.data.lineage import leaks  # late: it opens shards

        folders = {"pairs": "candidate_pairs", "images": "images", "filtered": "filtered", "shards": "shards"}
        stones = load(launcher.home())
        found = getattr(leaks, look)(stones, {name: launcher.at(launcher.data(place)) for name, place in folders.items()})
        said = {"takedowns": len(stones.ids), "samples that were taken down": len(found)}
        return dg.AssetCheckResult(passed=not found, metadata={**said, "such as": ", ".join(sorted(found)[:5])})

    return check


@dg.asset_check(asset=snapshot, blocking=True, description="Every byte of the shards, read again, is what manifest and index say.")
def snapshot_is_whole(launcher: Launcher) -> dg.AssetCheckResult:
    from vlm_core.data.shards.verify import verify

    try:
        return dg.AssetCheckResult(passed=True, metadata={"version": verify(launcher.at(launcher.data("shards")))})
    except VlmError as error:
        return dg.AssetCheckResult(passed=False, metadata={"found": str(error)})


@dg.asset_check(asset=takedown_proof, description="The scan found nothing, and there was nothing that it could not look at.")
def nothing_left(launcher: Launcher) -> dg.AssetCheckResult:
    report = Report.model_validate_json((launcher.at(record_of(launcher.data("takedown_proof"))) / "result.json").read_text())
    found = {name.replace("_", " "): report.counts[name] for name in ("hits", "not_readable", "not_looked_at", "cached")}
    return dg.AssetCheckResult(passed=not any(found.values()), metadata=found)


@dg.asset_check(asset=snapshot, blocking=True, description="The bytes on disk, the asset's data version and dvc.lock name the same hash.")
def hashes_agree(launcher: Launcher) -> dg.AssetCheckResult:
    folder = launcher.data("shards")
    report = Report.model_validate_json((launcher.at(record_of(folder)) / "result.json").read_text())
    found = {
        "bytes": data_version(launcher.at(folder)),
        "asset": report.data_version,
        "dvc.lock": lock_version(launcher.at(launcher.data()).parent, "shard", str(folder)),
    }
    return dg.AssetCheckResult(passed=len(set(found.values())) == 1, metadata=found)


def not_worse_than_champion(registration: dg.AssetsDefinition) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=registration, name="not_worse_than_champion", description="No result of the new model is significantly worse than the champion's.")
    def check(launcher: Launcher) -> dg.AssetCheckResult:
        result = launcher.at(record_of(launcher.data(*registration.key.path))) / "result.json"
        report = Report.model_validate_json(result.read_text())
        worse = int(report.counts.get("worse", 0))
        return dg.AssetCheckResult(passed=worse == 0, severity=dg.AssetCheckSeverity.WARN, metadata={"worse results": worse})

    return check


CHECKS = [
    *DATA_CHECKS,
    not_empty,
    splits_are_disjoint,
    *(no_takedown_leak(asset, look) for asset, look in ((images, "in_pictures"), (filtered, "in_kept"), (shards, "in_shards"))),
    snapshot_is_whole,
    nothing_left,
    hashes_agree,
    *(not_worse_than_champion(registration) for registration in registrations),
]
