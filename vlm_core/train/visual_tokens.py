"""Visual tokens are fitted before the loop starts, and shown."""

# B images, P patches, S side in pixels

import io
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlm_core.checkpoint import fill, read_weights, write_weights
from vlm_core.data.pictures import contact_sheet
from vlm_core.data.shards.augment import Transform
from vlm_core.data.shards.loader import decode
from vlm_core.data.shards.samples import Samples, ShardSamples
from vlm_core.models.patch_clusters import PatchClusters
from vlm_core.models.towers import TwoTower

FILE = "visual_tokens.safetensors"
SHOWN = 16


def prepare(towers: TwoTower, samples: Samples, transform: Transform, seed: int, folder: Path, say: Callable[[str, int, int], None]) -> None:
    """Fit the towers' visual tokens, if they have some that are fitted and are not yet. What was fitted is kept in `folder`: for a resumed run, for all ranks."""
    tokens = towers.visual_tokens
    if not isinstance(tokens, PatchClusters) or tokens.ready:
        return
    file = folder / FILE
    if not file.exists():
        tokens.fit(transform.normalise(crops(samples, transform, -(-tokens.patches // tokens.rows**2), seed, say)), seed)
        write_weights(file.with_suffix(".part"), tokens.state_dict())
        file.with_suffix(".part").rename(file)
    fill(tokens, read_weights(file), str(file))


def crops(samples: Samples, transform: Transform, count: int, seed: int, say: Callable[[str, int, int], None]) -> Tensor:
    """Random crops, as training sees them, of at most `count` training pictures: uint8 (B, 3, S, S)."""
    rows = np.random.default_rng([seed, 7]).permutation(len(samples))[:count]
    squares = list[Tensor]()
    for row in rows.tolist():
        squares.append(transform.train_square(decode(samples.jpeg(row), 2 * transform.size_px), Random(f"visual/{seed}/{samples.uids[row]}")))
        say("pictures for visual tokens", len(squares), len(rows))
    return torch.stack(squares)


@torch.no_grad()
def rebuilt_sheet(towers: TwoTower, shards: Path, transform: Transform, folder: Path) -> dict[str, str]:
    """Held-out pictures, each beside what its tokens say about it: {title: file name}; nothing where tokens cannot be turned back into pixels."""
    tokens = towers.visual_tokens
    if not isinstance(tokens, PatchClusters):
        return {}
    samples = ShardSamples(shards, "heldout")
    squares = [transform.normalise(transform.eval_square(Image.open(io.BytesIO(samples.jpeg(row))))) for row in range(min(SHOWN, len(samples)))]
    images_B3SS = torch.stack(squares)
    ids_BP = tokens.encode(images_B3SS)
    items = list[tuple[Image.Image, str]]()
    for before, after, ids_P in zip(images_B3SS, tokens.rebuild(ids_BP), ids_BP, strict=True):
        items += [(_picture(before, transform), "picture"), (_picture(after, transform), f"{len(ids_P.unique())} different tokens of {len(ids_P)}")]
    contact_sheet(items, folder / "visual_tokens.png")
    return {"held-out pictures, and rebuilt from their visual tokens": "visual_tokens.png"}


def _picture(image_3SS: Tensor, transform: Transform) -> Image.Image:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (transform.mean, transform.std))
    pixels = ((image_3SS * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.numpy()).resize((120, 120), Image.Resampling.NEAREST)
