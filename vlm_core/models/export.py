"""`vlm export MODEL --out DIR`: a model folder as an open_clip checkpoint.

Stock open_clip then loads it with identical embeddings:

    open_clip.add_model_config("DIR/NAME.json")
    model, _, preprocess = open_clip.create_model_and_transforms("NAME", pretrained="DIR/NAME.safetensors")

Only towers that open_clip has: vit or clip_resnet, with clip_transformer.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm_core.checkpoint import fill, read_weights, write_weights
from vlm_core.data.shards.augment import Transform
from vlm_core.errors import Incompatible
from vlm_core.models import config as menu
from vlm_core.models import pretrained
from vlm_core.models.towers import TwoTower
from vlm_core.stage import write_json

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def model_config(config: menu.TwoTower) -> dict[str, Any]:
    """The JSON that open_clip knows an architecture by. Raises Incompatible for towers that it does not have."""
    image, text = config.image, config.text
    if config.retrieval is not None:
        raise Incompatible("Found a model with a reference set (model.retrieval), expected two towers alone, which open_clip has too; use the model folder itself.")
    if not isinstance(image, menu.Vit | menu.ClipResnet) or not isinstance(text, menu.ClipTransformer):
        raise Incompatible(
            f"Found the towers {image.kind!r} and {text.kind!r}, expected vit or clip_resnet with clip_transformer, which open_clip has too; use the model folder itself."
        )
    vision: dict[str, Any] = {"image_size": image.image_size, "layers": image.layers, "width": image.width}
    if isinstance(image, menu.Vit):
        vision |= {"patch_size": image.patch_size, "head_width": image.width // image.heads, "mlp_ratio": image.mlp_ratio, "pool_type": image.pool}
    else:
        vision |= {"patch_size": None, "head_width": image.width * 32 // image.heads}
    words = {"context_length": text.context_length, "vocab_size": text.vocab_size, "width": text.width, "heads": text.heads, "layers": text.layers}
    bias = {} if config.scale.bias is None else {"init_logit_bias": config.scale.bias}
    return {"embed_dim": config.width, "quick_gelu": config.activation == "quick_gelu", "vision_cfg": vision, "text_cfg": words, **bias}


def to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names of weights -> open_clip's."""
    renamed = {"log_scale": "logit_scale", "bias": "logit_bias"}
    return {renamed.get(name) or name.replace("image.", "visual.", 1).removeprefix("text."): value for name, value in state.items()}


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's names of weights -> ours."""
    renamed = {"logit_scale": "log_scale", "logit_bias": "bias"}
    return {
        renamed.get(name) or (name.replace("visual.", "image.", 1) if name.startswith("visual.") else f"text.{name}"): value for name, value in state.items()
    }


def export(folder: Path, out: Path, name: str) -> Path:
    """Write NAME.json and NAME.safetensors; returns the latter. Raises Incompatible."""
    vlm = pretrained.load(folder)
    if (tuple(vlm.pixels.mean), tuple(vlm.pixels.std)) != (OPENAI_MEAN, OPENAI_STD):
        raise Incompatible(
            f"Found pixel statistics {vlm.pixels.mean} in {folder}, expected those of CLIP, which open_clip assumes; train with the CLIP transform."
        )
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{name}.json", model_config(vlm.towers.config))
    write_weights(out / f"{name}.safetensors", to_open_clip(vlm.towers.state_dict()))
    return out / f"{name}.safetensors"


def adopt(weights: Path, config: menu.TwoTower, out: Path, recipe: str) -> dict[str, Any]:
    """Make a model folder of an open_clip checkpoint (safetensors). Raises CheckpointError when names or shapes differ from the config."""
    towers = TwoTower(config, fresh=False)
    fill(towers, from_open_clip(read_weights(weights)), str(weights))
    out.mkdir(parents=True, exist_ok=True)
    pixels: Transform = pretrained.pixels_of(config.image)
    return pretrained.save(out, towers, pixels, {"recipe": recipe, "parents": []})


def main(words: Sequence[str]) -> int:
    """`vlm export MODEL --out DIR [--name NAME]`."""
    parser = argparse.ArgumentParser(prog="vlm export", description="write a model folder as an open_clip checkpoint")
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", default="vlm")
    args = parser.parse_args(words)
    print(export(args.model, args.out, args.name))
    return 0
