"""Reading what `vlm features` stored. Light on purpose: most transfer runs need neither the model nor the picture libraries."""
# C classes, D joint width, N pictures, V views

import json
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from safetensors.torch import load_file
from torch import Tensor

from vlm_core.errors import DataError, did_you_mean


class Labelled(NamedTuple):
    """One split of a stored set."""

    image_ND: Tensor  # raw
    labels_N: Tensor
    keys: list[str]
    groups: list[str]


class Stored:
    """A data set's features. Training and validation are read at once; the test split only by asking for it by name."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "dataset.json").exists():
            there = sorted(path.parent.name for path in folder.parent.glob("*/dataset.json"))
            raise DataError(f"Found no features of {folder.name!r} in {folder.parent}, expected a set that was encoded; {did_you_mean(folder.name, there)}")
        self.folder = folder
        self.about: dict[str, Any] = json.loads((folder / "dataset.json").read_text())
        self._rows = pq.read_table(folder / "table.parquet", columns=["split", "row", "key", "group"]).to_pylist()
        text = load_file(folder / "text.safetensors")
        self.single_CD, self.ensemble_CD = text["single_CD"], text["ensemble_CD"]
        self.views_VND = load_file(folder / "train.safetensors")["views_VND"]
        self.train, self.val = self.split("train"), self.split("val")

    def split(self, name: str) -> Labelled:
        tensors = load_file(self.folder / f"{name}.safetensors")
        rows = sorted((row for row in self._rows if row["split"] == name), key=lambda row: row["row"])
        image_ND = tensors["views_VND"][0] if name == "train" else tensors["image_ND"]
        return Labelled(image_ND, tensors["labels_N"], [row["key"] for row in rows], [str(row["group"]) for row in rows])
