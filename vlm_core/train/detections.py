"""What a frozen network finds in every training picture, once before training, for a model that reads regions (PyramidCLIP).

Two files, mapped into memory: 26 kB per picture with ten regions. They are of the centre square of a picture, whatever crop a step sees.
"""

# N training samples, R regions, F features and place of one

import io
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vlm_core.data.shards.augment import Transform
from vlm_core.data.shards.samples import Samples
from vlm_core.models import packaged, roi_features
from vlm_core.models.efficientnet_lite0 import Trunk
from vlm_core.train.fit import Reporter

if TYPE_CHECKING:
    from vlm_core.train.config import Pretrain

REGIONS, CLASSES = "regions.npy", "region_classes.npy"
BATCH = 64


class Detections(NamedTuple):
    """Of the training samples by row."""

    regions_NRF: NDArray[np.float16]
    classes_NR: NDArray[np.int16]
    names: list[str]

    def regions(self, rows: list[int]) -> Tensor:
        """(B, R, F), float32."""
        return torch.from_numpy(self.regions_NRF[rows].astype(np.float32))

    def texts(self, rows: list[int], most: int) -> list[str]:
        """Names of up to `most` classes that were found in each, the surest first: "tabby cat, sofa"."""
        return [", ".join(self.names[number] for number in list(dict.fromkeys(self.classes_NR[row].tolist()))[:most]) for row in rows]


def prepare(config: "Pretrain", samples: Samples, folder: Path, report: Reporter) -> None:
    """Look at all training pictures; what was found is kept in `folder` for a resumed run and for other ranks."""
    asked = config.model.roi_features
    if asked is None or (folder / CLASSES).exists():
        return
    device = "cuda" if torch.cuda.is_available() and config.fit.accelerator != "cpu" else "cpu"
    network, square = Trunk(packaged.efficientnet_lite0(), None, "auto").to(device), Transform(asked.image_size)
    sizes = (len(samples), asked.regions, roi_features.WIDTH)
    regions_NRF = np.lib.format.open_memmap(folder / f".{REGIONS}", mode="w+", dtype=np.float16, shape=sizes)
    classes_NR = np.empty(sizes[:2], np.int16)
    for begin in range(0, len(samples), BATCH):
        rows = range(begin, min(begin + BATCH, len(samples)))
        squares_B3SS = torch.stack([square.eval_square(Image.open(io.BytesIO(samples.jpeg(row)))) for row in rows]).to(device)
        found_BRF, class_BR = roi_features.find(network, squares_B3SS, asked.regions)
        regions_NRF[rows.start : rows.stop], classes_NR[rows.start : rows.stop] = found_BRF.cpu().numpy(), class_BR.cpu().numpy()
        report.progress("regions found in pictures", rows.stop, len(samples))
    regions_NRF.flush()
    np.save(folder / f".{CLASSES}", classes_NR)
    for name in (REGIONS, CLASSES):  # the second one says that both are there
        (folder / f".{name}").rename(folder / name)


def attach(config: "Pretrain", folder: Path) -> Detections | None:
    """What was found, or None for a model that does not read it."""
    if config.model.roi_features is None:
        return None
    return Detections(np.load(folder / REGIONS, mmap_mode="r"), np.load(folder / CLASSES), packaged.imagenet_names())
