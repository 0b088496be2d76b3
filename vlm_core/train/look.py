"""What a person looks at after a training run: the curve of the loss, nearest captions of held-out pictures, quick numbers.

The quick numbers say whether training worked. They carry no protocol card and are never compared: `vlm evaluate` does that.
"""

# Q pictures, G distinct captions, D joint width

import io
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image

from vlm_core.data.pictures import contact_sheet
from vlm_core.data.shards.augment import Transform
from vlm_core.data.shards.samples import ShardSamples
from vlm_core.evaluate.metrics import roc_auc
from vlm_core.evaluate.retrieval import retrieval_ranks
from vlm_core.models.pretrained import Vlm
from vlm_core.models.tokenizer import Tokenizer
from vlm_core.models.towers import TwoTower

mpl.use("Agg")
AT_MOST = 1000
SHOWN = 24


def while_training(towers: TwoTower, pixels: Transform, tokenize: Tokenizer, shards: Path) -> Callable[[Path], dict[str, float]]:
    """A look at held-out pairs with the towers as they are: sheet -> numbers."""
    return lambda sheet: held_out(Vlm(towers, {"weights_sha256": "", "transform": pixels.settings()}, tokenize), shards, sheet)


def held_out(model: Vlm, shards: Path, sheet: Path) -> dict[str, float]:
    """Retrieval among held-out pairs (equal captions count as right), the chance level, and the AUC of matching against all other pairs."""
    samples = ShardSamples(shards, "heldout")
    rows = range(min(len(samples), AT_MOST))
    pictures = [Image.open(io.BytesIO(samples.jpeg(row))).convert("RGB") for row in rows]
    captions = [str(samples.record(row)["caption"]) for row in rows]
    texts = sorted(set(captions))
    index_Q = np.searchsorted(texts, captions)
    image_QD, text_GD = model.encode_images(pictures).numpy(), model.encode_texts(texts).numpy()
    scores_QG = image_QD @ text_GD.T
    ranks = retrieval_ranks(image_QD, text_GD, np.arange(len(captions)), index_Q)
    matching_QG = np.arange(len(texts)) == index_Q[:, None]
    best_Q = scores_QG.argmax(1)
    contact_sheet(((pictures[row], texts[best_Q[row]]) for row in rows[:SHOWN]), sheet)
    per_text_G = np.bincount(index_Q)
    return {
        "quick.pairs": float(len(captions)),
        **{f"quick.text_recall_at_{k}": float((ranks.of_texts <= k).mean()) for k in (1, 10)},
        **{f"quick.image_recall_at_{k}": float((ranks.of_images <= k).mean()) for k in (1, 10)},
        "quick.text_chance_at_10": min(10 / len(texts), 1.0),
        "quick.image_chance_at_10": float(np.mean([_chance(int(right), len(captions), 10) for right in per_text_G])),
        "quick.auc": float(roc_auc(scores_QG.ravel(), matching_QG.ravel())),
    }


def _chance(right: int, among: int, k: int) -> float:
    """Probability that k random ones of `among` hold at least one of `right`."""
    draws = np.arange(min(k, among))
    return float(1 - np.prod(np.clip((among - right - draws) / (among - draws), 0, 1)))


def loss_curve(rows: list[dict[str, float]], file: Path) -> None:
    """Loss and its terms over steps, the logit scale below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    steps = [row["step"] for row in rows]
    for name in [name for name in rows[0] if name == "loss" or name.startswith("term.")]:
        above.plot(steps, [row[name] for row in rows], label=name.removeprefix("term."), linewidth=1)
    above.set_ylabel("loss")
    above.legend()
    below.plot(steps, [row.get("scale", np.nan) for row in rows], color="grey", linewidth=1)
    below.set_ylabel("logit scale")
    below.set_xlabel("step")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, metadata={"Software": None})
