"""Batch -> embeddings: the two-tower model, and what every tower has in common."""

# B pairs, D joint width, F trunk features, E text tower width, L tokens

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm_core.config import build as build_part
from vlm_core.models import config as menu
from vlm_core.models.caption_decoder import CaptionDecoder
from vlm_core.models.fusion import Fused, Fusion
from vlm_core.models.regions import Regions
from vlm_core.models.retrieval import Retrieval
from vlm_core.models.roi_features import RoiFeatures
from vlm_core.models.visual_tokenizer import VisualTokenizer


class View(NamedTuple):
    """A further view of every picture."""

    features_BF: Tensor  # of the trunk, before the projection
    image_BD: Tensor  # unit norm, float32


class Outputs(NamedTuple):
    """What the towers made of a batch; every objective reads from here. What no objective `needs` is None and was not computed."""

    image_BD: Tensor  # unit norm, float32
    text_BD: Tensor  # unit norm, float32; row i belongs to row i of the images
    scale: Tensor  # multiplies the cosine, > 0
    bias: Tensor | None  # added to every logit
    caption_BD: Tensor | None = None  # unit norm, float32: of second captions, where the batch has them
    image_BF: Tensor | None = None  # features of the image trunk, before the projection
    raw_text_BD: Tensor | None = None  # texts before they got unit norm
    views: tuple[View, ...] = ()  # second_view: one, two_views: two
    augmented_BD: Tensor | None = None  # augmented_text: unit norm, float32
    patches_BPE: Tensor | None = None  # patches: states of the patches behind the last block
    tokens_BLE: Tensor | None = None  # tokens: states of the text tokens behind the last block
    patches_BPD: Tensor | None = None  # dense: the patches in the joint space, unit norm, float32
    tokens_BLD: Tensor | None = None  # dense: the text tokens in the joint space, unit norm, float32
    seen_BVE: Tensor | None = None  # image_mask: states of class token and patches of the masked picture that an objective asked for
    masked_BLE: Tensor | None = None  # text_mask: states of the tokens of the masked text that an objective asked for
    groups_BCP: Tensor | None = None  # grouping: which centre each patch belongs to, 1 or 0, with the gradient of the choice
    begun_BPE: Tensor | None = None  # fusion: states of class token and patches where fusion begins
    begun_BLE: Tensor | None = None  # fusion: states of the text tokens where fusion begins
    regions_BD: Tensor | None = None  # detections: unit norm, float32, of regions found in the picture
    attributes_BD: Tensor | None = None  # detections: unit norm, float32, of the names of what was found
    towers: "TwoTower | None" = None  # for further passes that one objective alone makes (hard negatives, scenes); read, never owned


