"""Settings of models: widths, depths, patch size, context length, what is locked. Torch-free; the two unions are the menu of towers."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vlm_core.config import Config
from vlm_core.errors import Incompatible

Activation = Literal["gelu", "quick_gelu"]


def _divide(what: str, value: int, by: str, divisor: int) -> None:
    if value % divisor:
        raise ValueError(f"Found {what} {value} and {by} {divisor}, expected a whole multiple; choose another {by}.")


class Tower(Config):
    """What all towers say about themselves."""

    gives: ClassVar[frozenset[str]] = frozenset()  # needs of objectives that it meets, beside embeddings

    @property
    def locked(self) -> bool:
        """The trunk never learns, so its features are computed once."""
        return bool(getattr(self, "lock", False))

    @property
    def batch_norm(self) -> bool:
        """What it makes of a picture in training depends on the rest of the batch."""
        return False


class Vit(Tower):
    """Vision Transformer with a LayerNorm before the blocks (CLIP, arXiv 2103.00020)."""

    kind: Literal["vit"] = "vit"
    image_size: int = Field(224, gt=0, description="side of the square input in pixels")
    patch_size: int = Field(32, gt=0, description="side of a patch in pixels")
    width: int = Field(768, gt=0, description="channels of the blocks")
    layers: int = Field(12, gt=0, description="number of blocks")
    heads: int = Field(12, gt=0, description="attention heads; a divisor of width")
    mlp_ratio: float = Field(4.0, gt=0, description="hidden width of a block / width")
    pool: Literal["tok", "avg", "map"] = Field("tok", description="feature: the class token, the mean of the patches, or attention pooling (SigLIP, CLIPPO)")
    patch_dropout: float = Field(0.0, ge=0, lt=1, description="share of patches left out while training (FLIP, arXiv 2212.00794)")

    gives = frozenset({"patches", "dense", "image_mask", "fusion"})

    @model_validator(mode="after")
    def _divides(self) -> Self:
        _divide("width", self.width, "heads", self.heads)
        _divide("image_size", self.image_size, "patch_size", self.patch_size)
        return self


class VitGrouping(Tower):
    """Vision Transformer whose patches gather at learnt centres in front of its last blocks (SegCLIP, arXiv 2211.14813)."""

    kind: Literal["vit_grouping"] = "vit_grouping"
    image_size: int = Field(224, gt=0, description="side of the square input in pixels")
    patch_size: int = Field(16, gt=0, description="side of a patch in pixels")
    width: int = Field(768, gt=0, description="channels of the blocks")
    layers: int = Field(12, gt=1, description="number of blocks, the last ones included")
    last: int = Field(2, gt=0, description="last blocks, which see centres in the place of patches")
    heads: int = Field(12, gt=0, description="attention heads; a divisor of width")
    mlp_ratio: float = Field(4.0, gt=0, description="hidden width of a block / width")
    centres: int = Field(8, gt=1, description="learnt centres; a picture has at most so many segments")
    looks: int = Field(2, gt=0, description="times the centres look at the patches before these choose")
    tau: float = Field(0.9, gt=0, description="temperature of the noisy choice while training")
    rebuild: bool = Field(True, description="a way back from centres to patches, which objectives.masked_autoencoder needs")

    gives = frozenset({"patches", "dense", "image_mask", "grouping"})

    @model_validator(mode="after")
    def _divides(self) -> Self:
        _divide("width", self.width, "heads", self.heads)
        _divide("image_size", self.image_size, "patch_size", self.patch_size)
        if self.last >= self.layers:
            raise ValueError(f"Found last {self.last} of {self.layers} layers, expected a block at least that sees patches; lower last.")
        return self


class ClipResnet(Tower):
    """ResNet-D with blur pooling and attention pooling (CLIP, arXiv 2103.00020)."""

    kind: Literal["clip_resnet"] = "clip_resnet"
    image_size: int = Field(224, gt=0, multiple_of=32, description="side of the square input in pixels")
    layers: list[int] = Field([3, 4, 6, 3], min_length=4, max_length=4, description="bottlenecks of the four stages")
    width: int = Field(64, gt=0, multiple_of=2, description="channels of the first stage")
    heads: int = Field(32, gt=0, description="heads of the attention pooling; a divisor of 32 x width")

    @property
    def batch_norm(self) -> bool:
        return True

    @model_validator(mode="after")
    def _divides(self) -> Self:
        _divide("32 x width", 32 * self.width, "heads", self.heads)
        return self


class EfficientnetLite0(Tower):
    """EfficientNet-Lite0 with ImageNet-1k weights from a package, and a head of ours (LiT, arXiv 2111.07991)."""

    kind: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    image_size: int = Field(192, ge=32, multiple_of=32, description="side of the square input in pixels")
    lock: bool = Field(True, description="keep the packaged weights; only the head learns, and features are computed once")
    head: Literal["linear", "mlp"] = Field("mlp", description="projection to the joint width")
    hidden: int = Field(512, gt=0, description="hidden width of the mlp head")
    dropout: float = Field(0.3, ge=0, lt=1, description="share of the head's hidden units dropped while training")
    names: bool = Field(True, description="add the text vectors of the likeliest ImageNet names to the embedding; needs text minilm with sentence")
    precision: Literal["auto", "32", "bf16"] = Field("auto", description="of the locked trunk; auto takes bf16 only where it is faster and agrees")

    @property
    def batch_norm(self) -> bool:
        return not self.lock


Trunk = Literal[
    "resnet18", "resnet50", "resnet101", "resnet50d", "resnetaa50", "regnety_320", "vgg16_bn", "efficientnet_b0", "tf_efficientnet_b7", "tf_efficientnet_l2",
    "swin_tiny_patch4_window7_224", "swin_base_patch4_window12_384", "coatnet_0_rw_224", "coatnet_3_rw_224", "coatnet_5_224",
]  # fmt: skip


class TimmTrunk(Tower):
    """A trunk of timm under a projection without bias: ResNet, VGG, EfficientNet (ALIGN, arXiv 2102.05918), Swin (UniCL, arXiv 2204.03610), CoAtNet (BASIC)."""

    kind: Literal["timm_trunk"] = "timm_trunk"
    name: Trunk = Field("resnet50", description="of timm; first weights are random")
    image_size: int = Field(224, ge=32, multiple_of=32, description="side of the square input in pixels")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the pooled feature dropped while training")
    weights: str = Field("", description="safetensors file with the trunk's weights under timm's names; none: random ones")
    lock: bool = Field(False, description="keep those weights; only the projection learns, and features are computed once")

    gives = frozenset({"patches", "dense"})

    @property
    def batch_norm(self) -> bool:
        return not self.lock and not self.name.startswith("swin")

    @model_validator(mode="after")
    def _learns(self) -> Self:
        if self.lock and not self.weights:
            raise Incompatible(
                "Found lock=true without weights, expected a trunk that knows something; set model.image.weights=FILE or model.image.lock=false."
            )
        return self


Words = Literal["clip_bpe", "bpe", "wordpiece"]
TRAINED = "learnt from the captions that the model is trained on, and kept in its folder"


class ClipTransformer(Tower):
    """GPT-2 style causal Transformer, read at the end-of-text token (CLIP, arXiv 2103.00020)."""

    kind: Literal["clip_transformer"] = "clip_transformer"
    context_length: int = Field(77, ge=4, description="tokens, both specials included")
    vocab_size: int = Field(49408, gt=2, description="ids of the tokenizer")
    tokenizer: Words = Field("clip_bpe", description=f"CLIP's 49,408 byte pairs, or byte pairs or word pieces {TRAINED}")
    width: int = Field(512, gt=0, description="channels of the blocks")
    layers: int = Field(12, gt=0, description="number of blocks")
    heads: int = Field(8, gt=0, description="attention heads; a divisor of width")

    gives = frozenset({"tokens", "dense", "text_mask", "decoder", "prefix", "fusion"})

    @model_validator(mode="after")
    def _divides(self) -> Self:
        _divide("width", self.width, "heads", self.heads)
        return self


class Bert(Tower):
    """BERT as transformers builds it: every word sees all others (arXiv 1810.04805)."""

    kind: Literal["bert"] = "bert"
    context_length: int = Field(64, ge=4, le=512, description="tokens, both specials included")
    vocab_size: int = Field(30522, ge=300, description="ids of the tokenizer; ALIGN 100,000")
    tokenizer: Words = Field("wordpiece", description=f"CLIP's 49,408 byte pairs, or byte pairs or word pieces {TRAINED}")
    width: int = Field(768, gt=0, description="channels of the blocks")
    layers: int = Field(12, gt=0, description="number of blocks")
    heads: int = Field(12, gt=0, description="attention heads; a divisor of width")
    pool: Literal["cls", "mean"] = Field("cls", description="feature: the first state, or the mean over what is no padding")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of states and attention dropped while training")
    weights: str = Field(
        "", description="folder with a BERT of these sizes (model.safetensors, tokenizer.json), whose tokenizer is taken too; none: random ones"
    )

    gives = frozenset({"tokens", "dense", "text_mask", "fusion"})

    @model_validator(mode="after")
    def _divides(self) -> Self:
        _divide("width", self.width, "heads", self.heads)
        return self


class Rendered(Tower):
    """The text is drawn into a picture and read by the image tower: one tower, no tokenizer (CLIPPO, arXiv 2212.08045)."""

    kind: Literal["rendered"] = "rendered"
    image_size: int = Field(224, gt=0, description="side of the drawn picture in pixels; the image tower's")
    font_size: int = Field(16, ge=5, le=128, description="height of a line in pixels")
    font: str = Field(
        "", description="TrueType file, for instance GNU Unifont, as CLIPPO; none: DejaVu Sans; what it lacks is drawn as squares that spell the code point"
    )


class SharedText(Tower):
    """The text goes through the image tower's own blocks; only the embedding of words is its own (OneR, arXiv 2211.11153)."""

    kind: Literal["shared_text"] = "shared_text"
    context_length: int = Field(77, ge=4, description="tokens, both specials included")
    vocab_size: int = Field(49408, gt=2, description="ids of the tokenizer")
    tokenizer: Words = Field("clip_bpe", description=f"CLIP's 49,408 byte pairs, or byte pairs or word pieces {TRAINED}")

    gives = frozenset({"tokens", "dense", "text_mask", "one_tower"})


