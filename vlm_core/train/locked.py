"""Locked trunks see every sample once: their features are kept, and an epoch costs no more than the heads do."""

# N samples, T distinct captions, F trunk features, L tokens

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlm_core.checkpoint import read_weights, write_weights
from vlm_core.data.shards.augment import Transform
from vlm_core.data.shards.loader import TrainLoader
from vlm_core.data.shards.mixture import read_caption, read_two
from vlm_core.data.shards.samples import Samples
from vlm_core.models.headed import Headed
from vlm_core.models.tokenizer import Tokenizer, trim
from vlm_core.models.towers import TwoTower
from vlm_core.train.body import Batch
from vlm_core.train.fit import Reporter

IMAGES, TEXTS = "locked-images.safetensors", "locked-texts.safetensors"
BATCH = 64


def is_locked(tower: torch.nn.Module) -> bool:
    return isinstance(tower, Headed) and tower.lock


def captions_of(samples: Samples) -> list[dict[str, Any]]:
    """What choosing a caption needs of every sample's record, in the order of the rows."""
    return [{name: record[name] for name in ("uid", "caption", "captions")} for record in map(samples.record, range(len(samples)))]


def spoken(samples: Samples) -> Iterator[str]:
    """Every caption of every sample, in the order of the rows."""
    for row in range(len(samples)):
        yield from (caption["text"] for caption in samples.record(row)["captions"])


def distinct(records: list[dict[str, Any]]) -> dict[str, int]:
    """Every caption text that training may choose -> its row among the text features; shortest first, so that a batch holds little padding."""
    texts = {caption["text"] for record in records for caption in record["captions"]}
    return {text: row for row, text in enumerate(sorted(texts, key=lambda text: (len(text), text)))}


@torch.inference_mode()
def image_features(towers: TwoTower, samples: Samples, transform: Transform, folder: Path, report: Reporter) -> Tensor:
    """Trunk features (N, F) of the centre of every picture; kept in `folder` for a resumed run and for other ranks."""
    file = folder / IMAGES
    if not file.exists():
        parts = []
        for begin in range(0, len(samples), BATCH):
            squares = [transform.eval_square(Image.open(io.BytesIO(samples.jpeg(row)))) for row in range(begin, min(begin + BATCH, len(samples)))]
            parts.append(towers.image.features(transform.normalise(torch.stack(squares))))  # type: ignore[operator]
            report.progress("features of pictures", begin + len(squares), len(samples))
        _keep(file, torch.cat(parts))
    return read_weights(file)["features"]


@torch.inference_mode()
def text_features(towers: TwoTower, texts: Mapping[str, int], tokenize: Tokenizer, folder: Path, report: Reporter) -> Tensor:
    """Trunk features (T, F) of every distinct caption."""
    file, lines = folder / TEXTS, list(texts)
    if not file.exists():
        parts = []
        for begin in range(0, len(lines), 4 * BATCH):
            parts.append(towers.text.features(trim(tokenize(lines[begin : begin + 4 * BATCH]))))  # type: ignore[operator]
            report.progress("features of captions", min(begin + 4 * BATCH, len(lines)), len(lines))
        _keep(file, torch.cat(parts))
    return read_weights(file)["features"]


def _keep(file: Path, features: Tensor) -> None:
    write_weights(file.with_suffix(".part"), {"features": features})
    file.with_suffix(".part").rename(file)


class LockedLoader:
    """The batches of a TrainLoader, with features in the place of what locked trunks would see. Same order, same captions, same place in checkpoints."""

    def __init__(self, loader: TrainLoader, records: list[dict[str, Any]], images_NF: Tensor, texts: Mapping[str, int], texts_TF: Tensor | None) -> None:
        self.loader, self.records, self.images_NF, self.texts, self.texts_TF = loader, records, images_NF, texts, texts_TF

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        loader = self.loader
        while loader.step < len(self):
            rows, epochs = loader.part_of(loader.step)
            passes = zip(rows.tolist(), epochs.tolist(), strict=True)
            read = read_two if loader.config.second_caption else read_caption
            texts, *second, origins = zip(*(read(self.records[row], loader.config, loader.seed, epoch) for row, epoch in passes), strict=True)
            loader.count(origins, rows)
            named = {"text": texts, **({"caption": second[0]} if second else {})}
            yield {
                "image_features": self.images_NF[torch.from_numpy(rows)],
                **{k: v for name, lines in named.items() for k, v in self._said(name, lines).items()},
            }

    def _said(self, name: str, lines: Sequence[str]) -> Batch:
        """Texts, or what the locked trunk made of them."""
        return {f"{name}s": list(lines)} if self.texts_TF is None else {f"{name}_features": self.texts_TF[[self.texts[line] for line in lines]]}

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.loader.load_state_dict(state)
