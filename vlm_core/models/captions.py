"""What a model says about pictures: captions that its decoder writes, how likely it finds given ones, and whether its fusion takes a pair for one.

captions_of(vlm, images)                              # written word by word, the likeliest word each time
caption_log_likelihood(vlm, images, texts)            # (I, T) mean log p of a text's tokens: classification without a joint space (PaLI)
match_probability(vlm, images, texts)                 # (B,) of pairs
"""

# I pictures, T texts, B pairs, L tokens, W words of all texts, K places that captions look at, E channels of the text tower

from collections.abc import Sequence
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vlm_core.errors import Incompatible
from vlm_core.models.pretrained import Vlm
from vlm_core.models.tokenizer import special_of, trim
from vlm_core.models.towers import TwoTower

WORDS = 512  # whose logits over the vocabulary exist at a time


def _need(vlm: Vlm, part: str, objective: str) -> None:
    if getattr(vlm.towers, part) is None:
        raise Incompatible(f"Found a model with model.{part}=null, expected one that was trained with objectives.{objective}; choose another model.")


def _pictures(vlm: Vlm, images: Sequence[Image.Image]) -> Tensor:
    see = vlm.transform()
    return torch.stack([see(image) for image in images]).to(vlm.device)


@torch.inference_mode()
def caption_log_likelihood(vlm: Vlm, images: Sequence[Image.Image], texts: Sequence[str], prompt: str = "", batch: int = 64) -> Tensor:
    """Mean log p of the tokens of every text, its end included, given every picture (I, T), float32, on the CPU.

    `prompt` is the task prompt in front of the texts, as the model was trained with; its tokens are given and not scored.
    """
    _need(vlm, "decoder", "captioning or prefix_generation")
    ids_TL = trim(vlm.tokenize([f"{prompt} {text}".strip() for text in texts])).to(vlm.device)
    given = int((vlm.tokenize([prompt]) != 0).sum()) - 1
    text: Any = vlm.towers.text
    states_TLE = text.states(text.embed(ids_TL), ids_TL)[:, :-1]
    parts = [_pictures(vlm, images[begin : begin + batch]) for begin in range(0, len(images), batch)]
    rows = [_likelihood(vlm.towers, seen_KE, ids_TL, states_TLE, given) for part in parts for seen_KE in seen(vlm.towers, part)]
    return torch.stack(rows).float().cpu() if rows else torch.empty(0, len(texts))


def seen(towers: TwoTower, images_B3HW: Tensor) -> Tensor:
    """What captions look at (B, K, E)."""
    image, decoder = cast(Any, towers.image), cast(Any, towers.decoder)
    out_BKE: Tensor = decoder.see(image.tokens(images_B3HW)[:, 1:])
    return out_BKE


def _likelihood(towers: TwoTower, seen_KE: Tensor, ids_TL: Tensor, states_TLE: Tensor, given: int) -> Tensor:
    """Of every text (T,), of one picture. In float64: in float32 a vocabulary of unlikely words does not add up."""
    decoder, labels_TL = cast(Any, towers.decoder), ids_TL[:, 1:]
    scored_TL = (labels_TL != 0) & (torch.arange(1, 1 + labels_TL.shape[1], device=labels_TL.device) >= given)
    out_WE = decoder(seen_KE.expand(len(ids_TL), -1, -1), states_TLE)[scored_TL]
    pairs = zip(out_WE.split(WORDS), labels_TL[scored_TL].split(WORDS), strict=True)
    loss_W = torch.cat([F.cross_entropy(decoder.say(states_wE).double(), labels_w, reduction="none") for states_wE, labels_w in pairs])
    loss_TL = torch.zeros(scored_TL.shape, dtype=loss_W.dtype, device=loss_W.device).masked_scatter(scored_TL, loss_W)
    return -loss_TL.sum(1) / scored_TL.sum(1).clamp(min=1)


@torch.inference_mode()
def captions_of(vlm: Vlm, images: Sequence[Image.Image], prompt: str = "", most: int = 30) -> list[str]:
    """A caption of each picture, the likeliest token each time, until the end token or `most` tokens, behind the task prompt that it was trained with."""
    _need(vlm, "decoder", "captioning or prefix_generation")
    text, decoder = cast(Any, vlm.towers.text), cast(Any, vlm.towers.decoder)
    config = vlm.towers.config.text
    special, seen_IKE = special_of(config), seen(vlm.towers, _pictures(vlm, images))
    first_L = vlm.tokenize([prompt])[0]
    ids_IL = first_L[: int((first_L != 0).sum()) - 1].to(vlm.device).repeat(len(images), 1)
    begun, ended_I = ids_IL.shape[1], torch.zeros(len(images), dtype=torch.bool, device=vlm.device)
    for _ in range(min(most, config.context_length - begun)):  # type: ignore[union-attr]  # decoder: a tower that sees only earlier words
        states_ILE = decoder(seen_IKE, text.states(text.embed(ids_IL), ids_IL))
        logits_IV = decoder.say(states_ILE[:, -1]).float()
        logits_IV[:, [0, special.ids[1]]] = -torch.inf  # neither padding nor a second start
        next_I = logits_IV.argmax(1).where(~ended_I, 0)
        ids_IL, ended_I = torch.cat([ids_IL, next_I[:, None]], dim=1), ended_I | (next_I == special.end)
        if bool(ended_I.all()):
            break
    spell = cast(Any, vlm.tokenizer).decode
    return [spell([token for token in row if token not in special.ids]) for row in ids_IL[:, begun:].tolist()]


@torch.inference_mode()
def match_probability(vlm: Vlm, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
    """How likely picture i and text i belong together (B,), float32, on the CPU."""
    _need(vlm, "fusion", "image_text_matching")
    ids_BL = trim(vlm.tokenize(texts)).to(vlm.device)
    fused = vlm.towers.fuse(*vlm.towers.begin(_pictures(vlm, images), ids_BL), ids_BL)
    logits_B2 = cast(Any, vlm.towers.fusion).match_logits(fused.class_BW)
    probability_B: Tensor = logits_B2.float().softmax(1)[:, 1].cpu()
    return probability_B
