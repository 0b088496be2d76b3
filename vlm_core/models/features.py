"""Run a model over pictures and class prompts once. What is stored is raw (after the projection, before the norm): unit rows follow from it.

OUT/<dataset>/train.safetensors   views_VND (view 0 is the evaluation view), labels_N
OUT/<dataset>/val.safetensors     image_ND, labels_N          test.safetensors: the same, in a file of its own that fitting never opens
OUT/<dataset>/text.safetensors    single_CD, ensemble_CD: unit text classifiers of the first and of all templates
OUT/<dataset>/table.parquet       key, split, row, label, classname, group, style, sha256
OUT/<dataset>/dataset.json        names, templates, and the key: model x transform x split x precision
"""
# B batch, C classes, D joint width, N pictures, V views

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from vlm_core import stage as stages
from vlm_core.config import canonical_json
from vlm_core.data.eval_sets.eval_sets import SPLITS, EvalSet, datasets_in, read_dataset
from vlm_core.errors import DataError, MissingInput, did_you_mean
from vlm_core.models.features_config import Features
from vlm_core.models.pretrained import Vlm, load
from vlm_core.models.prompts import ensemble_text, fill
from vlm_core.models.tokenizer import trim
from vlm_core.stage import Report, Stage

Fetch = Callable[[list[int]], Iterator[Image.Image]]  # the pictures of these rows, one after the other


class Encoder:
    """A model that remembers, by the hash of its bytes, every picture it has seen, and every text."""

    def __init__(self, vlm: Vlm, batch: int = 64) -> None:
        self.vlm, self.batch = vlm, batch
        self._seen: dict[tuple[str, int], Tensor] = {}
        self._read: dict[str, Tensor] = {}

    def recall(self, features: Path) -> None:
        """Remember what `vlm features` stored of these very weights; another model's features are passed over."""
        for about_file in sorted(features.glob("*/dataset.json")):
            about = json.loads(about_file.read_text())
            if (about["model"], about["transform"], about["model_card"]) != (self.vlm.digest, self.vlm.pixels.digest(), model_card_fields(self.vlm)):
                continue
            table = pq.read_table(about_file.with_name("table.parquet"), columns=["split", "row", "sha256"]).to_pylist()
            image_ND = {split: _stored_images(about_file.with_name(f"{split}.safetensors")) for split in SPLITS}
            self._seen.update({(row["sha256"], 0): image_ND[row["split"]][row["row"]] for row in table})

    @torch.no_grad()
    def images(self, sha256s: Sequence[str], fetch: Fetch, view: int = 0, seed: int = 0, progress: Callable[[int], None] = lambda done: None) -> Tensor:
        """Raw embeddings (N, D) of pictures of which only those not seen before are fetched.

        View 0 is the model's evaluation transform; the others are random crops that depend on picture, view and seed.
        """
        first = {sha256: row for row, sha256 in reversed(list(enumerate(sha256s))) if (sha256, view) not in self._seen}
        rows = sorted(first.values())
        waiting: dict[str, Tensor] = {}
        for done, (row, picture) in enumerate(zip(rows, fetch(rows), strict=True), 1):
            waiting[sha256s[row]] = self._square(picture, sha256s[row], view, seed)
            if len(waiting) == self.batch:
                self._flush(waiting, view)
                progress(done)
        self._flush(waiting, view)
        return torch.stack([self._seen[sha256, view] for sha256 in sha256s])

    def _square(self, picture: Image.Image, sha256: str, view: int, seed: int) -> Tensor:
        if view == 0:
            return self.vlm.pixels.eval_square(picture)
        random = np.random.default_rng([seed, view, int(hashlib.sha256(sha256.encode()).hexdigest()[:12], 16)])
        return self.vlm.pixels.train_square(pil_to_tensor(picture.convert("RGB")), random)

    def _flush(self, waiting: dict[str, Tensor], view: int) -> None:
        if waiting:
            images_B3SS = self.vlm.pixels.normalise(torch.stack(list(waiting.values())))
            raw_BD = self.vlm.towers.see(images_B3SS.to(self.vlm.device)).float().cpu()
            self._seen.update({(sha256, view): row for sha256, row in zip(waiting, raw_BD, strict=True)})
            waiting.clear()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Raw embeddings (N, D); texts of like length go together, so that little is padded."""
        new = sorted({text for text in texts if text not in self._read}, key=lambda text: (len(text), text))
        for start in range(0, len(new), self.batch):
            part = new[start : start + self.batch]
            raw_BD = self.vlm.towers.text(trim(self.vlm.tokenize(part)).to(self.vlm.device)).float().cpu()
            self._read.update(zip(part, raw_BD, strict=True))
        return torch.stack([self._read[text] for text in texts])

    def classifier(self, classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
        """(C, D) unit text classifier, the mean over the templates."""
        return ensemble_text(self.texts(fill(templates, classnames)), [len(templates)] * len(classnames))


def _stored_images(file: Path) -> Tensor:
    tensors = load_file(file)
    return tensors["views_VND"][0] if "views_VND" in tensors else tensors["image_ND"]


def choose_datasets(folder: Path, wanted: Sequence[str]) -> list[str]:
    """Names of the labelled sets in a folder. Raises DataError for one that is not there."""
    there = datasets_in(folder)
    if not there:
        raise MissingInput(f"Found no labelled set in {folder}, expected folders with a dataset.json; run 'vlm eval-sets' first.")
    for name in wanted:
        if name not in there:
            raise DataError(f"Found no labelled set {name!r} in {folder}, expected one that is there; {did_you_mean(name, there)}")
    return list(wanted) or there


# ---------------------------------------------------------------- the verb


def features(config: Features, stage: Stage) -> Report:
    """`vlm features`: embeddings of all labelled sets by one model."""
    vlm = load(stage.input("model"))
    encoder, folder = Encoder(vlm, config.batch), stage.input("eval_sets")
    counts: dict[str, int] = {}
    for name in choose_datasets(folder, config.datasets):
        dataset = read_dataset(folder / name)
        counts[name] = len(dataset)
        _write_dataset(config, stage, encoder, dataset, stages.data_version(folder / name))
    return Report(counts={"in": sum(counts.values()), **{f"in.{name}": n for name, n in counts.items()}}, tables={"datasets": _summary(stage.out)})


def _write_dataset(config: Features, stage: Stage, encoder: Encoder, dataset: EvalSet, version: str) -> None:
    out = stage.out / dataset.name
    out.mkdir()
    for split in SPLITS:
        views = [
            encode_split(encoder, dataset, split, view, config.seed, lambda done: stage.progress(f"{dataset.name}: new pictures", done))
            for view in range(1 + (config.views if split == "train" else 0))
        ]
        tensors = {"views_VND": torch.stack(views)} if split == "train" else {"image_ND": views[0]}
        save_file({**tensors, "labels_N": torch.tensor(dataset.labels[dataset.rows(split)])}, out / f"{split}.safetensors")
    single_CD, ensemble_CD = (encoder.classifier(dataset.classnames, templates) for templates in (dataset.templates[:1], dataset.templates))
    save_file({"single_CD": single_CD, "ensemble_CD": ensemble_CD}, out / "text.safetensors")
    pq.write_table(_table(dataset), out / "table.parquet")
    stages.write_json(out / "dataset.json", _about(config, encoder.vlm, dataset, version))


def encode_split(
    encoder: Encoder, dataset: EvalSet, split: str, view: int = 0, seed: int = 0, progress: Callable[[int], None] = lambda done: None
) -> Tensor:  # fmt: skip
    """Raw embeddings (N, D) of one split, in the order of its rows."""
    chosen, sha256s = dataset.rows(split), picture_hashes(dataset)
    return encoder.images([sha256s[i] for i in chosen], lambda rows: dataset.images(chosen[rows]), view, seed, progress)


def picture_hashes(dataset: EvalSet) -> list[str]:
    """SHA-256 of each picture's bytes, in the order of the table."""
    return pq.read_table(dataset.folder / "table.parquet", columns=["sha256"])["sha256"].to_pylist()


