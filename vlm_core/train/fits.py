"""Whether objectives, model, loader and batch fit together, before anything is read. Torch-free."""

from typing import TYPE_CHECKING

from vlm_core.config import kinds
from vlm_core.errors import Incompatible
from vlm_core.models import config as models
from vlm_core.objectives.config import ImageTextMatching, MaskedAutoencoder, Need, Objective, Regional
from vlm_core.train import fits_loop

if TYPE_CHECKING:
    from vlm_core.train.config import Pretrain

CLIP_IDS, LEAST_IDS = 49_408, 300
VIEWS: frozenset[Need] = frozenset({"second_view", "two_views", "key_view"})
OF_IMAGE: frozenset[Need] = frozenset({"patches", "dense", "image_mask", "fusion", "grouping"})
OF_TEXT: frozenset[Need] = frozenset({"tokens", "dense", "text_mask", "decoder", "prefix", "fusion", "one_tower"})
OF_PIXELS: frozenset[Need] = VIEWS | OF_IMAGE | OF_TEXT | {"augmented_text", "labels", "slow_towers", "alone", "neighbours", "scenes", "detections"}


def check(config: "Pretrain") -> None:
    """Raises Incompatible, which names the two parts that do not fit and what would."""
    chosen = config.objectives.chosen()
    if not chosen:
        raise Incompatible(
            "Found no objective, expected at least one; set for instance objectives.image_text_contrastive={}, or choose: "
            f"{', '.join(type(config.objectives).model_fields)}."
        )
    fits_loop.check(config)
    _references(config)
    _parts(config)
    _regions(config)
    _vocabulary(config.model.text)
    for kind, objective in chosen.items():
        _needs(config, kind, objective)
        _sizes(config, kind, objective)
    if not any(objective.joins for objective in chosen.values()):
        joining = [name for name, field in type(config.objectives).model_fields.items() if _schema(field.annotation).joins]
        raise Incompatible(
            f"Found only objectives that leave pictures and texts apart ({', '.join(chosen)}), expected one that joins them; add one of: {', '.join(joining)}."
        )
    if config.loader.batch_size % config.fit.devices:
        raise Incompatible(
            f"Found loader.batch_size {config.loader.batch_size} on {config.fit.devices} devices, expected a whole number of pairs for each; change batch_size."
        )


def _references(config: "Pretrain") -> None:
    using = [kind for kind, objective in config.objectives.chosen().items() if "neighbours" in objective.needs]
    if using and config.model.retrieval is None:
        raise Incompatible(
            f"Found the objective {using[0]!r} with model.retrieval=null, expected a reference set to look things up in; set model.retrieval={{}}."
        )
    if config.model.retrieval is not None and not using:
        raise Incompatible(
            "Found model.retrieval without an objective that teaches it to look things up; set objectives.retrieval_augmented={} or model.retrieval=null."
        )
    if config.model.retrieval is not None and config.loader.mix:
        raise Incompatible(
            "Found model.retrieval with loader.mix, expected one snapshot, since its groups say which pictures are copies of references; drop one of the two."
        )


def _parts(config: "Pretrain") -> None:
    """Fusion and decoder are there where an objective needs them, and learn where they are there."""
    chosen, model = config.objectives.chosen(), config.model
    for part, need, example in (("fusion", "fusion", "{kind: joint_fusion}"), ("decoder", "decoder", "{}"), ("roi_features", "detections", "{}")):
        using = [kind for kind, objective in chosen.items() if need in objective.needs]
        if using and getattr(model, part) is None:
            raise Incompatible(f"Found the objective {using[0]!r} with model.{part}=null, expected a model that has one; set model.{part}={example}.")
    if isinstance(model.image, models.VitGrouping) and model.image.rebuild and "masked_autoencoder" not in chosen:
        raise Incompatible(
            "Found model.image.rebuild=true without objectives.masked_autoencoder, which alone teaches it; set objectives.masked_autoencoder={} or model.image.rebuild=false."
        )
    if model.visual_tokens is not None and not any("visual_tokens" in objective.needs for objective in chosen.values()):
        raise Incompatible("Found model.visual_tokens without an objective that guesses them; set objectives.masked_image={} or model.visual_tokens=null.")
    if model.roi_features is not None and not any("detections" in objective.needs for objective in chosen.values()):
        raise Incompatible("Found model.roi_features without an objective that reads them; set objectives.cross_level={} or model.roi_features=null.")
    if model.decoder is not None and not {"captioning", "prefix_generation"} & chosen.keys():
        raise Incompatible("Found model.decoder without an objective that teaches it to write; set objectives.captioning={} or model.decoder=null.")
    if model.fusion is not None and "image_text_matching" not in chosen:
        raise Incompatible(
            "Found model.fusion without objectives.image_text_matching, expected it, since it teaches the fused class state that the model folder keeps; "
            "set objectives.image_text_matching={} or model.fusion=null."
        )


def _regions(config: "Pretrain") -> None:
    """A dense head is there where an objective needs one, reads what that objective asks, and learns where it is there."""
    regional = {kind: objective for kind, objective in config.objectives.chosen().items() if isinstance(objective, Regional)}
    model, regions = config.model, config.model.regions
    if regions is not None and not regional:
        raise Incompatible("Found model.regions without an objective that teaches them; set objectives.region_word={} or model.regions=null.")
    for kind, objective in regional.items():
        if regions is None or regions.reads != objective.reads:
            found = "null" if regions is None else f"{{reads: {regions.reads}}}"
            raise Incompatible(
                f"Found the objective {kind!r} with model.regions={found}, expected a head that reads {objective.reads}; set model.regions={{reads: {objective.reads}}}."
            )
        if getattr(model.image, "patch_dropout", 0):
            raise Incompatible(
                f"Found the objective {kind!r} with model.image.patch_dropout {model.image.patch_dropout}, expected 0, since a map needs all its patches; set model.image.patch_dropout=0."  # type: ignore[union-attr]
            )
        if kind == "region_word" and model.fusion is not None and model.fusion.kind != "gated_fusion":
            raise Incompatible(
                f"Found the objective {kind!r} with model.fusion {model.fusion.kind!r}, expected fusion inside the towers; set model.fusion={{kind: gated_fusion}} or null."
            )


