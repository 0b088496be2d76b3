"""Shards, and the snapshot that names their bytes."""

import dagster as dg

from assets.captions import captions
from assets.filtered import filtered
from assets.sources import DATA
from assets.worker import menu, perform, table
from pipelines.ledger import changes, lock_version, record_snapshot, revoked
from pipelines.resources import Launcher
from vlm_core.errors import VlmError

SHARD = menu("shard")


@dg.asset(**DATA, kinds={"webdataset"}, deps=[filtered, captions])
def shards(context: dg.AssetExecutionContext, launcher: Launcher, config: SHARD.form) -> dg.MaterializeResult:
    """Reproducible shards with manifest and index by uid, split into training and held-out groups; what is the same as before stays byte for byte."""
    inputs = {"pairs": launcher.data("candidate_pairs"), **{name: launcher.data(name) for name in ("images", "filtered", "captions")}}
    return perform(context, launcher, SHARD, config, inputs, launcher.data("shards"))


@dg.asset(**DATA, kinds={"dvc"}, deps=[shards], pool="dvc")
def snapshot(context: dg.AssetExecutionContext, launcher: Launcher) -> dg.MaterializeResult:
    """The shards under the name of their bytes: DVC keeps them, a commit on its own ref keeps dvc.lock."""
    made = context.instance.get_latest_materialization_event(shards.key)
    reported = (made.asset_materialization.tags or {}).get("dagster/data_version", "") if made and made.asset_materialization else ""
    folder, root = str(launcher.data("shards")), launcher.at(launcher.data()).parent
    before = lock_version(root, "shard", folder)
    try:
        entry = record_snapshot("shard", folder, root, reported)
    except VlmError as error:
        raise dg.Failure(f"{type(error).__name__}: {error}", allow_retries=False) from None
    context.log.info(entry.said)
    found = {"snapshot": entry.version, "commit": entry.commit, "reused": not entry.recorded, "ledger": entry.said}
    if changed := changes(launcher.home() / "catalog", before, entry.version):
        found |= {"the last snapshot": before, "since the last snapshot": table(changed)}
    for name, version in (("revoked by", entry.version), ("the last snapshot is revoked by", before)):
        if taken := revoked(launcher.home(), version):
            found[name] = table(taken)
    return dg.MaterializeResult(metadata=found, data_version=dg.DataVersion(entry.version))
