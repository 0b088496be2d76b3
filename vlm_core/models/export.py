"""`vlm export MODEL --out DIR`: a model folder as an open_clip checkpoint; `vlm adopt WEIGHTS --config JSON --out DIR`: the other way.

Stock open_clip then loads it with identical embeddings:

    open_clip.add_model_config("DIR/NAME.json")
    model, _, preprocess = open_clip.create_model_and_transforms("NAME", pretrained="DIR/NAME.safetensors")

Only towers that open_clip has: vit or clip_resnet, with clip_transformer.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm_core.checkpoint import file_sha256, fill, read_weights, write_weights
from vlm_core.data.shards.augment import Transform
from vlm_core.errors import CheckpointError, Incompatible, MissingInput
from vlm_core.models import config as menu
from vlm_core.models import pretrained
from vlm_core.models.pixels import pixels_of
from vlm_core.models.towers import TwoTower
from vlm_core.stage import write_json

TWO_TOWERS = frozenset({"image", "text", "width", "activation", "scale"})
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def model_config(config: menu.TwoTower) -> dict[str, Any]:
    """The JSON that open_clip knows an architecture by. Raises Incompatible for towers that it does not have."""
    image, text = config.image, config.text
    more = [name for name in menu.TwoTower.model_fields if name not in TWO_TOWERS and getattr(config, name) is not None]
    if more:
        raise Incompatible(f"Found a model with model.{more[0]}, expected two towers alone, which open_clip has too; use the model folder itself.")
    if not isinstance(image, menu.Vit | menu.ClipResnet) or not isinstance(text, menu.ClipTransformer):
        raise Incompatible(
            f"Found the towers {image.kind!r} and {text.kind!r}, expected vit or clip_resnet with clip_transformer, which open_clip has too; use the model folder itself."
        )
    if text.tokenizer != "clip_bpe" or getattr(image, "pool", "") == "map":
        found = f"the tokenizer {text.tokenizer!r}" if text.tokenizer != "clip_bpe" else "model.image.pool 'map'"
        raise Incompatible(
            f"Found {found}, expected CLIP's byte pairs and the class token or mean of the patches, as open_clip has; use the model folder itself."
        )
    vision: dict[str, Any] = {"image_size": image.image_size, "layers": image.layers, "width": image.width}
    if isinstance(image, menu.Vit):
        vision |= {"patch_size": image.patch_size, "head_width": image.width // image.heads, "mlp_ratio": image.mlp_ratio, "pool_type": image.pool}
    else:
        vision |= {"patch_size": None, "head_width": image.width * 32 // image.heads}
    words = {"context_length": text.context_length, "vocab_size": text.vocab_size, "width": text.width, "heads": text.heads, "layers": text.layers}
    bias = {} if config.scale.bias is None else {"init_logit_bias": config.scale.bias}
    return {"embed_dim": config.width, "quick_gelu": config.activation == "quick_gelu", "vision_cfg": vision, "text_cfg": words, **bias}


VISION = {"image_size": 224, "layers": 12, "width": 768, "head_width": 64, "patch_size": 16, "mlp_ratio": 4.0, "pool_type": "tok", "patch_dropout": 0.0}
WORDS = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
WHOLE = {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg", "init_logit_bias", "init_logit_scale", "custom_text"}


def read_model_config(file: Path) -> menu.TwoTower:
    """Our settings of an architecture in open_clip's JSON. Raises MissingInput, Incompatible for what our towers do not have."""
    if not file.exists():
        raise MissingInput(f"Found no {file}, expected the JSON that open_clip knows the architecture by; give it as --config.")
    said = json.loads(file.read_text())
    vision, words = said.get("vision_cfg", {}), said.get("text_cfg", {})
    unknown = sorted((said.keys() - WHOLE) | (vision.keys() - VISION.keys()) | (words.keys() - WORDS.keys()))
    if unknown:
        raise Incompatible(f"Found {unknown[0]!r} in {file}, expected a ViT or ResNet and a text Transformer as CLIP has them; our towers do not have that.")
    v, w = {**VISION, **vision}, {**WORDS, **words}
    if isinstance(v["layers"], list):
        image: menu.ImageTower = menu.ClipResnet(image_size=v["image_size"], layers=v["layers"], width=v["width"], heads=v["width"] * 32 // v["head_width"])
    else:
        image = menu.Vit.read(
            {
                **{name: v[name] for name in ("image_size", "patch_size", "width", "layers", "mlp_ratio", "patch_dropout")},
                "pool": v["pool_type"],
                "heads": v["width"] // v["head_width"],
            }
        )
    scale = menu.LogitScale() if "init_logit_bias" not in said else menu.LogitScale(init=10, bias=said["init_logit_bias"])
    activation: menu.Activation = "quick_gelu" if said.get("quick_gelu") else "gelu"
    return menu.TwoTower(image=image, text=menu.ClipTransformer.read(w), width=said["embed_dim"], activation=activation, scale=scale)


def to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names of weights -> open_clip's."""
    renamed = {"log_scale": "logit_scale", "bias": "logit_bias"}
    return {renamed.get(name) or name.replace("image.", "visual.", 1).removeprefix("text."): value for name, value in state.items()}


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's names of weights -> ours."""
    renamed = {"logit_scale": "log_scale", "logit_bias": "bias"}
    return {
        renamed.get(name) or (name.replace("visual.", "image.", 1) if name.startswith("visual.") else f"text.{name.removeprefix('text.')}"): value
        for name, value in state.items()
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
    """Make a model folder of an open_clip checkpoint (safetensors).

    Raises:
        CheckpointError: names or shapes differ from the config, or the JSON beside the weights says another architecture or activation.
    """
    if (beside := weights.with_suffix(".json")).exists():
        _agree(beside, read_model_config(beside), config)
    towers = TwoTower(config, fresh=False)
    fill(towers, from_open_clip(read_weights(weights)), str(weights))
    out.mkdir(parents=True, exist_ok=True)
    pixels: Transform = pixels_of(config.image)
    return pretrained.save(
        out, towers, pixels, {"recipe": recipe, "parents": [{"model_id": file_sha256(weights), "relation": "initial", "name": weights.name}]}
    )


def _agree(file: Path, said: menu.TwoTower, wanted: menu.TwoTower) -> None:
    theirs, ours = said.flat(), wanted.flat()
    differ = sorted(
        name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name) and not name.startswith("scale.") and "dropout" not in name
    )
    if differ:
        name = differ[0]
        raise CheckpointError(
            f"Found {name} {theirs.get(name)!r} in {file}, expected {ours.get(name)!r} as asked; use the architecture that the weights were trained with."
        )


def main(words: Sequence[str]) -> int:
    """`vlm export MODEL --out DIR [--name NAME]`."""
    parser = argparse.ArgumentParser(prog="vlm export", description="write a model folder as an open_clip checkpoint")
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", default="vlm")
    args = parser.parse_args(words)
    print(export(args.model, args.out, args.name))
    return 0


def main_adopt(words: Sequence[str]) -> int:
    """`vlm adopt WEIGHTS --config JSON --out DIR`."""
    parser = argparse.ArgumentParser(prog="vlm adopt", description="make a model folder of an open_clip checkpoint with CLIP's pixel statistics")
    parser.add_argument("weights", type=Path, help="safetensors file")
    parser.add_argument("--config", type=Path, required=True, help="the JSON that open_clip knows the architecture by")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(words)
    adopt(args.weights, read_model_config(args.config), args.out, args.config.stem)
    print(args.out)
    return 0
