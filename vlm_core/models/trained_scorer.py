"""A model that the platform trained, as scorer: a data filtering network (DFN, arXiv 2309.17425).

    vlm filter --recipe trusted_filter ...           a small, clean subset
    vlm shard, vlm pretrain --recipe filter_network  a network trained on it, with hashes of what it was trained on
    vlm embed --recipe dfn_embed --in scorer=MODEL   its scores; `vlm eval-sets --in embeddings=` keeps test sets clear of what it knows
    vlm filter --recipe dfn_filter ...               the best fifth by its score

The network decides what later models see, so its own data must not hold test pictures. Its hashes (`data.eval_sets.known`) travel with the embeddings, so
that test sets made later are apart from them; test sets that are there already are compared by `refuse_overlap`, and one in common stops the run. The
catalog links every model that is trained on what it filtered to it (`filtered by`).
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlm_core import stage as stages
from vlm_core.data.config import ModelScorer
from vlm_core.data.eval_sets.eval_sets import EvalSet, datasets_in, read_dataset
from vlm_core.data.eval_sets.groups import Look, group
from vlm_core.data.eval_sets.known import FILE, copy_known, read_known
from vlm_core.data.filter.config import Grouping
from vlm_core.data.filter.perceptual import pdq, phash, to_hex
from vlm_core.data.shards.shards import read_samples
from vlm_core.errors import ConfigError, DataError, Incompatible, MissingInput
from vlm_core.models import pretrained
from vlm_core.models.scorer import Vectors
from vlm_core.stage import Stage
from vlm_core.track import Registry

PREFIX = "model:"  # of the scorer's name in scorer.json


class Trained:
    """A model folder as `Scorer`."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.folder, self.model = folder, pretrained.load(folder)
        self.model.towers.to(device)
        self.name = f"{PREFIX}{self.model.config.get('recipe') or 'unnamed'}"

    @property
    def dim(self) -> int:
        return len(self.encode_texts(["a"])[0])

    @property
    def version(self) -> str:
        return hashlib.sha256(f"{self.model.digest} {self.model.config['transform_digest']}".encode()).hexdigest()

    def encode_images(self, images: Sequence[Image.Image]) -> Vectors:
        return self.model.encode_images(images).numpy()

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        return self.model.encode_texts(texts).numpy()

    def lengths(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Tokens (N,) of each text, up to the last that is no padding."""
        used = (self.model.tokenize(list(texts)).flatten(1) != 0).numpy()
        return used.shape[1] - np.argmax(used[:, ::-1], axis=1)

    def save(self, folder: Path) -> None:
        copy_known(self.folder, folder)
        about = {"scorer": self.name, "version": self.version, "dim": self.dim, "weights_sha256": self.model.digest}
        stages.write_json(folder / "scorer.json", {**about, "snapshot_md5": self.model.config.get("snapshot_md5", "")})


def find(config: ModelScorer, stage: Stage) -> Path:
    """The model's folder: the input `scorer`, or the folder or registered model that the settings name. Raises MissingInput, ConfigError."""
    if not config.model:
        return stage.input("scorer")
    return folder if (folder := Path(config.model)).is_dir() else registered(config.model)


def registered(name: str) -> Path:
    """The folder of NAME@ALIAS or NAME:VERSION, fetched once and kept under its digest. Raises ConfigError, MissingInput."""
    base, mark, tail = next((parts for mark in "@:" if (parts := name.partition(mark))[1]), (name, "", ""))
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not (mark and base and tail) or not uri:
        found = f"the model {name!r}" if uri else "no MLFLOW_TRACKING_URI in the environment"
        raise ConfigError(
            f"Found {found}, expected a model's folder, or NAME@ALIAS or NAME:VERSION of the registry at that address; correct scorer.model, or give --in scorer=PATH."
        )
    registry = Registry(uri)
    version = registry.holder(base, tail) if mark == "@" else next((found for found in registry.versions(base) if str(found.version) == tail), None)
    if version is None:
        raise MissingInput(f"Found no {name!r} in the registry {uri}, expected a registered model; register one with 'vlm promote', or give --in scorer=PATH.")
    folder = kept(version.weights)
    if not (folder / pretrained.WEIGHTS).exists():
        tmp = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
        fetched = registry.fetch(version, tmp)
        shutil.rmtree(folder, ignore_errors=True)
        fetched.rename(folder)
        shutil.rmtree(tmp, ignore_errors=True)
    return folder


def kept(weights_sha256: str) -> Path:
    return stages.home() / "models" / weights_sha256


def reload(embeddings: Path) -> Trained:
    """The scorer that made a folder of embeddings, from where its run found it. Raises MissingInput."""
    record, about = stages.record_of(embeddings) / "spec.json", json.loads((embeddings / "scorer.json").read_text())
    spec = json.loads(record.read_text()) if record.exists() else {"inputs": {}}
    named = spec["inputs"].get("scorer") or spec.get("config", {}).get("scorer", {}).get("model") or "nowhere"
    places = [Path(named), kept(about["weights_sha256"])]
    folder = next((place for place in places if (place / pretrained.WEIGHTS).exists()), None)
    if folder is None:
        raise MissingInput(f"Found no model at {places[0]} or {places[1]}, expected the scorer of {embeddings}; put it back, or run 'vlm embed' again.")
    return Trained(folder)


# ---------------------------------------------------------------- the scorer must not know the test


def refuse_overlap(config: ModelScorer, model: Path, stage: Stage) -> dict[str, int]:
    """Test pictures compared, per dataset. Raises DataError when one of them, or a look-alike, is among what the scorer was trained on."""
    known = _known(config, model, stage)
    if known is None or "eval_sets" not in stage.inputs:
        return {}
    compared, overlaps = overlap(known, stage.input("eval_sets"))
    if shared := {name: count for name, count in overlaps.items() if count}:
        listed = ", ".join(f"{name} {count}" for name, count in shared.items())
        raise DataError(
            f"Found test pictures that the scorer was trained on, or look-alikes of those ({listed}), expected none; train it on a subset without them, "
            "or make the test sets again from its shards."
        )
    return compared


def _known(config: ModelScorer, model: Path, stage: Stage) -> list[Look] | None:
    """What the scorer was trained on: as its folder says, or from the shards given; None if nobody knows and that is allowed."""
    if (model / FILE).exists():
        return read_known(model)
    missing = [name for name in ("trained_on", "eval_sets") if name not in stage.inputs]
    if missing and config.unchecked:
        return None
    if missing:
        raise ConfigError(
            f"Found no {FILE} in {model} and no --in {missing[0]}=PATH beside it, expected the scorer to say what it was trained on; train it with prints=true, "
            "give trained_on and eval_sets, or set scorer.unchecked=true for a model whose data is not here."
        )
    said = pretrained.read_settings(model).get("snapshot_md5", "")
    if (given := stage.versions["trained_on"]) != said:
        raise Incompatible(
            f"Found the shards {given} as trained_on, expected {said or 'none'}, which the scorer was trained on; give those, or train it with prints=true."
        )
    looks = []
    for done, sample in enumerate(read_samples(stage.input("trained_on"), "train"), 1):
        with Image.open(io.BytesIO(sample.jpeg)) as picture:
            looks.append(_look(f"~{sample.uid}", np.asarray(picture.convert("RGB")), sample.record["sha256"]))
        stage.progress("samples of the scorer compared", done)
    return looks


def overlap(known: Sequence[Look], eval_sets: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Per dataset: (test pictures, those of them in one group with a training picture by bytes or looks)."""
    tests = {name: _test_looks(read_dataset(eval_sets / name)) for name in datasets_in(eval_sets)}
    groups = group([*known, *(look for name in tests for look in tests[name])], Grouping(max_credit_share=0))
    trained = {groups[look.uid] for look in known}
    return {name: len(found) for name, found in tests.items()}, {name: sum(groups[look.uid] in trained for look in found) for name, found in tests.items()}


def _test_looks(dataset: EvalSet) -> list[Look]:
    rows = dataset.rows("test")
    pictures = zip(rows.tolist(), dataset.images(rows), strict=True)
    return [_look(f"{dataset.name}/{dataset.keys[row]}", np.asarray(picture), dataset.sha256[row]) for row, picture in pictures]


def _look(uid: str, pixels: NDArray[np.uint8], sha256: str) -> Look:
    bits, quality = pdq(pixels)
    return Look(uid, "", sha256, to_hex(phash(pixels)), to_hex(bits), quality)
