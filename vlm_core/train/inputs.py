"""What a step sees: the batch as loaded, pixels and ids as the towers want them, and whatever else the objectives need.

A further input is one function here (or in a module of its own) and one line in MAKERS; objectives name it in their `needs`.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlm_core.data.shards.augment import Transform
from vlm_core.data.shards.views import Beside
from vlm_core.models import tokenizer
from vlm_core.objectives.base import present
from vlm_core.objectives.config import Need
from vlm_core.train.body import Batch
from vlm_core.train.detections import Detections
from vlm_core.train.scenes import scenes

if TYPE_CHECKING:
    from vlm_core.train.config import Pretrain

IDS = {"ids": "texts", "caption_ids": "captions", "augmented_ids": "augmented_texts"}


@dataclass(frozen=True)
class Kit:
    """What makers may use."""

    config: "Pretrain"
    transform: Transform
    tokenize: tokenizer.Tokenizer
    neighbours_NK: Tensor | None = None  # references that each training sample resembles, where the model has a reference set
    detected: Detections | None = None  # what was found in the training samples, where the model reads regions

    def ids(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """Ids (B, L), without columns that only pad."""
        return tokenizer.trim(self.tokenize(texts)).to(device)

    def generator(self, batch: Batch, name: str) -> torch.Generator:
        """Random numbers that depend on the seed, the step and the first sample only; on the CPU."""
        where = f"{name}/{self.config.seed}/{batch.get('step', 0)}/{batch['uids'][0]}"
        return torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(where.encode(), digest_size=7).digest()))


Maker = Callable[[Batch, Kit, torch.device], dict[str, Any]]  # the batch as loaded -> what is laid over it


def labels(batch: Batch, kit: Kit, device: torch.device) -> dict[str, Any]:
    """`labels` (B,): a class per text."""
    return {"labels": labels_of(batch["texts"]).to(device)}


def picture_ids(batch: Batch, kit: Kit, device: torch.device) -> dict[str, Any]:
    """`picture_ids` (B,): a number per picture as it was fetched, so that two crops of one picture have the same."""
    return {"picture_ids": _numbers(batch["pictures"]).to(device)}


def neighbours(batch: Batch, kit: Kit, device: torch.device) -> dict[str, Any]:
    """`neighbours` (B, K): rows of the reference set."""
    return {"neighbours": present(kit.neighbours_NK)[batch["rows"].cpu()].long().to(device)}


def detections(batch: Batch, kit: Kit, device: torch.device) -> dict[str, Any]:
    """`regions` (B, R, F): of what was found in the pictures; `name_ids` (B, L): what it is called."""
    found, rows = present(kit.detected), batch["rows"].tolist()
    return {"regions": found.regions(rows).to(device), "name_ids": kit.ids(found.texts(rows, present(kit.config.model.roi_features).names), device)}


def prefix(batch: Batch, kit: Kit, device: torch.device) -> dict[str, Any]:
    """`prefix_ids` (B, L): the task prompt and the caption; `given` (B,): how many of them, the start token included, are not to be guessed."""
    config = present(kit.config.objectives.prefix_generation)
    ids_BL = kit.ids([f"{config.prompt} {text}".strip() for text in batch["texts"]], device)
    prompt = int((kit.tokenize([config.prompt]) != 0).sum()) - 1
    words_B = (ids_BL != 0).sum(1) - 1 - prompt  # of the caption; at least the end token is left to be guessed
    share_B = config.given * torch.rand(len(ids_BL), generator=kit.generator(batch, "prefix")).to(device)
    return {"prefix_ids": ids_BL, "given": prompt + (share_B * words_B.clamp(min=0)).long()}


MAKERS: dict[Need, Maker] = {
    "scenes": scenes, "prefix": prefix, "neighbours": neighbours, "detections": detections, "labels": labels, "picture_ids": picture_ids,
}  # fmt: skip


def assemble(batch: Batch, kit: Kit, needs: frozenset[Need], device: torch.device) -> Batch:
    """The batch with normalised pixels, ids, and what `needs` names."""
    pixels: dict[str, Any] = {"images": kit.transform.normalise(batch["images"])} if "images" in batch else {}
    if "views" in batch:
        pixels["views"] = [kit.transform.normalise(view) for view in batch["views"]]
    ids = {name: kit.ids(batch[key], device) for name, key in IDS.items() if key in batch}
    made = [make(batch, kit, device) for need, make in MAKERS.items() if need in needs]
    return {**batch, **pixels, **ids, **{name: value for part in made for name, value in part.items()}}


def beside(config: "Pretrain", transform: Transform) -> Beside:
    """What the reading processes make of every picture and text for the objectives, beside the crop itself."""
    needs, grouping, image = config.objectives.needs, config.objectives.patch_grouping, config.model.image
    views = 2 if needs & {"two_views", "key_view"} else int("second_view" in needs)
    if grouping is None:
        return Beside(config.views, transform, views, "augmented_text" in needs)
    return Beside(config.views, transform, views, "augmented_text" in needs, grouping.superpixels, image.image_size // image.patch_size)  # type: ignore[union-attr]


def labels_of(texts: Sequence[str]) -> Tensor:
    """A class per text: equal captions, in any case, are one class, here and on every other rank."""
    return _numbers([text.casefold().strip() for text in texts])


def _numbers(words: Sequence[str]) -> Tensor:
    """A positive number per word, the same on every rank."""
    return torch.tensor([1 + int.from_bytes(hashlib.blake2b(word.encode(), digest_size=7).digest()) for word in words])
