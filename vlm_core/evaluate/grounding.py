"""Grounding: which box belongs to which phrase, on scenes composed of held-out pictures (`data/shards/scenes.py`).

Every scene is asked for the captions of its objects and for those of other pictures. `ap` and `ap50` pool all phrases, as COCO's average precision of one category
does, since most phrases occur once; `recall_at_1` is the share of objects whose best box of their phrase overlaps them by half. `.._by_chance` names the
model's own boxes at random among the phrases asked: what is above it comes from reading, what it has comes from seeing where objects are.
"""

# K objects, D boxes found, T IoU thresholds, S side of a scene

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.transforms.v2 import functional

from vlm_core.data.pictures import boxed, contact_sheet
from vlm_core.data.shards.scene_config import Scenes
from vlm_core.data.shards.scenes import Scene, compose, cut_out
from vlm_core.evaluate.card import ProtocolCard, digest_of
from vlm_core.evaluate.detection import IOU_T, Boxes, interpolate, match
from vlm_core.evaluate.heldout import HeldOut, normalise_caption
from vlm_core.evaluate.metrics import Array, Ints
from vlm_core.evaluate.results import Results
from vlm_core.evaluate.statistics import bootstrap_metric
from vlm_core.models import regions, tokenizer
from vlm_core.models.concepts import build_parallel_concepts
from vlm_core.models.features import model_card_fields
from vlm_core.models.pretrained import Vlm

SCENES = Scenes()  # of the protocol, whatever a model was trained on
SEED = 0
MOST = 25  # boxes per scene
HALF = 0.5
SHOWN, SURE = 24, 0.1
EVERYWHERE = (0.0, 1e10)


class Question(NamedTuple):
    """A scene, what its objects are called, and what is asked."""

    scene: Scene
    phrases: list[str]  # asked, in random order
    phrase_K: Ints  # place of each object's phrase among them


class Judged(NamedTuple):
    """Boxes found in one scene, of all phrases."""

    score_D: Array
    right_TD: NDArray[np.bool_]
    objects: int


def questions(data: HeldOut, side: int, count: int) -> list[Question]:
    """Scenes of `side` pixels with what is asked; the same for every model of this size."""
    dice, found = torch.Generator().manual_seed(SEED), []
    texts = [normalise_caption(text) for text in data.texts]
    for _ in range(count):
        objects = int(torch.randint(SCENES.objects_min, SCENES.objects_max + 1, (), generator=dice))
        pairs = torch.randint(len(data.uids), (objects,), generator=dice).tolist()
        pictures = data.pictures([int(data.image_index[pair]) for pair in pairs])
        cuts = [cut_out(functional.pil_to_tensor(_square(picture, side))) for picture in pictures]
        scene = compose(cuts, side, SCENES, dice)
        shown = [int(data.text_index[pairs[one]]) for one in scene.objects]
        asked = [one for one in build_parallel_concepts(shown, range(len(texts)), SCENES.objects_max + SCENES.negatives, dice) if one >= 0]
        found.append(Question(scene, [texts[one] for one in asked], np.array([asked.index(one) for one in shown])))
    return found


def _square(picture: Image.Image, side: int) -> Image.Image:
    """No larger than the scene, so that cutting out costs little."""
    picture.thumbnail((2 * side, 2 * side))
    return picture


def answers(vlm: Vlm, asked: Sequence[Question]) -> list[regions.Found]:
    """Boxes and phrases that the model finds in every scene."""
    settings, found = vlm.towers.config.regions, []
    assert settings is not None
    for question in asked:
        numbers = torch.arange(len(question.phrases))[None]
        read = regions.ask(settings, question.phrases, numbers, lambda texts: tokenizer.trim(vlm.tokenize(texts)), vlm.tokenizer.context_length)
        images = vlm.pixels.normalise(question.scene.image_3SS[None]).to(vlm.device)
        read = regions.Asked(*(part.to(vlm.device) for part in read))
        found += regions.detect(vlm.towers, images, read, len(question.phrases), MOST)
    return found


def judge(boxes_K4: Tensor, phrase_K: Ints, found: regions.Found) -> Judged:
    """Which boxes are right, phrase by phrase, as COCO matches them."""
    truths, guesses = _columns(boxes_K4, phrase_K, np.ones(len(phrase_K))), _columns(found.boxes_D4, found.phrase_D.numpy(), found.score_D.numpy())
    right_TD = np.zeros((len(IOU_T), len(guesses.score)), bool)
    for phrase in np.unique(guesses.category):
        rows = np.flatnonzero(guesses.category == phrase)
        rows = rows[np.argsort(-guesses.score[rows], kind="stable")]
        right_TD[:, rows] = match(Boxes(*(column[rows] for column in guesses)), truths.of(int(phrase), 0), EVERYWHERE)[0]
    return Judged(guesses.score, right_TD, len(phrase_K))