class Minilm(Tower):
    """MiniLM-L6 sentence encoder with weights from a package, and a head of ours."""

    kind: Literal["minilm"] = "minilm"
    context_length: int = Field(64, ge=4, le=256, description="tokens, both specials included")
    lock: bool = Field(True, description="keep the packaged weights; only the head learns, and features are computed once")
    head: Literal["linear", "mlp"] = Field("mlp", description="projection to the joint width")
    hidden: int = Field(512, gt=0, description="hidden width of the mlp head")
    dropout: float = Field(0.3, ge=0, lt=1, description="share of the head's hidden units dropped while training")
    sentence: bool = Field(True, description="add the trunk's own sentence vector to the embedding; needs image efficientnet_lite0 with names")


class LogitScale(Config):
    """exp(log_scale) multiplies every cosine, the bias is added (rule 2 of the pre-training sheet)."""

    init: float = Field(1 / 0.07, gt=0, description="first value of the multiplier; CLIP 14.29, SigLIP 10")
    min: float = Field(1.0, gt=0, description="the multiplier is clamped to this after every step")
    max: float = Field(100.0, gt=0, description="the multiplier is clamped to this after every step")
    bias: float | None = Field(None, description="first value of the learnt bias; SigLIP -10; none: no bias")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.min <= self.init <= self.max:
            raise ValueError(f"Found a logit scale that starts at {self.init}, expected a value from min {self.min} to max {self.max}; change scale.init.")
        return self


