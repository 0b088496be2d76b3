"""The maker of scenes: composed from the batch's own pictures, asked for their captions, for those of other pictures of the batch, and, where these are fewer
than `scenes.negatives` asks for, for names of the dictionary (GLIP adds names of other classes, DetCLIP concepts of its dictionary).
"""

# B pairs, C scenes, K objects, M phrases asked for, S side, 4 = left, top, right, bottom

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from vlm_core.data.pictures import boxed, contact_sheet
from vlm_core.data.shards.augment import Transform
from vlm_core.data.shards.samples import Samples
from vlm_core.data.shards.scene_config import Scenes
from vlm_core.data.shards.scenes import CutOut, compose, cut_out
from vlm_core.models import regions, tokenizer
from vlm_core.models.concepts import build_parallel_concepts, packaged_concepts
from vlm_core.models.region_text import words_of
from vlm_core.train.body import Batch

if TYPE_CHECKING:
    from vlm_core.train.config import Pretrain
    from vlm_core.train.inputs import Kit

SHOWN = 24


def scenes(batch: Batch, kit: "Kit", device: torch.device) -> dict[str, Any]:
    """`scene_images` (C, 3, S, S) normalised, `scene_boxes` (C, K, 4) and `scene_phrases` (C, K), -1 for padding; `scene_ids`, `scene_column`, `scene_real`: what
    is asked for, as the model reads it (`models/regions.py` Asked).
    """
    dice, names = kit.generator(batch, "scenes"), list(dict.fromkeys(phrase(text) for text in batch["texts"]))
    number = {name: place for place, name in enumerate(names)}
    images_C3SS, boxes_CK4, phrase_CK = composed(batch["images"].cpu(), [number[phrase(text)] for text in batch["texts"]], kit.config.scenes, dice)
    total = kit.config.scenes.objects_max + kit.config.scenes.negatives
    names += packaged_concepts().sample_negatives(names, total - len(names), dice) if total > len(names) else []
    asked = [build_parallel_concepts([one for one in shown if one >= 0], range(len(names)), total, dice) for shown in phrase_CK.tolist()]
    settings, tokenize = kit.config.model.regions, kit.tokenize
    assert settings is not None  # fits.py
    if settings.reads == "prompt":
        lengths = [len(words_of(ids)) for ids in tokenize([". ", *names]).tolist()]
        lengths, room = [length + lengths[0] for length in lengths[1:]], tokenize.context_length - 2
        asked = [fitting(one, shown, lengths, room) for one, shown in zip(asked, phrase_CK.tolist(), strict=True)]
    found = regions.ask(settings, names, torch.tensor(asked), lambda texts: tokenizer.trim(tokenize(texts)), tokenize.context_length)
    made = {
        "images": kit.transform.normalise(images_C3SS),
        "boxes": boxes_CK4,
        "phrases": phrase_CK,
        "ids": found.ids,
        "column_BX": found.column_BX,
        "real_BX": found.real_BX,
    }
    return {f"scene_{name}": value.to(device) for name, value in made.items()}


def fitting(asked: list[int], shown: Sequence[int], lengths: Sequence[int], room: int) -> list[int]:
    """What is asked for with -1 in the place of what has no room in the prompt: what is shown comes first, then the others in their order.

    Args:
        asked: phrases, -1 for padding.
        shown: those of them that the scene shows.
        lengths: tokens of every phrase with what parts it from the next.
        room: tokens of the prompt.
    """
    left, kept = room - sum(lengths[one] for one in asked if one >= 0 and one in shown), list[int]()
    for one in asked:
        there = one >= 0 and (one in shown or lengths[one] <= left)
        left -= lengths[one] if there and one not in shown else 0
        kept.append(one if there else -1)
    return kept


def sheet(config: "Pretrain", samples: Samples, transform: Transform, folder: Path) -> dict[str, str]:
    """Some scenes with their boxes, for the report; {} for a run without scenes."""
    if "scenes" not in config.objectives.needs:
        return {}
    rows, dice = range(min(len(samples), SHOWN)), torch.Generator().manual_seed(config.seed)
    squares_B3SS = torch.stack([transform.eval_square(Image.open(io.BytesIO(samples.jpeg(row)))) for row in rows])
    texts = [str(samples.record(row)["caption"]) for row in rows]
    images_C3SS, boxes_CK4, phrase_CK = composed(squares_B3SS, list(rows), config.scenes.but("share=1"), dice)
    tiles = []
    for image_3SS, boxes_K4, phrase_K in zip(images_C3SS, boxes_CK4, phrase_CK, strict=True):
        real_K = phrase_K >= 0
        picture = boxed(functional.to_pil_image(image_3SS), {"limegreen": boxes_K4[real_K].tolist()})
        tiles.append((picture, ", ".join(texts[row] for row in phrase_K[real_K].tolist())))
    contact_sheet(tiles, folder / "scenes.png")
    return {"scenes of training pictures with their boxes": "scenes.png"}


def phrase(text: str) -> str:
    """What an object is called: its caption, so that captions of one meaning are one phrase."""
    return " ".join(text.casefold().split())


def composed(images_B3SS: Tensor, phrase_B: list[int], config: Scenes, dice: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(scenes uint8 (C, 3, S, S), boxes (C, K, 4), phrases (C, K), -1 for padding). Every picture is the first object of some scene, if there are enough scenes."""
    pictures, cuts = len(images_B3SS), dict[int, CutOut]()
    first, scenes = torch.randperm(pictures, generator=dice).tolist(), max(1, round(config.share * pictures))
    images, boxes_CK4 = [], torch.zeros(scenes, config.objects_max, 4)
    phrase_CK = torch.full((scenes, config.objects_max), -1)
    for place in range(scenes):
        objects = int(torch.randint(config.objects_min, config.objects_max + 1, (), generator=dice))
        rows = [first[place % pictures], *torch.randint(pictures, (objects - 1,), generator=dice).tolist()]
        for row in rows:
            if row not in cuts:
                cuts[row] = cut_out(images_B3SS[row])
        scene = compose([cuts[row] for row in rows], images_B3SS.shape[-1], config, dice)
        images.append(scene.image_3SS)
        boxes_CK4[place, : len(scene.objects)] = scene.boxes_K4
        phrase_CK[place, : len(scene.objects)] = torch.tensor([phrase_B[rows[one]] for one in scene.objects])
    return torch.stack(images), boxes_CK4, phrase_CK
