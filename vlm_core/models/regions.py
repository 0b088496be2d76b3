"""A dense head over the patches: boxes, how central a place is in its box, and region vectors that are compared with words or concepts.

Sources: simple pyramid on a plain ViT, ViTDet, arXiv 2203.16527; head shared by all levels, FCOS, arXiv 1904.01355; alignment, GLIP, arXiv 2112.03857, and
DetCLIP, arXiv 2209.09407. GLIP and DetCLIP have Swin with FPN and DyHead; here the towers and a convolutional head do, and GLIP's deep fusion is the gated
fusion inside the towers (FIBER) where the model has one; without it words and regions first meet in the alignment.
"""

# B pictures, P patches, A places of all levels, Q head width, E tower width, D joint width, N phrases, L tokens, X words of a prompt or concepts

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image

from vlm_core.models import config as menu
from vlm_core.models import region_targets
from vlm_core.models.concepts import packaged_concepts
from vlm_core.models.region_text import RegionConceptHead, RegionWordHead, grounding_prompt, phrase_scores, words_of

if TYPE_CHECKING:
    from vlm_core.models.towers import TwoTower

GROUPS = 8  # of GroupNorm, at most
SAME = 0.6  # overlap above which two boxes of one phrase are one (ATSS)


class Dense(NamedTuple):
    """What the head says about every place."""

    region_BAQ: Tensor
    distance_BA4: Tensor  # pixels to the left, top, right and bottom of the object; float32
    centre_BA: Tensor  # logits of centerness; float32
    centres_A2: Tensor  # middle of each place, pixels
    anchors_A4: Tensor
    levels: tuple[int, ...]  # number of places of each


class Asked(NamedTuple):
    """Phrases as the model reads them."""

    ids: Tensor  # of a prompt per picture (B, X), or of each phrase alone (N, L)
    column_BX: Tensor  # which phrase a word or concept stands for, -1 for none
    real_BX: Tensor  # false for padding


class Found(NamedTuple):
    """Boxes of one picture, best first."""

    boxes_D4: Tensor  # left, top, right, bottom, pixels
    phrase_D: Tensor  # place in the list of phrases
    score_D: Tensor


class Regions(nn.Module):
    """Args: image_width, text_width, joint_width: of the towers; image_px: side of the square that the image tower reads."""

    def __init__(self, config: menu.Regions, image_width: int, text_width: int, joint_width: int, image_px: int) -> None:
        super().__init__()
        self.config, self.image_px, width = config, image_px, config.width
        self.enter = nn.Conv2d(image_width, width, 1)
        self.finer = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.coarser = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(config.levels - 2))
        self.smooth = nn.ModuleList(_block(width) for _ in range(config.levels))
        self.to_region = nn.Sequential(*[_block(width) for _ in range(config.blocks)], nn.Conv2d(width, width, 3, padding=1))
        self.to_box = nn.Sequential(*[_block(width) for _ in range(config.blocks)])
        self.say_distance, self.say_centre = nn.Conv2d(width, 4, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)
        self.stretch = nn.Parameter(torch.ones(config.levels))
        for last in (self.say_distance, self.say_centre):
            nn.init.normal_(last.weight, std=0.01)
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.align = RegionWordHead(width, text_width) if config.reads == "prompt" else RegionConceptHead(width, joint_width)

    def forward(self, patches_BPE: Tensor) -> Dense:
        side = math.isqrt(patches_BPE.shape[1])
        x_BQSS = self.enter(patches_BPE.transpose(1, 2).unflatten(2, (side, side)))
        maps = [self.finer(x_BQSS), x_BQSS]
        for step in self.coarser:
            maps.append(step(maps[-1]))
        regions, ranges, centres = [], [], []
        for level, (smooth, map_BQSS) in enumerate(zip(self.smooth, maps, strict=False)):
            seen_BQSS = smooth(map_BQSS)
            box_BQSS, stride = self.to_box(seen_BQSS), self.image_px / map_BQSS.shape[-1]
            raw_BA4 = _flat(self.say_distance(box_BQSS)).float() * self.stretch[level].float()
            ranges.append(raw_BA4.clamp(max=6).exp() * (stride * self.config.anchor_scale / 2))
            regions.append(_flat(self.to_region(seen_BQSS)))
            centres.append(_flat(self.say_centre(box_BQSS))[..., 0].float())
        anchors_A4, levels = anchors([map_BQSS.shape[-1] for map_BQSS in maps], self.image_px, self.config.anchor_scale)
        anchors_A4 = anchors_A4.to(patches_BPE.device)
        middle_A2 = (anchors_A4[:, :2] + anchors_A4[:, 2:]) / 2
        return Dense(torch.cat(regions, 1), torch.cat(ranges, 1), torch.cat(centres, 1), middle_A2, anchors_A4, levels)


def _block(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(math.gcd(GROUPS, width), width), nn.ReLU())


def _flat(map_BQSS: Tensor) -> Tensor:
    return map_BQSS.flatten(2).transpose(1, 2)