def _table(dataset: EvalSet) -> pa.Table:
    sha256s = picture_hashes(dataset)
    return pa.Table.from_pylist(
        [
            {
                "key": dataset.keys[i], "split": split, "row": row, "label": int(dataset.labels[i]), "classname": dataset.classnames[dataset.labels[i]],
                "group": dataset.groups[i], "style": dataset.styles[i], "sha256": sha256s[i],
            }
            for split in SPLITS
            for row, i in enumerate(dataset.rows(split))
        ]
    )  # fmt: skip


def _about(config: Features, vlm: Vlm, dataset: EvalSet, version: str) -> dict[str, Any]:
    split = hashlib.sha256(canonical_json([dataset.keys, dataset.splits.tolist(), dataset.labels.tolist()]).encode()).hexdigest()
    key = {
        "model": vlm.digest,
        "transform": vlm.pixels.digest(),
        "split": split,
        "precision": model_card_fields(vlm)["precision"],
        "views": config.views,
        "seed": config.seed,
    }
    return {
        "name": dataset.name, "classnames": list(dataset.classnames), "templates": list(dataset.templates), "dataset_version": version,
        "scale": float(vlm.towers.scale.detach()), **key, "key": hashlib.sha256(canonical_json(key).encode()).hexdigest(), "model_card": model_card_fields(vlm),
    }  # fmt: skip


def model_card_fields(vlm: Vlm) -> dict[str, Any]:
    """What a protocol card says about how a model reads pictures and texts."""
    pixels = vlm.pixels
    image = {
        "size_px": pixels.size_px,
        "interpolation": pixels.interpolation,
        "crop": "centre",
        "mean": list(pixels.mean),
        "std": list(pixels.std),
        "antialias": True,
    }
    half = any(getattr(part, "in_bf16", False) for part in vlm.towers.modules())  # a locked trunk may choose bfloat16 by itself
    precision = "float32, trunk bfloat16" if half else "float32"
    return {"image_preprocess": image, "tokenizer": vlm.tokenizer.name, "context_length": vlm.tokenizer.context_length, "precision": precision}


def _summary(out: Path) -> list[dict[str, Any]]:
    return [
        {"dataset": path.parent.name, "classes": len(set(table["label"])), **{split: table["split"].count(split) for split in SPLITS}}
        for path in sorted(out.glob("*/table.parquet"))
        for table in [pq.read_table(path).to_pydict()]
    ]