class TwoTower(nn.Module):
    """Image and text tower with a shared logit scale. `.image(images_B3HW)` and `.text(ids_BL)` give raw embeddings (B, D).

    Args:
        fresh: read the packaged weights; False where a model folder is loaded over them anyway.
    """

    def __init__(self, config: menu.TwoTower, fresh: bool = True) -> None:
        super().__init__()
        self.config = config
        self.image: nn.Module = build_part(config.image, width=config.width, activation=config.activation, fresh=fresh)
        read_by = {"image": self.image} if isinstance(config.text, menu.Rendered | menu.SharedText) else {}
        self.text: nn.Module = build_part(config.text, width=config.width, activation=config.activation, fresh=fresh, **read_by)
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.scale.init)))
        self.bias = None if config.scale.bias is None else nn.Parameter(torch.tensor(config.scale.bias))
        self.fusion: Fusion | None = None if config.fusion is None else build_part(config.fusion, image=self.image, text=self.text)
        self.decoder = None
        if config.decoder is not None:
            self.decoder = CaptionDecoder(config.decoder, image_width=self.image_width, width=self.text_width, vocabulary=self.text.vocab_size)
        self.regions = None
        if config.regions is not None:
            self.regions = Regions(config.regions, self.image_width, self.text_width, self.joint_width, config.image.image_size)
        self.visual_tokens: VisualTokenizer | None = None
        if config.visual_tokens is not None:
            rows, patch_px = config.image.image_size // config.image.patch_size, config.image.patch_size  # type: ignore[union-attr]  # TwoTower._patch_grid
            self.visual_tokens = build_part(config.visual_tokens, rows=rows, patch_px=patch_px, fresh=fresh)
        self.retrieval: Retrieval | None = None
        if config.retrieval is not None:
            self.retrieval = Retrieval(config.retrieval, config.image, config.width)
        self.roi_features: RoiFeatures | None = None
        if config.roi_features is not None:
            self.roi_features = RoiFeatures(config.roi_features, self.image_width, config.image.layers)  # type: ignore[union-attr,arg-type]  # TwoTower._reads_regions

    @property
    def image_width(self) -> int:
        """Channels of the image trunk's features; `text_width` alike."""
        return int(self.image.features_width)  # type: ignore[arg-type]

    @property
    def text_width(self) -> int:
        return int(self.text.features_width)  # type: ignore[arg-type]

    @property
    def joint_width(self) -> int:
        """Channels of the embeddings, what packaged trunks add on their own included."""
        return self.config.width + max(getattr(getattr(tower, "head", None), "own", 0) for tower in (self.image, self.text))

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()

    def forward(self, batch: Mapping[str, Any], needs: frozenset[str] = frozenset()) -> Outputs:
        """Encode a batch, and what `needs` names beside it.

        Args:
            batch: `images` (B,3,H,W, normalised) or cached `image_features`; `ids` or cached `text_features`; second captions alike; `views`,
                `augmented_ids`, `masked_images`, `masked_ids`, `regions`, `name_ids` where objectives need them.
            needs: names of `objectives/config.py`.
        """
        image, text, dense = cast(Any, self.image), cast(Any, self.text), "dense" in needs
        begun_BPE: Tensor | None = None
        begun_BLE: Tensor | None = None
        all_BPE: Tensor | None
        tokens_BLE: Tensor | None
        if "fusion" in needs and self.fusion is not None:
            begun_BPE, begun_BLE = self.begin(batch["images"], batch["ids"])
            all_BPE, tokens_BLE = self.fusion.end_image(image, begun_BPE), self.fusion.end_text(text, begun_BLE)
        else:
            all_BPE = image.tokens(batch["images"]) if (dense or "patches" in needs) and "grouping" not in needs else None
            tokens_BLE = text.states(text.embed(batch["ids"]), batch["ids"]) if dense or "tokens" in needs else None
        groups_BCP: Tensor | None = None
        if "grouping" in needs:
            all_BPE, groups_BCP = image.grouped(batch["images"])
        image_BF = self._features(batch) if all_BPE is None else image.pool(all_BPE)
        raw_BD = self._texts(batch, "text_features", "ids") if tokens_BLE is None else text.head(text.pool(tokens_BLE, batch["ids"]))
        caption_BD = unit(self._texts(batch, "caption_features", "caption_ids")) if {"caption_features", "caption_ids"} & batch.keys() else None
        patches_BPE = None if all_BPE is None else all_BPE[:, 1:]
        return Outputs(
            unit(image.head(image_BF)), unit(raw_BD), self.scale, self.bias, caption_BD, image_BF, raw_BD,
            views=tuple(self._view(images_B3HW) for images_B3HW in batch["views"][: views_of(needs)]) if views_of(needs) else (),
            augmented_BD=unit(self.text(batch["augmented_ids"])) if "augmented_text" in needs else None,
            patches_BPE=patches_BPE, tokens_BLE=tokens_BLE,
            patches_BPD=unit(image.head(patches_BPE)) if dense else None, tokens_BLD=unit(text.head(tokens_BLE)) if dense else None,
            seen_BVE=image.tokens(**batch["masked_images"]) if "masked_images" in batch else None,
            masked_BLE=text.states(text.embed(batch["masked_ids"]), batch["masked_ids"]) if "masked_ids" in batch else None,
            groups_BCP=groups_BCP, begun_BPE=begun_BPE, begun_BLE=begun_BLE,
            regions_BD=unit(self.roi_features(image, batch["regions"])) if "detections" in needs and self.roi_features is not None else None,
            attributes_BD=unit(self.text(batch["name_ids"])) if "detections" in needs else None, towers=self,
        )  # fmt: skip

    def begin(self, images_B3HW: Tensor, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        """States of pictures and texts where fusion begins: made once, fused in as many pairings as wanted."""
        assert self.fusion is not None
        return self.fusion.begin_image(self.image, images_B3HW), self.fusion.begin_text(self.text, ids_BL)

    def fuse(self, begun_BPE: Tensor, begun_BLE: Tensor, ids_BL: Tensor) -> Fused:
        """Pairs that have seen each other; the ids say where texts end.

        Args:
            begun_BPE: of pictures, by `begin`.
            begun_BLE: of texts.
            ids_BL: of the texts.
        """
        assert self.fusion is not None
        out: Fused = self.fusion(self.image, self.text, begun_BPE, begun_BLE, ids_BL)
        return out

    def see(self, images_B3HW: Tensor) -> Tensor:
        """Raw embeddings (B, D) of pictures as this model means them: those of the image tower, with what they resemble mixed in where it has a reference set."""
        raw_BD: Tensor = self.image(images_B3HW)
        return raw_BD if self.retrieval is None else self.retrieval(unit(raw_BD), self.retrieval.look_up(images_B3HW))

    def _features(self, batch: Mapping[str, Any]) -> Tensor:
        out_BF: Tensor = batch["image_features"] if "image_features" in batch else self.image.features(batch["images"])  # type: ignore[operator]
        return out_BF

    def _texts(self, batch: Mapping[str, Any], features: str, ids: str) -> Tensor:
        out_BD: Tensor = self.text.head(batch[features]) if features in batch else self.text(batch[ids])  # type: ignore[operator]
        return out_BD

    def _view(self, images_B3HW: Tensor) -> View:
        features_BF = self.image.features(images_B3HW)  # type: ignore[operator]
        return View(features_BF, unit(self.image.head(features_BF)))  # type: ignore[operator]

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keep the logit scale in its bounds; the loop calls this after every optimiser step."""
        self.log_scale.clamp_(math.log(self.config.scale.min), math.log(self.config.scale.max))


def views_of(needs: frozenset[str]) -> int:
    """How many further views of every picture the image tower encodes."""
    return 2 if "two_views" in needs else int("second_view" in needs)


def unit(x_BD: Tensor) -> Tensor:
    """Unit-norm rows in at least float32, whatever the precision of the towers."""
    return F.normalize(widen(x_BD), dim=-1)


def widen(x: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 stay."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
