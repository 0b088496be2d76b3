"""Which of a sample's captions training reads in which pass: a pure function of its record, the settings, the seed and the epoch.

LaCLIP (arXiv 2305.20088, section 3.2) chooses uniformly among the raw caption and its rewrites; a choice of fewer than two words gives the raw one (its
released data.py). Here a caption's odds are the weight of its origin (and language), which a schedule may change from epoch to epoch, times a softmax
over the image-text scores of the sample's captions if a temperature is set. Rewrites alone can cost zero-shot accuracy: always mix, and look at the
realised shares, which the loader counts per epoch.
"""

import math
from bisect import bisect
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from vlm_core.data.config import Loader
from vlm_core.data.draws import uniform
from vlm_core.data.filter.text_rules import count_words

Record = dict[str, Any]


def weights_at(config: Loader, epoch: int) -> dict[str, float]:
    """Weights by origin in an epoch: the loader's, and from `begin` on linearly towards those of the schedule, which hold `epochs` later."""
    change = config.caption_schedule
    if change is None:
        return config.caption_weights
    share = min(max((epoch - change.begin) / change.epochs, 0.0), 1.0)
    names = {**config.caption_weights, **change.weights}
    return {name: _named(config.caption_weights, name) * (1 - share) + _named(change.weights, name) * share for name in names}


def _named(weights: Mapping[str, float], name: str) -> float:
    """The weight of 'origin:lang' is that of its origin where it is not named itself; 1 where neither is."""
    return weights.get(name, weights.get(name.partition(":")[0], 1.0))


def odds(captions: Sequence[Record], weights: Mapping[str, float], temperature: float | None = None) -> list[float]:
    """Unnormalised odds of each caption. A caption without a score counts as an average one of its sample; without any score the temperature says nothing."""
    plain = [_named(weights, f"{caption['origin']}:{(caption.get('lang') or '').split('-')[0]}") for caption in captions]
    scores = [caption.get("score") for caption in captions]
    known = [score for score in scores if score is not None]
    if temperature is None or not known:
        return plain
    mean, best = sum(known) / len(known), max(known)
    return [weight * math.exp(((mean if score is None else score) - best) / temperature) for weight, score in zip(plain, scores, strict=True)]


def choose_caption(record: Record, weights: Mapping[str, float], seed: int, epoch: int, temperature: float | None = None) -> tuple[str, str]:
    """(text, origin) for one pass over a sample. The raw caption where all odds are 0, or where the choice has fewer than two words (counted by script)."""
    captions = record["captions"]
    if len(captions) == 1:
        return captions[0]["text"], captions[0]["origin"]
    total = list(accumulate(odds(captions, weights, temperature)))
    chosen = captions[0]
    if total[-1] > 0:
        chosen = captions[bisect(total, uniform(f"caption/{seed}/{epoch}", record["uid"]) * total[-1], hi=len(total) - 1)]
    if count_words(chosen["text"]) < 2:
        chosen = captions[0]
    return chosen["text"], chosen["origin"]


def read_caption(record: Record, config: Loader, seed: int, epoch: int) -> tuple[str, str]:
    """(text, origin) as the loader's settings have it."""
    return choose_caption(record, weights_at(config, epoch), seed, epoch, config.caption_temperature)


def read_two(record: Record, config: Loader, seed: int, epoch: int) -> tuple[str, str, str]:
    """(raw caption, second caption, its origin) for objectives that see both at once: one of the origins in `second_caption`, else the raw one again.

    What weighs 0 is never the second caption, also where a sample has no other.
    """
    raw, weights = record["captions"][0], weights_at(config, epoch)
    wanted = [caption for caption in record["captions"][1:] if caption["origin"] in config.second_caption and count_words(caption["text"]) > 1]
    others = [caption for caption, weight in zip(wanted, odds(wanted, weights), strict=True) if weight > 0]
    if not others:
        return raw["text"], raw["text"], raw["origin"]
    text, origin = choose_caption({"uid": f"second/{record['uid']}", "captions": others}, weights, seed, epoch, config.caption_temperature)
    return raw["text"], text, origin