@functools.lru_cache(8)
def _anchors(sides: tuple[int, ...], image_px: int, scale: float) -> Tensor:
    parts = []
    for side in sides:
        stride = image_px / side
        middle = (torch.arange(side) + 0.5) * stride
        y, x = torch.meshgrid(middle, middle, indexing="ij")
        parts.append(torch.stack([x, y, x, y], -1).view(-1, 4) + torch.tensor([-1, -1, 1, 1]) * stride * scale / 2)
    return torch.cat(parts)


def anchors(sides: Sequence[int], image_px: int, scale: float) -> tuple[Tensor, tuple[int, ...]]:
    """(boxes (A, 4) of `scale` strides around the middle of every place, number of places of each level)."""
    return _anchors(tuple(sides), image_px, scale), tuple(side**2 for side in sides)


def ask(config: menu.Regions, phrases: Sequence[str], asked_BM: Tensor, tokenize: Callable[[Sequence[str]], Tensor], context_length: int) -> Asked:
    """What the towers read to look for these phrases.

    Args:
        config: of the model's regions.
        phrases: all of them.
        asked_BM: which of them are looked for in each picture, -1 for none.
        tokenize: texts -> ids (N, L), zero-padded, with a special token in front and behind.
        context_length: tokens that a prompt may have.
    """
    if config.reads == "concepts":
        texts = [packaged_concepts().enrich(phrase) for phrase in phrases] if config.definitions else list(phrases)
        return Asked(tokenize(texts), asked_BM, asked_BM >= 0)
    ids_NL = tokenize(phrases).tolist()
    words, separator = [words_of(ids) for ids in ids_NL], words_of(tokenize([". "])[0].tolist())
    ends = ids_NL[0][0], [one for one in ids_NL[0] if one != 0][-1]
    prompts = []
    for asked_M in asked_BM.tolist():
        chosen = [phrase for phrase in asked_M if phrase >= 0]
        ids, owner = grounding_prompt([words[phrase] for phrase in chosen], separator, ends, context_length)
        prompts.append((ids, [chosen[place] if place >= 0 else -1 for place in owner]))
    longest = max(len(ids) for ids, _ in prompts)
    ids_BX = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in prompts])
    return Asked(ids_BX, torch.tensor([owner + [-1] * (longest - len(owner)) for _, owner in prompts]), ids_BX != 0)


def ground(towers: "TwoTower", images_B3SS: Tensor, asked: Asked) -> tuple[Dense, Tensor]:
    """(what the head says, logits (B, A, X) of every place against every word or concept, float32)."""
    image, text, regions = cast(Any, towers.image), cast(Any, towers.text), towers.regions
    assert regions is not None
    if regions.config.reads == "concepts":
        dense = regions(image.tokens(images_B3SS)[:, 1:])
        words_BXE = text(asked.ids)[asked.column_BX.clamp(min=0)]
    elif towers.fusion is not None:
        fused = towers.fuse(*towers.begin(images_B3SS, asked.ids), asked.ids)
        dense, words_BXE = regions(fused.image_BPW[:, 1:]), fused.text_BLW
    else:
        dense, words_BXE = regions(image.tokens(images_B3SS)[:, 1:]), text.states(text.embed(asked.ids))
    with torch.autocast(images_B3SS.device.type, enabled=False):
        kind = dense.centre_BA.dtype
        return dense, regions.align(dense.region_BAQ.to(kind), words_BXE.to(kind))


@torch.inference_mode()
def detect(towers: "TwoTower", images_B3SS: Tensor, asked: Asked, phrases: int, most: int = 100) -> list[Found]:
    """The boxes of every picture: chance of the phrase (mean of its words) times centerness, one box per object and phrase.

    Args:
        towers: in eval mode, with regions.
        images_B3SS: normalised pixels.
        asked: by `ask`.
        phrases: how many there are in all.
        most: boxes per picture.
    """
    dense, logits_BAX = ground(towers, images_B3SS, asked)
    assert towers.regions is not None
    chance_BAX = logits_BAX.sigmoid() * asked.real_BX[:, None]
    score_BAN = phrase_scores(chance_BAX, asked.column_BX, phrases) * dense.centre_BA.sigmoid()[..., None]
    boxes_BA4 = region_targets.boxes_at(dense.centres_A2, dense.distance_BA4)
    found = []
    for boxes_A4, score_AN in zip(boxes_BA4, score_BAN, strict=True):
        best = score_AN.flatten().topk(min(10 * most, score_AN.numel()))
        boxes_D4 = clip_boxes_to_image(boxes_A4[best.indices // phrases], (towers.regions.image_px,) * 2)
        keep = batched_nms(boxes_D4, best.values, best.indices % phrases, SAME)[:most]
        keep = keep[best.values[keep] > 0]  # phrases that nobody asked for have 0
        found.append(Found(boxes_D4[keep].cpu(), (best.indices % phrases)[keep].cpu(), best.values[keep].cpu()))
    return found
