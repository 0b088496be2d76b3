"""The reference set of a model that looks up pairs (RA-CLIP): which pairs it is, their features, and the neighbours of every training picture.

Whole groups are set aside (look-alikes, equal captions, one author), so no picture finds itself or a copy of itself while training. Neighbours are looked up
once, of the uncropped picture. Source: methods/pretraining.md 4.11.
"""

# N training samples, R references, K neighbours, F features of pictures, S of texts

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from vlm_core.checkpoint import read_weights, write_weights
from vlm_core.data.shards.samples import Samples, ShardSamples, training_samples
from vlm_core.data.shards.shards import read_index
from vlm_core.errors import NothingLeft
from vlm_core.models import packaged
from vlm_core.models.retrieval import Retrieval, nearest
from vlm_core.models.towers import TwoTower
from vlm_core.train.fit import Reporter

if TYPE_CHECKING:
    from vlm_core.train.config import Pretrain

FILE, TABLE = "references.safetensors", "references.parquet"
BATCH = 64


def drawn(config: "Pretrain", shards: Path) -> tuple[list[str], list[str]]:
    """(uids of the references, uids that nobody is trained on: those and the rest of the last group). Raises NothingLeft if they were more than half of all."""
    assert config.model.retrieval is not None
    index, wanted = read_index(shards, "train"), config.model.retrieval.references
    if 2 * wanted > len(index):
        raise NothingLeft(f"Found {len(index)} training pairs in {shards}, expected at least twice the {wanted} references; lower model.retrieval.references.")
    groups: dict[str, list[str]] = {}
    for uid, group in zip(index["uid"].to_pylist(), index["group"].to_pylist(), strict=True):
        groups.setdefault(group, []).append(uid)
    aside: list[str] = []
    for group in sorted(groups, key=lambda name: hashlib.sha256(f"references/{config.seed}/{name}".encode()).digest()):
        aside += sorted(groups[group])
        if len(aside) >= wanted:
            break
    return aside[:wanted], aside


def trained_on(config: "Pretrain", shards: Path) -> Samples:
    """What a run trains on: everything but the references."""
    return training_samples(shards, config.loader, without=() if config.model.retrieval is None else drawn(config, shards)[1])


def prepare(config: "Pretrain", shards: Path, folder: Path, report: Reporter) -> None:
    """Features of the references and neighbours of all training pictures, kept in `folder` for a resumed run and for other ranks."""
    if config.model.retrieval is None or (folder / FILE).exists():
        return
    device = "cuda" if torch.cuda.is_available() and config.fit.accelerator != "cpu" else "cpu"
    part = Retrieval(config.model.retrieval, config.model.image, config.model.width).to(device)
    rest, held = trained_on(config, shards), _references(config, shards)
    tokenizer, model, _ = packaged.minilm()
    texts_RS = packaged.sentence_vectors(tokenizer, model, [str(held.record(row)["caption"]) for row in range(len(held))])
    part.keep(torch.cat([*_features(part, held, "references looked at", report)]), texts_RS)
    found = [
        nearest(some_BF, part.image_RF, config.model.retrieval.neighbours).int().cpu() for some_BF in _features(part, rest, "neighbours looked up", report)
    ]
    state = {"images": part.image_RF, "texts": part.text_RS, "neighbours": torch.cat(found)}
    write_weights(folder / f".{FILE}", state)
    (folder / f".{FILE}").rename(folder / FILE)


def attach(towers: TwoTower, folder: Path) -> Tensor | None:
    """Give the model its references; gives the neighbours (N, K) of the training samples by row, or None for a model without."""
    if towers.retrieval is None:
        return None
    held = read_weights(folder / FILE)
    towers.retrieval.keep(held["images"], held["texts"])
    return held["neighbours"]


def describe(config: "Pretrain", shards: Path, towers: TwoTower, out: Path) -> dict[str, Any]:
    """What config.json says about the references; which they are is written beside it, so that a takedown finds them."""
    if towers.retrieval is None:
        return {}
    held = _references(config, shards)
    rows = [{"uid": held.uids[row], "caption": str(held.record(row)["caption"])} for row in range(len(held))]
    pq.write_table(pa.Table.from_pylist(rows), out / TABLE, compression="zstd")
    encoders = {name: packaged.digest(name) for name in config.model.packaged()}
    return {"references": {"pairs": len(held), "sha256": towers.retrieval.digest(), "encoders": encoders}}


def _references(config: "Pretrain", shards: Path) -> ShardSamples:
    uids = set(drawn(config, shards)[0])
    return ShardSamples(
        shards, "train", verify=config.loader.verify, without=[uid for uid in read_index(shards, "train")["uid"].to_pylist() if uid not in uids]
    )


@torch.inference_mode()
def _features(part: Retrieval, samples: Samples, what: str, report: Reporter) -> Iterator[Tensor]:
    """Unit-norm features (B, F) of the centre of every picture, batch by batch."""
    device = part.image_RF.device
    for begin in range(0, len(samples), BATCH):
        rows = range(begin, min(begin + BATCH, len(samples)))
        squares = [part.pixels.eval_square(Image.open(io.BytesIO(samples.jpeg(row)))) for row in rows]
        yield part.features(part.pixels.normalise(torch.stack(squares)).to(device))
        report.progress(what, rows.stop, len(samples))
