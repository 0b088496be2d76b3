"""A model folder and back: model.safetensors, config.json, card.md. `load(folder)` is all that the rest of the platform needs to know about a model."""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vlm_core.checkpoint import fill, read_weights, write_weights
from vlm_core.config import canonical_json
from vlm_core.data.shards.augment import Transform
from vlm_core.errors import CheckpointError, ConfigError
from vlm_core.models import config as menu
from vlm_core.models import tokenizer as tokenizers
from vlm_core.models.towers import TwoTower, unit
from vlm_core.stage import write_json

FORMAT = 1
WEIGHTS, POSITIONS = "model.safetensors", "image.positional_embedding"
ADDED = ("fusion", "decoder", "regions", "retrieval", "roi_features", "visual_tokens")  # parts that may be put on towers that have learnt without them

# B pictures or texts, L tokens, D joint width, P class token and patches of a ViT, E its width, S and R rows of its grid


class Vlm:
    """A model ready for use, in eval mode.

    `.towers.see(images_B3HW)` and `.towers.text(ids_BL)` are differentiable and raw; `encode_*` are unit-norm float32 without gradient.
    """

    def __init__(self, towers: TwoTower, settings: Mapping[str, Any], tokenize: tokenizers.Tokenizer) -> None:
        self.towers = towers.eval()
        self.config = dict(settings)  # what config.json says
        self.digest: str = settings["weights_sha256"]
        self.pixels = Transform(**settings["transform"])
        self.tokenizer = tokenize

    def transform(self, train: bool = False) -> Callable[[Image.Image], Tensor]:
        """PIL picture -> normalised float32 (3, S, S)."""
        return self.pixels.for_pictures(train)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Ids (B, L), zero-padded to the context length."""
        return self.tokenizer(texts)

    @property
    def device(self) -> torch.device:
        return self.towers.log_scale.device

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Image.Image], batch: int = 64) -> Tensor:
        """Unit-norm embeddings (B, D), float32, on the CPU."""
        see = self.transform()
        parts = [torch.stack([see(image) for image in images[begin : begin + batch]]) for begin in range(0, len(images), batch)]
        return self._joined([self.towers.see(part_B3SS.to(self.device)) for part_B3SS in parts])

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], batch: int = 256) -> Tensor:
        """Unit-norm embeddings (B, D), float32, on the CPU."""
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # equal lengths travel together: less padding
        ids = [tokenizers.trim(self.tokenize([texts[row] for row in order[begin : begin + batch]])) for begin in range(0, len(texts), batch)]
        sorted_BD = self._joined([self.towers.text(part_BL.to(self.device)) for part_BL in ids])
        out_BD = torch.empty_like(sorted_BD)
        out_BD[order] = sorted_BD
        return out_BD

    def _joined(self, parts: list[Tensor]) -> Tensor:
        return torch.cat([unit(part).cpu() for part in parts]) if parts else torch.empty(0, 0)


def save(folder: Path, towers: TwoTower, transform: Transform, about: Mapping[str, Any], card: str = "", words: Path | None = None) -> dict[str, Any]:
    """Write a model folder; equal weights and settings give equal bytes.

    Args:
        folder: is there already.
        towers: whose weights and settings are kept.
        transform: how the towers want their pictures.
        about: what else config.json shall say: recipe, seed, snapshot_md5, parents (list of weights digests with their role), training settings.
        card: Markdown for people; made from the settings if not given.
        words: folder with the tokenizer.json that training left; only of towers whose tokenizer was learnt.

    Returns:
        What config.json says.
    """
    tokenize = tokenizers.build(towers.config.text, words)
    if words is not None and tokenizers.is_learnt(towers.config.text):
        shutil.copyfile(words / tokenizers.FILE, folder / tokenizers.FILE)
    digest = write_weights(folder / WEIGHTS, towers.state_dict())
    settings = {
        **about, "format": FORMAT, "model": towers.config.model_dump(mode="json"), "activation": towers.config.activation,
        "tokenizer": tokenize.name,
        "transform": transform.settings(), "transform_digest": transform.digest(), "weights_sha256": digest,
        "parameters": sum(value.numel() for value in towers.parameters()),
    }  # fmt: skip
    write_json(folder / "config.json", settings)
    (folder / "card.md").write_text(card or _card(settings))
    return settings


def read_settings(folder: Path) -> dict[str, Any]:
    """config.json of a model folder. Raises CheckpointError."""
    file = folder / "config.json"
    if not file.exists():
        raise CheckpointError(f"Found no config.json in {folder}, expected the folder of a trained model; run 'vlm pretrain' or give another folder.")
    try:
        settings: dict[str, Any] = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"Found {file} unreadable ({error}), expected JSON; fetch the model again.") from None
    if settings.get("format") != FORMAT:
        raise CheckpointError(f"Found format {settings.get('format')!r} in {file}, expected {FORMAT}; use the version of the platform that wrote it.")
    return settings


def load(folder: Path | str, expected: menu.TwoTower | None = None) -> Vlm:
    """The model of a folder. Raises CheckpointError when digest, transform, activation or shapes are not what they should be.

    Args:
        folder: with model.safetensors and config.json.
        expected: the architecture that the caller wants to continue with. Its dropout and bounds of the logit scale may be others, a ViT may read
            pictures of another size (its positions are stretched), and parts that the folder's model lacks (ADDED) may be there: they begin afresh.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    try:
        config = menu.TwoTower.read(settings["model"])
    except ConfigError as error:
        raise CheckpointError(f"Found a model in {folder / 'config.json'} that this version cannot build ({error}); use the version that wrote it.") from None
    _check(folder, settings, config, expected)
    tokenize = tokenizers.build(config.text, folder)
    if tokenize.name != settings["tokenizer"]:
        raise CheckpointError(
            f"Found the tokenizer {tokenize.name!r} in {folder}, expected {settings['tokenizer']!r} as its config.json says; fetch the model again."
        )
    state = read_weights(folder / WEIGHTS, settings["weights_sha256"])
    if expected is not None and _only_size_differs(expected, config):
        rows = expected.image.image_size // expected.image.patch_size  # type: ignore[union-attr]  # a ViT
        state = {**state, POSITIONS: stretched(state[POSITIONS], rows)}
    towers = TwoTower(expected or config, fresh=False)
    new = () if expected is None else tuple(f"{part}." for part in _added(expected, config))
    own = {name: value for name, value in towers.state_dict().items() if name.startswith(new)} if new else {}
    fill(towers, {**own, **state}, str(folder / WEIGHTS))
    return Vlm(towers, settings, tokenize)