class JointFusion(Config):
    """One Transformer over [class; picture states; text states] behind both towers (FLAVA, arXiv 2112.04482; ALBEF, arXiv 2107.07651)."""

    kind: Literal["joint_fusion"] = "joint_fusion"
    width: int = Field(768, gt=0, description="channels of the blocks")
    layers: int = Field(6, gt=0, description="number of blocks")
    heads: int = Field(12, gt=0, description="attention heads; a divisor of width")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        _divide("width", self.width, "heads", self.heads)
        return self


class GatedFusion(Config):
    """Cross-attention inside the last blocks of both towers behind a gate that starts closed (FIBER, arXiv 2206.07643)."""

    kind: Literal["gated_fusion"] = "gated_fusion"
    blocks: int = Field(6, gt=0, description="last blocks of each tower that look at the other one")


class CaptionDecoder(Config):
    """Writes captions: what the text tower says so far looks at the picture (CoCa, arXiv 2205.01917)."""

    layers: int = Field(12, gt=0, description="number of blocks; CoCa has as many as its text tower")
    queries: int | None = Field(None, gt=0, description="learnt queries that sum the picture up, CoCa 256; none: all patches are read")
    heads: int = Field(8, gt=0, description="attention heads; a divisor of the text tower's width")


class Retrieval(Config):
    """A reference set: pairs that resemble a picture are mixed into its embedding (RA-CLIP, CVPR 2023)."""

    references: int = Field(
        100_000, ge=1, le=2_000_000, description="pairs kept for looking up and not trained on, 3.3 kB each in the model folder; the paper a tenth of all"
    )
    neighbours: int = Field(64, ge=1, le=1024, description="pairs that a picture looks up")
    heads: int = Field(8, gt=0, description="attention heads; a divisor of the joint width")
    image_size: int = Field(192, ge=32, le=512, multiple_of=32, description="side of the pictures that the frozen encoder sees, in pixels")

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.neighbours > self.references:
            raise ValueError(f"Found retrieval.neighbours {self.neighbours} of {self.references} references, expected so many at most; change one of them.")
        return self