def _columns(boxes_X4: Tensor, phrase_X: Ints, score_X: Array) -> Boxes:
    corners_X4 = boxes_X4.double().numpy()
    size_X2 = corners_X4[:, 2:] - corners_X4[:, :2]
    count = len(corners_X4)
    return Boxes(np.zeros(count, int), phrase_X, np.concatenate([corners_X4[:, :2], size_X2], 1), score_X, np.zeros(count, bool), size_X2.prod(1))


def pooled_ap(judged: Sequence[Judged], iou: float | None = None) -> float:
    """Average precision over all boxes of these scenes, at one overlap or the mean over .5:.95."""
    rows = slice(None) if iou is None else np.isclose(IOU_T, iou)
    score, right = np.concatenate([one.score_D for one in judged]), np.concatenate([one.right_TD[rows] for one in judged], axis=1)
    right = right[:, np.argsort(-score, kind="stable")].astype(int)
    return float(interpolate(right.cumsum(1), (1 - right).cumsum(1), sum(one.objects for one in judged))[0].mean())


def hits(boxes_K4: Tensor, phrase_K: Ints, found: regions.Found) -> Array:
    """1 for each object whose phrase's best box overlaps it by half, else 0."""
    right = np.zeros(len(phrase_K))
    for place, phrase in enumerate(phrase_K):
        own = (found.phrase_D == int(phrase)).nonzero()[:, 0]  # best first
        right[place] = float(len(own) and float(box_iou(found.boxes_D4[own[:1]], boxes_K4[place : place + 1])) >= HALF)
    return right


def by_chance(found: regions.Found, phrases: int, dice: torch.Generator) -> regions.Found:
    """The same boxes and scores with names drawn at random among the phrases asked."""
    return found._replace(phrase_D=torch.randint(phrases, found.phrase_D.shape, generator=dice))


def ground_heldout(vlm: Vlm, data: HeldOut, version: str, count: int, results: Results, sheet: Path) -> None:
    """Measure a model with regions, and draw what it finds."""
    asked = questions(data, vlm.pixels.size_px, count)
    found, dice = answers(vlm, asked), torch.Generator().manual_seed(SEED)
    judged = [judge(one.scene.boxes_K4, one.phrase_K, guess) for one, guess in zip(asked, found, strict=True)]
    named = [by_chance(guess, len(one.phrases), dice) for one, guess in zip(asked, found, strict=True)]
    chance = [judge(one.scene.boxes_K4, one.phrase_K, guess) for one, guess in zip(asked, named, strict=True)]
    card = ProtocolCard.from_config(
        model_card_fields(vlm),
        {"task": "grounding", "dataset": "heldout", "dataset_version": version, "split": "heldout", "split_sha256": digest_of(data.uids), "n": count},
        {"max_detections": MOST, "language": "all", "metrics": {
            "ap": "all phrases pooled, IoU .5:.95", "ap50": "IoU .5", "recall_at_1": "best box of the phrase, IoU .5",
            "ap50_by_chance": "own boxes, names at random", "scenes": SCENES.model_dump(mode="json"), "seed": SEED,
        }},
    )  # fmt: skip
    for name, parts, iou in (("ap", judged, None), ("ap50", judged, HALF), ("ap50_by_chance", chance, HALF)):
        results.whole(card, name, bootstrap_metric(_of(parts, iou), count, 1_000, results.seed), count)
    ids = [f"{place:05d}/{number}" for place, one in enumerate(asked) for number in range(len(one.phrase_K))]
    names = [one.phrases[int(phrase)] for one in asked for phrase in one.phrase_K]
    for name, guesses in (("recall_at_1", found), ("recall_at_1_by_chance", named)):
        right = np.concatenate([hits(one.scene.boxes_K4, one.phrase_K, guess) for one, guess in zip(asked, guesses, strict=True)])
        results.per_sample(card, name, ids, right, label=names, group=[one[:5] for one in ids], clustered=True)
    _draw(asked, found, sheet)


def _of(parts: Sequence[Judged], iou: float | None) -> Callable[[Ints], float]:
    return lambda chosen: pooled_ap([parts[int(place)] for place in chosen], iou)


def _draw(asked: Sequence[Question], found: Sequence[regions.Found], sheet: Path) -> None:
    """Scenes with the best box of every phrase that the model is sure of, and what those phrases are."""
    tiles = []
    for one, guess in list(zip(asked, found, strict=True))[:SHOWN]:
        first = [int((guess.phrase_D == phrase).nonzero()[0]) for phrase in guess.phrase_D.unique().tolist()]
        sure = [place for place in first if float(guess.score_D[place]) >= SURE]
        boxes = {"limegreen": one.scene.boxes_K4.tolist(), "red": guess.boxes_D4[sure].tolist()}
        picture = boxed(functional.to_pil_image(one.scene.image_3SS), boxes)
        tiles.append((picture, ", ".join(one.phrases[int(guess.phrase_D[place])] for place in sure) or "nothing"))
    contact_sheet(tiles, sheet)
