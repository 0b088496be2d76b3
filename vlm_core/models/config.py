"""Settings of models: widths, depths, patch size, context length, what is locked. Torch-free; the two unions are the menu of towers."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vlm_core.config import Config
from vlm_core.errors import Incompatible

Activation = Literal["gelu", "quick_gelu"]


def _divide(what: str, value: int, by: str, divisor: int) -> None:
    if value % divisor:
        raise ValueError(f"Found {what} {value} and {by} {divisor}, expected a whole multiple; choose another {by}.")


class Vit(Config):
    """Vision Transformer with a LayerNorm before the blocks (CLIP, arXiv 2103.00020)."""

    kind: Literal["vit"] = "vit"
    image_size: int = Field(224, gt=0, description="side of the square input in pixels")
    patch_size: int = Field(32, gt=0, description="side of a patch in pixels")
    width: int = Field(768, gt=0, description="channels of the blocks")
    layers: int = Field(12, gt=0, description="number of blocks")
    heads: int = Field(12, gt=0, description="attention heads; a divisor of width")
    mlp_ratio: float = Field(4.0, gt=0, description="hidden width of a block / width")
    pool: Literal["tok", "avg"] = Field("tok", description="feature: the class token, or the mean of the patches")
    patch_dropout: float = Field(0.0, ge=0, lt=1, description="share of patches left out while training (FLIP, arXiv 2212.00794)")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        _divide("width", self.width, "heads", self.heads)
        _divide("image_size", self.image_size, "patch_size", self.patch_size)
        return self


class ClipResnet(Config):
    """ResNet-D with blur pooling and attention pooling (CLIP, arXiv 2103.00020)."""

    kind: Literal["clip_resnet"] = "clip_resnet"
    image_size: int = Field(224, gt=0, multiple_of=32, description="side of the square input in pixels")
    layers: list[int] = Field([3, 4, 6, 3], min_length=4, max_length=4, description="bottlenecks of the four stages")
    width: int = Field(64, gt=0, multiple_of=2, description="channels of the first stage")
    heads: int = Field(32, gt=0, description="heads of the attention pooling; a divisor of 32 x width")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        _divide("32 x width", 32 * self.width, "heads", self.heads)
        return self


class EfficientnetLite0(Config):
    """EfficientNet-Lite0 with ImageNet-1k weights from a package, and a head of ours (LiT, arXiv 2111.07991)."""

    kind: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    image_size: int = Field(192, ge=32, multiple_of=32, description="side of the square input in pixels")
    lock: bool = Field(True, description="keep the packaged weights; only the head learns, and features are computed once")
    head: Literal["linear", "mlp"] = Field("mlp", description="projection to the joint width")
    hidden: int = Field(512, gt=0, description="hidden width of the mlp head")
    dropout: float = Field(0.3, ge=0, lt=1, description="share of the head's hidden units dropped while training")
    names: bool = Field(True, description="add the text vectors of the likeliest ImageNet names to the embedding; needs text minilm with sentence")
    precision: Literal["auto", "32", "bf16"] = Field("auto", description="of the locked trunk; auto takes bf16 only where it is faster and agrees")


class ClipTransformer(Config):
    """GPT-2 style causal Transformer, read at the end-of-text token (CLIP, arXiv 2103.00020)."""

    kind: Literal["clip_transformer"] = "clip_transformer"
    context_length: int = Field(77, ge=4, description="tokens, both specials included")
    vocab_size: int = Field(49408, gt=2, description="ids of the byte-pair tokenizer")
    width: int = Field(512, gt=0, description="channels of the blocks")
    layers: int = Field(12, gt=0, description="number of blocks")
    heads: int = Field(8, gt=0, description="attention heads; a divisor of width")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        _divide("width", self.width, "heads", self.heads)
        return self


class Minilm(Config):
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

    references: int = Field(100_000, ge=1, le=2_000_000, description="pairs kept for looking up and not trained on, 3.3 kB each in the model folder; the paper a tenth of all")
    neighbours: int = Field(64, ge=1, le=1024, description="pairs that a picture looks up")
    heads: int = Field(8, gt=0, description="attention heads; a divisor of the joint width")
    image_size: int = Field(192, ge=32, le=512, multiple_of=32, description="side of the pictures that the frozen encoder sees, in pixels")

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.neighbours > self.references:
            raise ValueError(f"Found retrieval.neighbours {self.neighbours} of {self.references} references, expected so many at most; change one of them.")
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


ImageTower = Annotated[Vit | ClipResnet | EfficientnetLite0, Field(discriminator="kind")]
TextTower = Annotated[ClipTransformer | Minilm, Field(discriminator="kind")]
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
    retrieval: Retrieval | None = Field(None, description="pictures look up pairs of a reference set; none: they stand for themselves")
    visual_tokens: VisualTokens | None = Field(None, description="what masked image modelling guesses; none: no tokens")

    @model_validator(mode="after")
    def _patch_grid(self) -> Self:
        if self.visual_tokens is not None and not hasattr(self.image, "patch_size"):
            raise Incompatible(
                f"Found model.visual_tokens with the image tower {self.image.kind!r}, which has no grid of patches, expected one that has; "
                "choose model.image={kind: vit} or model.visual_tokens=null."
            )
        return self

    @model_validator(mode="after")
    def _fits(self) -> Self:
        names, sentence = getattr(self.image, "names", False), getattr(self.text, "sentence", False)
        if names != sentence:
            raise Incompatible(
                f"Found image names={names} with text sentence={sentence}, expected both or neither, since the two parts are compared with each other; "
                f"set model.{'image.names' if names else 'text.sentence'}=false or choose the packaged tower on the other side."
            )
        if self.retrieval is not None and names:
            raise Incompatible("Found model.retrieval with image names=true, expected embeddings that are learnt as a whole; set model.image.names=false and model.text.sentence=false.")
        if self.retrieval is not None:
            _divide("width", self.width, "retrieval.heads", self.retrieval.heads)
        return self