def _vocabulary(text: models.TextTower) -> None:
    tokenizer, size = getattr(text, "tokenizer", ""), getattr(text, "vocab_size", 0)
    if tokenizer == "clip_bpe" and size != CLIP_IDS and not getattr(text, "weights", ""):
        raise Incompatible(
            f"Found model.text.vocab_size {size} with the tokenizer 'clip_bpe', expected {CLIP_IDS}; set model.text.vocab_size={CLIP_IDS}, or "
            "model.text.tokenizer=bpe to learn one of your size."
        )
    if tokenizer in ("bpe", "wordpiece") and size < LEAST_IDS:
        raise Incompatible(f"Found model.text.vocab_size {size} with the tokenizer {tokenizer!r}, expected {LEAST_IDS} at least, one per byte; raise it.")


def _schema(annotation: object) -> type[Objective]:
    """`Sigmoid | None` -> Sigmoid."""
    found: type[Objective] = annotation.__args__[0]  # type: ignore[attr-defined]
    return found


def _needs(config: "Pretrain", kind: str, objective: Objective) -> None:
    needs, image, text = objective.needs, config.model.image, config.model.text
    if "bias" in needs and config.model.scale.bias is None:
        raise Incompatible(
            f"Found the objective {kind!r} with model.scale.bias=null, expected a bias to learn; set model.scale.bias=-10 and model.scale.init=10."
        )
    if "visual_tokens" in needs and config.model.visual_tokens is None:
        raise Incompatible(
            f"Found the objective {kind!r} with model.visual_tokens=null, expected tokens to guess; set model.visual_tokens={{kind: patch_clusters}}."
        )
    if "second_caption" in needs and not config.loader.second_caption:
        raise Incompatible(
            f"Found the objective {kind!r} with loader.second_caption=[], expected the origins of second captions; set for instance loader.second_caption=[synthetic]."
        )
    if "alone" in needs and len(config.objectives.chosen()) > 1:
        others = ", ".join(name for name in config.objectives.chosen() if name != kind)
        raise Incompatible(
            f"Found the objective {kind!r} beside {others}, expected it alone, since it changes the pictures that all would see; drop objectives.{kind} or the others."
        )
    if needs & OF_PIXELS and image.locked:
        raise Incompatible(
            f"Found the objective {kind!r} with a locked image tower, whose features are computed once, expected one that sees every batch; "
            "set model.image.lock=false or choose model.image={kind: vit}."
        )
    if kind == "masked_autoencoder" and isinstance(image, models.VitGrouping) and not image.rebuild:
        raise Incompatible(
            f"Found the objective {kind!r} with model.image.rebuild=false, expected a way back from centres to patches; set model.image.rebuild=true."
        )
    sides = ("image", image, OF_IMAGE, models.ImageTower), ("text", text, OF_TEXT, models.TextTower)
    for side, tower, asked, union in sides:
        if lacking := (needs & asked) - tower.gives:
            would = ", ".join(name for name, schema in kinds(union).items() if needs & asked <= schema.gives)  # type: ignore[attr-defined]
            raise Incompatible(
                f"Found the objective {kind!r}, which needs {_words(lacking)}, with the {side} tower {tower.kind!r}; choose model.{side}={{kind: ...}} of: {would}."
            )


def _sizes(config: "Pretrain", kind: str, objective: Objective) -> None:
    kept = getattr(objective, "queue", getattr(objective, "bank", None))
    if kept is not None and kept < config.loader.batch_size:
        raise Incompatible(
            f"Found the objective {kind!r} with room for {kept} embeddings and loader.batch_size {config.loader.batch_size}, expected room for a batch at least; raise it."
        )
    heads, width = getattr(objective, "heads", 1), getattr(objective, "width", 1)
    if width % heads:
        raise Incompatible(
            f"Found the objective {kind!r} with width {width} and heads {heads}, expected a whole multiple; choose another objectives.{kind}.heads."
        )
    together = config.fit.micro_batch or config.loader.batch_size // config.fit.devices
    if isinstance(objective, ImageTextMatching) and together < 2:
        raise Incompatible(
            f"Found the objective {kind!r} with {together} pair at a time on each of {config.fit.devices} devices, expected others to draw negatives from; raise loader.batch_size or fit.micro_batch."
        )
    if isinstance(objective, MaskedAutoencoder) and isinstance(config.model.image, models.Vit | models.VitGrouping):
        patches = (config.model.image.image_size // config.model.image.patch_size) ** 2
        if not 1 <= int(patches * (1 - objective.share)) < patches:
            raise Incompatible(
                f"Found the objective {kind!r} with share {objective.share} of {patches} patches, expected to leave at least one and remove at least one; change share or model.image.patch_size."
            )


def _words(needs: frozenset[Need]) -> str:
    said = {"patches": "states of patches", "dense": "patches and words", "image_mask": "a tower that can leave out patches",
            "tokens": "states of words", "text_mask": "a tower that shows its words", "decoder": "words that see only earlier ones",
            "prefix": "words that see only earlier ones", "fusion": "blocks that picture and text share", "one_tower": "one tower for both",
            "grouping": "patches that choose a centre"}  # fmt: skip
    return " and ".join(dict.fromkeys(said[need] for need in sorted(needs)))
