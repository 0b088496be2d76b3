"""A tiny two-tower model and a batch that holds everything an objective may need."""

from typing import Any

import torch
from torch import Tensor

from vlm_core.models import config as models
from vlm_core.models.patch_clusters import PatchClusters
from vlm_core.models.roi_features import WIDTH
from vlm_core.models.towers import TwoTower, unit
from vlm_core.objectives import base
from vlm_core.objectives import config as menu

# settings small enough for a test; the other kinds are small by themselves
SMALL: dict[str, dict[str, Any]] = {
    "image_contrastive": {"hidden": 24, "width": 12},
    "moco": {"hidden": 24, "width": 12, "queue": 30},
    "simsiam": {"hidden": 24, "bottleneck": 12},
    "nearest_neighbour": {"bank": 30},
    "masked_autoencoder": {"width": 16, "layers": 1, "heads": 2},
    "noise_adaptive": {"window": 30, "refit_every": 2},
    "queued_contrastive": {"queue": 30},
}
VOCABULARY = 40  # the last two ids are start and end, as in CLIP's
PAIRS, REFERENCES = 12, 20


# towers that an objective needs in the place of the usual ones
OTHER = {"cross_modal_mixup": ("text={kind: shared_text, context_length: 12, vocab_size: 40}", "fusion=null", "decoder=null"),
         "patch_grouping": ("image={kind: vit_grouping, image_size: 32, patch_size: 8, width: 16, layers: 2, last: 1, heads: 2, centres: 4}", "fusion=null", "roi_features=null"),
         "region_word": ("fusion=null",), "region_concept": ("fusion=null", "regions.reads=concepts")}  # fmt: skip


def towers(seed: int = 0, kind: str = "", **changes: Any) -> TwoTower:
    torch.manual_seed(seed)
    settings = models.TwoTower(
        image=models.Vit(image_size=32, patch_size=8, width=16, layers=1, heads=2),
        text=models.ClipTransformer(context_length=12, vocab_size=VOCABULARY, width=16, layers=1, heads=2), width=8,
        scale=models.LogitScale(init=10, bias=-10), retrieval=models.Retrieval(references=REFERENCES, neighbours=3, heads=2),
        fusion=models.JointFusion(width=32, layers=1, heads=2), decoder=models.CaptionDecoder(layers=1, heads=2),
        roi_features=models.RoiFeatures(regions=3, blocks=1),
        visual_tokens=models.PatchClusters(vocabulary=6), regions=models.Regions(width=16, blocks=1, levels=2, anchor_scale=2),
    )  # fmt: skip
    model = TwoTower(settings.but(*OTHER.get(kind, ()), *(f"{name}={value}" for name, value in changes.items())))
    if isinstance(model.visual_tokens, PatchClusters):
        model.visual_tokens.centres_VS.copy_(torch.randn(model.visual_tokens.centres_VS.shape, generator=torch.Generator().manual_seed(3)))
    if model.retrieval is not None:
        model.retrieval.keep(*(unit(torch.randn(value.shape)) for value in (model.retrieval.image_RF, model.retrieval.text_RS)))
    return model


def scenes(random: torch.Generator, scenes: int, dtype: torch.dtype) -> dict[str, Any]:
    """One bright square per scene, called like the scene's number: row b of the ids is phrase b, and the prompt of scene b."""
    corner_B2 = torch.randint(2, 14, (scenes, 2), generator=random)
    boxes = torch.cat([corner_B2, corner_B2 + 14], dim=1)[:, None].to(dtype)
    images = torch.zeros(scenes, 3, 32, 32, dtype=dtype)
    for row, (x, y) in enumerate(corner_B2.tolist()):
        images[row, :, y : y + 14, x : x + 14] = torch.randn(3, 1, 1, generator=random, dtype=dtype)
    asked = ids([[1 + row % 12, 13 + (5 * row) % 12] for row in range(scenes)])
    column = torch.arange(scenes)[:, None] * torch.tensor([0, 1, 1, 0]) + torch.tensor([-1, 0, 0, -1])
    return {"scene_images": images, "scene_boxes": boxes, "scene_phrases": torch.arange(scenes)[:, None],
            "scene_ids": asked, "scene_column_BX": column, "scene_real_BX": asked != 0}  # fmt: skip


def ids(texts: list[list[int]]) -> Tensor:
    """Start, words, end, padding."""
    longest = max(map(len, texts))
    return torch.tensor([[VOCABULARY - 2, *words, VOCABULARY - 1, *[0] * (longest - len(words))] for words in texts])


def batch(pairs: int = PAIRS, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Every pair has its own colours and words; views resemble their picture, further texts their text."""
    random = torch.Generator().manual_seed(1)
    patterns = torch.randn(pairs, 3, 4, 4, generator=random, dtype=dtype)
    images = 2 * patterns.repeat_interleave(8, 2).repeat_interleave(8, 3)
    words = [[1 + row % 12, 13 + (5 * row + row // 12) % 12] for row in range(pairs)]
    said = {"ids": [[30, *two, 31] for two in words], "caption_ids": [[32, *two, 33, 34][: 4 + row % 2] for row, two in enumerate(words)],
            "augmented_ids": [[31, *two] for two in words], "name_ids": [[two[0], 35] for two in words]}  # fmt: skip
    views = [images + 0.3 * torch.randn(images.shape, generator=random, dtype=dtype) for _ in range(2)]
    labels = torch.tensor([(row // 2) * (row % 4 < 2) for row in range(pairs)])
    neighbours = torch.stack([torch.randperm(REFERENCES, generator=random)[:3] for _ in range(pairs)])
    given = torch.arange(pairs) % 3 + 1
    said["prefix_ids"] = [[29, *text] for text in said["ids"]]
    superpixels = torch.arange(16).view(4, 4).div(8, rounding_mode="floor").flatten() + 2 * (torch.arange(16) % 4 // 2) + torch.zeros(pairs, 1).long()
    return {
        **scenes(random, pairs, dtype),
        "images": images,
        "views": views,
        "labels": labels,
        "superpixels": superpixels,
        "neighbours": neighbours,
        "regions": torch.cat([patterns.flatten(1)[:, None].expand(-1, 3, -1), torch.randn(pairs, 3, WIDTH - 48, generator=random, dtype=dtype) / 10], dim=-1),
        "picture_ids": torch.arange(pairs),
        "given": given,
        **{name: ids(texts) for name, texts in said.items()},
    }


def settings_of(kind: str, **changes: Any) -> menu.Objectives:
    return menu.Objectives.read({kind: {**SMALL.get(kind, {}), **changes}})


def built(settings: menu.Objectives, model: TwoTower, seed: int = 0) -> torch.nn.ModuleDict:
    torch.manual_seed(seed)
    return torch.nn.ModuleDict(base.build(settings, model)[0]).to(model.log_scale.dtype)


def terms(settings: menu.Objectives, modules: torch.nn.ModuleDict, model: TwoTower, given: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """What a training step computes; its random numbers depend on the seed only."""
    torch.manual_seed(seed)
    asked = {**given, **{name: value for module in modules.values() for name, value in module.ask(given).items()}}  # type: ignore[operator]
    out = model(asked, settings.needs)
    return {name: value for module in modules.values() for name, value in module(out, asked).items()}
