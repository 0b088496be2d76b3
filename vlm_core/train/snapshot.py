"""Whether the snapshots hold what a recipe wants of them: looked up in their manifests, before a sample is read."""

from pathlib import Path
from typing import Any

from vlm_core.data.shards.shards import read_manifest
from vlm_core.errors import Incompatible
from vlm_core.train.config import Pretrain


def check(config: Pretrain, shards: Path) -> None:
    """Raises Incompatible, which names recipe and snapshot and says what would fit; each snapshot of a mix is asked.

    Classes (`image_text_label`) are made from captions and boxes (`scenes`) from pictures, so that every snapshot has them.
    """
    loader, folders = config.loader, [shards, *(Path(more.shards) for more in config.loader.mix.values())]
    manifests = [(folder, read_manifest(folder)) for folder in folders]
    for folder, manifest in manifests:
        _captions(config, folder, manifest)
    pairs = [(folder, int(manifest["totals"]["train"])) for folder, manifest in manifests]
    alone = len(folders) > 1 and loader.debiased is not None  # each batch comes from one snapshot
    for folder, count in pairs if alone else [(shards, sum(count for _, count in pairs))]:
        if count < loader.batch_size:
            what = f"the snapshots {', '.join(map(str, folders))}" if len(folders) > 1 and not alone else f"the snapshot {folder}"
            raise Incompatible(
                f"Found {count:,} training pairs in {what} for loader.batch_size {loader.batch_size} ({loader.batch_size // config.fit.devices} on each of "
                f"{config.fit.devices} processes), expected a whole step at least; lower loader.batch_size or make more shards."
            )


def _captions(config: Pretrain, folder: Path, manifest: dict[str, Any]) -> None:
    origins: dict[str, int] | None = manifest.get("captions")
    second = config.loader.second_caption
    if origins is not None and second and not set(second) & origins.keys():
        has = ", ".join(f"{name} {count:,}" for name, count in origins.items())
        raise Incompatible(
            f"Found loader.second_caption={second} with the snapshot {folder}, which has none of them (it has {has}), expected captions beside the raw ones; "
            "run 'vlm recaption' before 'vlm shard', or choose a recipe without second captions."
        )
