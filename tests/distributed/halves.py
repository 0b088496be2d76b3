"""What one of two ranks does in `test_ranks.py`; a file of its own, so that the other processes import little."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.objectives.world import SMALL, batch, built, ids, towers
from vlm_core.models.tokenizer import trim
from vlm_core.models.towers import TwoTower, unit
from vlm_core.objectives import config as menu
from vlm_core.objectives.gather import exchange, gather, of_first
from vlm_core.objectives.masked_autoencoder import random_masking
from vlm_core.objectives.masks import IGNORED
from vlm_core.objectives.mixup import mixup_infonce

PAIRS = 8  # of all ranks
OBJECTIVES: dict[str, dict[str, Any]] = {
    "clip, local loss": {"image_text_contrastive": {}},
    "clip, local loss in chunks": {"image_text_contrastive": {"chunk_size": 3}},
    "clip, whole loss on every rank": {"image_text_contrastive": {"local_loss": False}},
    "align": {"image_text_contrastive": {"label_smoothing": 0.1}},
    "siglip": {"sigmoid": {}},
    "siglip in chunks": {"sigmoid": {"chunk_size": 3}},
    "both, weighted": {"image_text_contrastive": {"weight": 0.3}, "sigmoid": {"weight": 2.0}},
    "alip": {"weighted_captions": {}},
    "pyramidclip": {"soft_target": {"chunk_size": 3}, "hierarchical": {"chunk_size": 3}, "cross_level": {"chunk_size": 3, "regions": 0.4}},
    "kelip": {"multi_crop": {"chunk_size": 3}},
    "otter": {"optimal_transport": {"chunk_size": 3}},
    "declip": {"multi_view": {}, "nearest_neighbour": SMALL["nearest_neighbour"], "simsiam": SMALL["simsiam"]},
    "laclip-mt": {"multi_text": {}},
    "filip": {"token_wise": {"chunk_size": 3}},
    "filip, thinned": {"token_wise": {"top_k": 2}},
    "unicl": {"image_text_label": {"chunk_size": 3}},
    "slip": {"image_text_contrastive": {}, "image_contrastive": {**SMALL["image_contrastive"], "chunk_size": 3}},
    "moco": {"image_text_contrastive": {}, "moco": SMALL["moco"]},
    "fiber's queue": {"queued_contrastive": {"queue": 12}},
    "nlip": {"noise_adaptive": {"window": 16, "refit_every": 1, "chunk_size": 3}},
    "coca": {"captioning": {}},
    "pali": {"prefix_generation": {}},
    "beit": {"masked_image": {}},
    "mae": {"masked_autoencoder": SMALL["masked_autoencoder"]},
    "segclip": {"patch_grouping": {}, "image_text_contrastive": {}},
    "ra-clip": {"retrieval_augmented": {"chunk_size": 3}},
    "oner": {"cross_modal_mixup": {"chunk_size": 3}},
    "albef": {"image_text_matching": {}},
    "flava": {"masked_cross_modal": {}, "fused_masked_language": {}, "masked_language": {}},
}


class Whole(nn.Module):
    """Towers and objectives in float64; gives the loss of a step, as the loop computes it."""

    def __init__(self, chosen: dict[str, Any]) -> None:
        super().__init__()
        self.settings = menu.Objectives.read(chosen)
        self.towers: TwoTower = towers(kind=next(iter(chosen))).double()
        self.towers.image.eval()  # a grouping tower draws no noise then; nothing else in it changes
        self.objectives = built(self.settings, self.towers)

    def forward(self, given: dict[str, Any]) -> Tensor:
        if "image_mask" in self.settings.needs and "seen" in given:
            given = {**given, "masked_images": {"images_B3HW": given["images"], "seen_BV": given["seen"]}}
        out = self.towers(given, self.settings.needs)
        weights = {kind: settings.weight for kind, settings in self.settings.chosen().items()}
        terms = [weights[kind] * objective.factor(name) * value for kind, objective in self.objectives.items() for name, value in objective(out, given).items()]  # type: ignore[operator]
        return torch.stack(terms).sum()


def batches() -> list[dict[str, Any]]:
    """Two steps of all ranks; captions of the second half are longer, so that ranks cut their ids at different lengths."""
    steps = []
    for step in range(2):
        given = batch(PAIRS, torch.float64)
        texts = [[5 + step, 10 + row, *[30, 31] * (row >= PAIRS // 2)] for row in range(PAIRS)]
        steps.append({**given, **masked(ids(texts), PAIRS), "images": given["images"].roll(step, 0), "ids": ids(texts)})
    return steps


def masked(words: Tensor, pairs: int) -> dict[str, Tensor]:
    """Words and patches hidden by place, not by chance: the last pairs hide most."""
    hidden = (words < 38) & (words > 0) & (torch.arange(len(words))[:, None] + torch.arange(words.shape[1]) > 5)
    names = ("fused_ids", "fused_labels"), ("hidden_words", "hidden_word_labels"), ("masked_ids", "masked_labels")
    named = {name: value for both in names for name, value in zip(both, (words.where(~hidden, 38), words.where(hidden, -100)), strict=True)}
    hidden_BP = torch.arange(16).expand(pairs, -1) < torch.arange(pairs)[:, None]
    noise_BP = torch.rand(pairs, 16, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    seen_BV, removed_BP, restore_BP = random_masking(noise_BP, 0.75)
    noise_BL = torch.rand(words.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return {**named, "hidden_patches": hidden_BP, "masked_patches": hidden_BP, "seen": seen_BV, "removed": removed_BP, "restore": restore_BP,
            "mixture_share": 0.4, "mixture_patches": noise_BP, "mixture_words": noise_BL, **negatives(pairs)}  # fmt: skip


def negatives(pairs: int) -> dict[str, Tensor]:
    """The next row of the own half, and for one pair of the second half none: ranks have different numbers of negatives."""
    half = pairs // 2
    next_B = torch.arange(pairs) // half * half + (torch.arange(pairs) + 1) % half
    next_B[-1] = IGNORED
    return {"negative_text": next_B, "negative_image": next_B}


def part(given: dict[str, Any], rows: slice) -> dict[str, Any]:
    cut = {
        name: [view[rows] for view in value] if isinstance(value, list) else value[rows] if isinstance(value, Tensor) else value
        for name, value in given.items()
    }
    ids_BL = trim(cut["ids"])
    own = {name: cut[name].where(cut[name] == IGNORED, cut[name] - rows.start) for name in ("negative_text", "negative_image")}  # rows of this half
    return {**cut, **own, "ids": ids_BL, "mixture_words": cut["mixture_words"][:, : ids_BL.shape[1]]}


def two_steps(model: nn.Module, whole: Whole, rows: slice) -> tuple[list[float], dict[str, Tensor], dict[str, Tensor]]:
    """(losses, gradients of the second step, buffers after it): the second sees what the first left in queues and means."""
    losses = []
    for given in batches():
        whole.zero_grad()
        loss = model(part(given, rows))
        loss.backward()
        losses.append(float(loss.detach()))
    gradients = {name: value.grad.clone() for name, value in whole.named_parameters() if value.grad is not None}
    return losses, gradients, {name: value.clone() for name, value in whole.named_buffers()}


def steps_of_rank(rank: int) -> dict[str, Any]:
    """What DistributedDataParallel leaves in `.grad`, for every objective, on half of the batch."""
    results = {}
    for name, chosen in OBJECTIVES.items():
        whole = Whole(chosen)
        model = DistributedDataParallel(whole, broadcast_buffers=False, find_unused_parameters=True)
        results[name] = two_steps(model, whole, slice(rank * PAIRS // 2, (rank + 1) * PAIRS // 2))
    return results


def free_pairs() -> list[Tensor]:
    random = torch.Generator().manual_seed(2)
    return [unit(torch.randn(PAIRS, 5, dtype=torch.float64, generator=random)).requires_grad_() for _ in range(2)]


def mixed(rank: int) -> tuple[float, list[Tensor]]:
    """(mixup loss, gradients of all free embeddings as this rank has them): the rank scores its half against all."""
    image, text = free_pairs()
    half = slice(rank * PAIRS // 2, (rank + 1) * PAIRS // 2)
    loss = mixup_infonce(exchange(image[half], text[half]), 0.7, 5.0, chunk_size=3)
    return float(loss.detach()), [*torch.autograd.grad(loss, (image, text))]


def gathered(rank: int) -> tuple[Tensor, Tensor]:
    """(all rows, gradient of this rank's rows) where rank r weighs gathered row j by (r + 1) * (j + 1)."""
    own_BD = torch.full((2, 1), float(rank), requires_grad=True)
    all_ND = gather(own_BD)
    ((rank + 1) * torch.arange(1.0, 5.0)[:, None] * all_ND).sum().backward()
    assert own_BD.grad is not None
    return all_ND.detach(), own_BD.grad


def of_rank(rank: int) -> dict[str, Any]:
    return {"gathered": gathered(rank), "steps": steps_of_rank(rank), "mixed": mixed(rank), "coin": float(of_first(torch.tensor(float(rank))))}
