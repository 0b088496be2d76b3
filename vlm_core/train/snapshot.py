"""Whether a snapshot holds what a recipe wants of it: looked up in its manifest, before a sample is read."""

from pathlib import Path

from vlm_core.data.shards.shards import read_manifest
from vlm_core.errors import Incompatible
from vlm_core.train.config import Pretrain


def check(config: Pretrain, shards: Path) -> None:
    """Raises Incompatible, which names recipe and snapshot and says what would fit.

    Classes (`image_text_label`) are made from captions and boxes (`scenes`) from pictures, so that every snapshot has them.
    """
    manifest, loader = read_manifest(shards), config.loader
    origins: dict[str, int] | None = manifest.get("captions")
    if origins is not None and loader.second_caption and not set(loader.second_caption) & origins.keys():
        has = ", ".join(f"{name} {count:,}" for name, count in origins.items())
        raise Incompatible(
            f"Found loader.second_caption={loader.second_caption} with the snapshot {shards}, which has none of them (it has {has}), expected captions beside the raw ones; "
            "run 'vlm recaption' before 'vlm shard', or choose a recipe without second captions."
        )
    pairs = manifest["totals"]["train"]
    if not loader.mix and pairs < loader.batch_size:
        raise Incompatible(
            f"Found {pairs:,} training pairs in the snapshot {shards} for loader.batch_size {loader.batch_size} ({loader.batch_size // config.fit.devices} on each of "
            f"{config.fit.devices} processes), expected a whole step at least; lower loader.batch_size or make more shards."
        )
