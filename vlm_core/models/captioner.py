"""Captions from pictures (ALIP's second witness, arXiv 2308.08428): a vision model behind an OpenAI-compatible server, or the packaged image tower's names.

The names captioner knows the 1,000 ImageNet classes and words them by a template. It is honest about what it is: below `min_probability` it says nothing.
"""

import io
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image

from vlm_core.config import canonical_json
from vlm_core.data.captions.answers import Answer, Price, Request
from vlm_core.data.captions.config import NamesCaptioner, OpenAiWriter, Recaption, Synthetic
from vlm_core.models import llm, packaged
from vlm_core.models.scorer import square

# B pictures, K ImageNet names

BATCH = 32
WORDINGS = ("a picture of {}", "{} in a picture", "an image of {}", "{}")


class Names:
    """What EfficientNet-Lite0 takes a picture for, as a sentence."""

    price = Price()

    def __init__(self, config: NamesCaptioner, pictures: llm.Pictures) -> None:
        self.config, self.pictures = config, pictures
        self.tower, self.names = packaged.efficientnet_lite0().to(memory_format=torch.channels_last), packaged.imagenet_names()

    def answer(self, requests: Iterable[Request], proven: bool = False) -> Iterator[tuple[Request, Answer]]:
        rest = iter(requests)
        while part := tuple(itertools.islice(rest, BATCH)):
            images = [Image.open(io.BytesIO(self.pictures(request.prompt.picture))) for request in part]
            for request, likely in zip(part, self._look(images), strict=True):
                yield request, Answer(name_caption(likely, self.config, random.Random(request.seed)), 0, 0)

    @torch.inference_mode()
    def _look(self, images: Sequence[Image.Image]) -> list[list[tuple[str, float]]]:
        """The two likeliest names of each picture with their probabilities."""
        pixels = torch.from_numpy(np.stack([square(image, self.config.size_px) for image in images])).permute(0, 3, 1, 2)
        features_BE = self.tower.features(packaged.pixels(pixels).contiguous(memory_format=torch.channels_last))  # type: ignore[operator]
        share_B2, index_B2 = self.tower._fc(features_BE).softmax(-1).topk(2, dim=-1)  # type: ignore[operator]
        return [[(self.names[i], p) for i, p in zip(row, ps, strict=True)] for row, ps in zip(index_B2.tolist(), share_B2.tolist(), strict=True)]


def name_caption(likely: list[tuple[str, float]], config: NamesCaptioner, draw: random.Random) -> str:
    """A sentence from names and their probabilities; '' where the likeliest is not likely enough."""
    (first, p), (second, q) = likely
    if p < config.min_probability:
        return ""
    said = with_article(first) + (f" with {with_article(second)}" if q >= config.second_name else "")
    return draw.choice(WORDINGS).format(said)


def with_article(name: str) -> str:
    plural = name.endswith("s") and not name.endswith(("ss", "us", "is"))
    return name if plural else f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def build(config: Recaption, part: Synthetic, pictures: llm.Pictures) -> llm.Writer:
    if isinstance(part.captioner, OpenAiWriter):
        return llm.OpenAi(part.captioner, config, pictures, "synthetic.captioner")
    return Names(part.captioner, pictures)


def generator(part: Synthetic) -> str:
    """Name and version of the captioner, kept with every caption."""
    if isinstance(part.captioner, OpenAiWriter):
        return f"openai:{part.captioner.model}"
    return f"efficientnet-lite0-names@{packaged.digest('efficientnet_lite0')[:12]}"


def sampling(config: Recaption, part: Synthetic) -> str:
    """What decides a description beside captioner, picture and seed."""
    return llm.sampling(config) if isinstance(part.captioner, OpenAiWriter) else canonical_json(part.captioner.model_dump())