class RoiFeatures(Config):
    """Reads regions that a frozen network found in the picture, beside the pixels (PyramidCLIP, arXiv 2204.14095)."""

    regions: int = Field(10, ge=1, le=100, description="regions of a picture, the surest ones; the paper's detector gives 10")
    blocks: int = Field(6, gt=0, description="last blocks of the image tower that read them")
    image_size: int = Field(192, ge=64, le=512, multiple_of=32, description="side of the pictures that the frozen network sees, in pixels; a cell is 32 wide")
    names: int = Field(3, ge=1, description="names of what was found that make the text, at most")

    @model_validator(mode="after")
    def _cells(self) -> Self:
        if self.regions > (cells := (self.image_size // 32) ** 2):
            raise ValueError(
                f"Found roi_features.regions {self.regions} of {cells} cells at image_size {self.image_size}, expected so many at most; change one."
            )
        return self


class PatchClusters(Config):
    """Clusters of patches, found by k-means over the training pictures before training begins."""

    kind: Literal["patch_clusters"] = "patch_clusters"
    vocabulary: int = Field(8192, ge=2, description="number of clusters")
    patches: int = Field(400_000, ge=2, description="patches of training pictures that are clustered, at most")


class Dvae(Config):
    """The encoder of DALL-E's discrete VAE (arXiv 2102.12092), whose 8,192 tokens BEiT and FLAVA predict, from a file of yours."""

    kind: Literal["dvae"] = "dvae"
    weights: str = Field("", description="safetensors file with the encoder's tensors under their official names (blocks.input.w, ...)")
    width: int = Field(256, gt=0, multiple_of=4, description="channels of the first group")
    vocabulary: int = Field(8192, ge=2, description="number of tokens")


class Regions(Config):
    """A dense head over the patches: boxes, and regions that are compared with words (GLIP, arXiv 2112.03857) or concepts (DetCLIP, arXiv 2209.09407)."""

    reads: Literal["prompt", "concepts"] = Field("prompt", description="all phrases as one text, word by word; or each phrase alone, as one vector")
    definitions: bool = Field(False, description="concepts: a name becomes 'name, definition' where the packaged dictionary knows it or one like it")
    width: int = Field(256, gt=0, description="channels of the head")
    blocks: int = Field(4, ge=1, le=16, description="convolutions in front of each answer; FCOS 4, GLIP 6 blocks of another kind")
    levels: int = Field(3, ge=2, le=6, description="resolutions of the patch map: twice, once, a half, ...; GLIP 5")
    anchor_scale: float = Field(8.0, gt=0, description="side of the boxes for matching / stride of their level; GLIP 8")


ImageTower = Annotated[Vit | VitGrouping | ClipResnet | TimmTrunk | EfficientnetLite0, Field(discriminator="kind")]
TextTower = Annotated[ClipTransformer | Bert | Minilm | Rendered | SharedText, Field(discriminator="kind")]
Fusion = Annotated[JointFusion | GatedFusion, Field(discriminator="kind")]
VisualTokens = Annotated[PatchClusters | Dvae, Field(discriminator="kind")]


class TwoTower(Config):
    """An image tower and a text tower that meet in one joint space."""

    image: ImageTower = Vit()
    text: TextTower = ClipTransformer()
    width: int = Field(512, gt=0, description="channels of the joint embedding (what the packaged trunks add on their own not counted)")
    activation: Activation = Field("gelu", description="of the Transformer blocks; weights by OpenAI and of LAION-400M want quick_gelu")
    scale: LogitScale = LogitScale()
    fusion: Fusion | None = Field(None, description="looks at picture and text together, beside the joint space; none: two towers alone")
    decoder: CaptionDecoder | None = Field(None, description="writes captions; none: the model cannot")
    regions: Regions | None = Field(None, description="finds what a phrase names, with a box; none: the model sees whole pictures only")
    retrieval: Retrieval | None = Field(None, description="pictures look up pairs of a reference set; none: they stand for themselves")
    roi_features: RoiFeatures | None = Field(None, description="regions that a frozen network found are read while training; none: pixels alone")
    visual_tokens: VisualTokens | None = Field(None, description="what masked image modelling guesses; none: no tokens")

    def packaged(self) -> dict[str, str]:
        """Packaged weights that are in this model, and what they are to it: where a tower begins (`initial`), or what looks at pairs for it (`encoder`)."""
        looking = (("efficientnet_lite0", "minilm") if self.retrieval else ()) + (("efficientnet_lite0",) if self.roi_features else ())
        return dict.fromkeys(looking, "encoder") | {tower.kind: "initial" for tower in (self.image, self.text) if isinstance(tower, EfficientnetLite0 | Minilm)}

    @model_validator(mode="after")
    def _patch_grid(self) -> Self:
        if self.visual_tokens is not None and not hasattr(self.image, "patch_size"):
            raise Incompatible(
                f"Found model.visual_tokens with the image tower {self.image.kind!r}, which has no grid of patches, expected one that has; "
                "choose model.image={kind: vit} or model.visual_tokens=null."
            )
        return self

    @model_validator(mode="after")
    def _reads_regions(self) -> Self:
        if self.roi_features is not None:
            if not isinstance(self.image, Vit):
                raise Incompatible(
                    f"Found model.roi_features in the image tower {self.image.kind!r}, expected vit, whose blocks can be entered; choose model.image={{kind: vit}}."
                )
            if self.roi_features.blocks > self.image.layers:
                raise Incompatible(
                    f"Found model.roi_features.blocks {self.roi_features.blocks} in a tower of {self.image.layers} blocks, expected at most so many; lower it."
                )
        return self

    @model_validator(mode="after")
    def _looks(self) -> Self:
        if self.decoder is not None:
            _divide("text.width", getattr(self.text, "width", 0), "decoder.heads", self.decoder.heads)
        if isinstance(self.fusion, GatedFusion):
            if not isinstance(self.image, Vit) or not isinstance(self.text, ClipTransformer):
                raise Incompatible(
                    f"Found model.fusion gated_fusion in the towers {self.image.kind!r} and {self.text.kind!r}, expected vit and clip_transformer, whose blocks "
                    "can be entered; choose model.fusion={kind: joint_fusion}."
                )
            least = min(self.image.layers, self.text.layers)
            if self.fusion.blocks > least:
                raise Incompatible(f"Found model.fusion.blocks {self.fusion.blocks} in towers of {least} blocks, expected at most so many; lower it.")
        return self

    @model_validator(mode="after")
    def _fits(self) -> Self:
        names, sentence = getattr(self.image, "names", False), getattr(self.text, "sentence", False)
        if names != sentence:
            raise Incompatible(
                f"Found image names={names} with text sentence={sentence}, expected both or neither, since the two parts are compared with each other; "
                f"set model.{'image.names' if names else 'text.sentence'}=false or choose the packaged tower on the other side."
            )
        if isinstance(self.text, Rendered | SharedText) and not isinstance(self.image, Vit):
            raise Incompatible(
                f"Found the text tower {self.text.kind!r}, which is the image tower, with {self.image.kind!r}, expected vit; choose model.image={{kind: vit}}."
            )
        if isinstance(self.text, Rendered) and isinstance(self.image, Vit) and self.text.image_size != self.image.image_size:
            raise Incompatible(
                f"Found texts drawn at model.text.image_size {self.text.image_size} and pictures at {self.image.image_size}, expected one size; change one of them."
            )
        if isinstance(self.text, SharedText) and isinstance(self.image, Vit) and self.image.pool == "map":
            raise Incompatible(
                "Found the text tower 'shared_text' with model.image.pool 'map', which would also look at padding; set model.image.pool=tok or avg."
            )
        if self.retrieval is not None and names:
            raise Incompatible(
                "Found model.retrieval with image names=true, expected embeddings that are learnt as a whole; set model.image.names=false and model.text.sentence=false."
            )
        if self.retrieval is not None:
            _divide("width", self.width, "retrieval.heads", self.retrieval.heads)
        return self