def require_same(folder: Path, expected: menu.TwoTower) -> None:
    """Raises CheckpointError where a model folder is not of this architecture; reads its settings, not its weights."""
    settings = read_settings(folder)
    _check(folder, settings, menu.TwoTower.read(settings["model"]), expected)


def _check(folder: Path, settings: Mapping[str, Any], config: menu.TwoTower, expected: menu.TwoTower | None) -> None:
    if settings["activation"] != config.activation:
        raise CheckpointError(
            f"Found weights of activation {settings['activation']!r} under a model with {config.activation!r} in {folder / 'config.json'}, expected one and the same; "
            f"set model.activation={settings['activation']}."
        )
    if (found := Transform(**settings["transform"]).digest()) != settings["transform_digest"]:
        raise CheckpointError(
            f"Found transform {found[:12]} in {folder / 'config.json'}, expected {settings['transform_digest'][:12]}, with which the weights were trained; fetch the model again."
        )
    if expected is None:
        return
    if expected.activation != config.activation:
        raise CheckpointError(
            f"Found weights of activation {config.activation!r} in {folder}, expected {expected.activation!r} as this recipe says; set model.activation={config.activation}."
        )
    wrong = _differing(expected, config)
    if wrong and not _only_size_differs(expected, config):
        name, mine, theirs = wrong[0], expected.flat(), config.flat()
        raise CheckpointError(
            f"Found model.{name} {theirs.get(name)!r} in {folder}, expected {mine.get(name)!r} as this recipe says; set model.{name}={theirs.get(name)} or drop the input 'initial'."
        )


def _differing(expected: menu.TwoTower, found: menu.TwoTower) -> list[str]:
    """Settings that say which weights there are and what they mean: not how training drops or bounds them, nor parts that begin afresh."""
    mine, theirs, new = expected.flat(), found.flat(), ("scale", *_added(expected, found))
    names = (name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    return sorted(name for name in names if name.partition(".")[0] not in new and "dropout" not in name)


def _added(expected: menu.TwoTower, found: menu.TwoTower) -> list[str]:
    """Parts that begin afresh on towers that have learnt without them."""
    return [part for part in ADDED if getattr(expected, part) is not None and getattr(found, part) is None]


def _only_size_differs(expected: menu.TwoTower, found: menu.TwoTower) -> bool:
    """Whether the one difference is the side of the pictures, and nothing but a ViT's positions hangs on it."""
    hanging = (expected.regions, expected.retrieval, expected.visual_tokens)
    return _differing(expected, found) == ["image.image_size"] and isinstance(expected.image, menu.Vit) and all(part is None for part in hanging)


def stretched(positions_PE: Tensor, rows: int) -> Tensor:
    """Positions (1 + rows x rows, E) of a ViT for pictures of another size: the class token's as it is, the grid of patches by bicubic interpolation.

    CLIP's last epoch at 336 pixels begins so; open_clip resizes alike (`resize_pos_embed`).
    """
    side = math.isqrt(len(positions_PE) - 1)
    grid_1ESS = positions_PE[1:].float().T.reshape(1, -1, side, side)
    wide_1ERR = F.interpolate(grid_1ESS, size=(rows, rows), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions_PE[:1], wide_1ERR[0].flatten(1).T.to(positions_PE.dtype)])


def _card(settings: Mapping[str, Any]) -> str:
    rows = [
        ("recipe", settings.get("recipe", "")), ("parameters", f"{settings['parameters']:,}"), ("activation", settings["activation"]),
        ("image", canonical_json(settings["model"]["image"])), ("text", canonical_json(settings["model"]["text"])), ("tokenizer", settings["tokenizer"]),
        ("transform", canonical_json(settings["transform"])), ("trained on snapshot", settings.get("snapshot_md5", "")),
        ("parents", canonical_json(settings.get("parents", []))), ("seed", settings.get("seed", "")), ("weights SHA-256", settings["weights_sha256"]),
    ]  # fmt: skip
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"# {settings.get('recipe') or 'Model'}\n\nA two-tower vision-language model. `vlm lineage samples` lists what it was trained on.\n\n| what | value |\n|---|---|\n{table}\n"
