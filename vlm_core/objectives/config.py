"""The menu of pre-training objectives: one optional field each, absent = off. Torch-free.

`needs` names what an objective reads beside pairs of pictures and texts; `vlm_core/train/fits.py` says who delivers it and refuses what does not fit.
"""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from vlm_core.config import Config
from vlm_core.data.shards.view_config import Superpixels
from vlm_core.errors import Incompatible

Need = Literal[
    "bias", "second_caption", "second_view", "two_views", "key_view", "augmented_text", "labels", "patches", "tokens", "dense", "image_mask", "text_mask",
    "slow_towers", "alone", "fusion", "decoder", "prefix", "visual_tokens", "grouping", "superpixels", "neighbours", "scenes", "one_tower",
    "picture_ids", "detections",
]  # fmt: skip


class Objective(Config):
    """What all have."""

    weight: float = Field(1.0, gt=0, description="factor in the sum of all terms")

    needs: ClassVar[frozenset[Need]] = frozenset()
    joins: ClassVar[bool] = True  # brings matching pictures and texts together in the joint space


class Pairwise(Objective):
    """Those that compare all rows of a batch with all others."""

    chunk_size: int = Field(0, ge=0, description="rows of logits made at a time and made again in backward; 0: all at once")


class ImageTextContrastive(Pairwise):
    """Symmetric InfoNCE over all pairs of the global batch (CLIP, arXiv 2103.00020)."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target that is spread over all pairs (ALIGN, arXiv 2102.05918: 0.1)")
    local_loss: bool = Field(True, description="each rank scores only its own rows against all others: n x N logits instead of N x N")
    gather_with_grad: bool = Field(True, description="gradients flow back to the rank an embedding came from; off: gradients are N / n times too small")

    @model_validator(mode="after")
    def _exact(self) -> Self:
        if self.local_loss and not self.gather_with_grad:
            raise Incompatible(
                "Found local_loss=true with gather_with_grad=false, expected another pair, since that one gives gradients of a wrong direction; "
                "set gather_with_grad=true (exact), or local_loss=false."
            )
        return self


class Sigmoid(Pairwise):
    """Every pair of the global batch is its own yes-or-no question (SigLIP, arXiv 2303.15343)."""

    needs = frozenset({"bias"})


class WeightedCaptions(Pairwise):
    """Raw and synthetic caption of each picture, weighted by how far the three agree (ALIP, arXiv 2308.08428)."""

    gamma: float = Field(2.0, gt=0, description="how sharply disagreement lowers a weight")
    momentum: float = Field(0.99, ge=0, lt=1, description="of the running means of the three agreements")
    start: float | None = Field(1.0, ge=-1, le=1, description="first value of the running means (ALIP: 1); none: those of the first batch")

    needs = frozenset({"second_caption"})


class SoftTarget(Pairwise):
    """Symmetric InfoNCE whose other pairs share a part of the target (PyramidCLIP, arXiv 2204.14095)."""

    alpha: float = Field(0.2, ge=0, lt=0.5, description="share of the target that goes to other pairs")


class OptimalTransport(Pairwise):
    """Soft targets by optimal transport on the similarities of a slow copy of the towers (OTTER, arXiv 2112.09445)."""

    alpha: float = Field(0.5, ge=0, le=1, description="share of the contrastive part; the transport part has the rest")
    epsilon: float = Field(0.15, gt=0, description="regularisation of the plan; higher is softer")
    iterations: int = Field(5, ge=1, description="of Sinkhorn")
    image_weight: float = Field(1.0, ge=0, description="of picture-to-picture similarity in the plan")
    text_weight: float = Field(1.0, ge=0, description="of text-to-text similarity in the plan")
    remove_diag: bool = Field(True, description="a picture (a text) gets no credit for being like itself")
    momentum: float = Field(0.999, ge=0, lt=1, description="of the slow copy")
    scale_init: float = Field(49.4, ge=1, le=100, description="first value of the transport part's own logit scale")

    needs = frozenset({"slow_towers"})


class NearestNeighbour(Pairwise):
    """A picture also meets the earlier text that is nearest to its own (DeCLIP, arXiv 2110.05208)."""

    bank: int = Field(65_536, ge=2, description="texts of earlier batches that are kept")

    needs = frozenset({"second_view", "augmented_text"})
    joins = False  # only pictures learn


class MultiView(Pairwise):
    """Two views of the picture times two forms of the text (DeCLIP, arXiv 2110.05208)."""

    needs = frozenset({"second_view", "augmented_text"})


class MultiCrop(Pairwise):
    """The picture and two further crops of it meet the caption, each by itself (KELIP, arXiv 2203.14463)."""

    needs = frozenset({"two_views"})


class MultiText(Pairwise):
    """Every picture meets two of its captions per step (LaCLIP-MT, arXiv 2305.20088)."""

    needs = frozenset({"second_caption"})


class TokenWise(Pairwise):
    """Every patch and every word finds its best partner on the other side (FILIP, arXiv 2111.07783)."""

    top_k: int | None = Field(None, ge=1, description="tokens per side that others are compared with, the best of the own pair; none: all")

    needs = frozenset({"dense"})


class Hierarchical(Pairwise):
    """Whole picture with summary, local crop with original text (PyramidCLIP, arXiv 2204.14095)."""

    alpha: float = Field(0.2, ge=0, lt=0.5, description="share of the target that goes to other pairs")

    needs = frozenset({"second_view", "second_caption"})


class CrossLevel(Pairwise):
    """Regions found in the picture meet summary and original text, whole picture and local crop the names of what was found (PyramidCLIP, arXiv 2204.14095)."""

    alpha: float = Field(0.2, ge=0, lt=0.5, description="share of the target that goes to other pairs")
    regions: float = Field(
        0.5, ge=0, le=1, description="share of the terms with regions; those with names have the rest (lambda and mu of the paper are equal)"
    )

    needs = frozenset({"second_view", "second_caption", "detections"})


class Mixup(Pairwise):
    """Pictures or texts are mixed with those of another pair (ZeroVL, arXiv 2112.09331)."""

    beta: float = Field(0.1, gt=0, description="both parameters of the Beta distribution of the share; small: mostly one of the two")

    needs = frozenset({"alone"})


class CrossModalMixup(Pairwise):
    """Picture, text and a mixture of both are three views of one pair for one Transformer (OneR, arXiv 2211.11153)."""

    least: float = Field(0.25, ge=0, lt=0.5, description="smallest share of patches, and of words, in the mixture")

    needs = frozenset({"one_tower"})


class ImageTextLabel(Pairwise):
    """Pairs of one class, that is of equal captions, are all right for each other (UniCL, arXiv 2204.03610)."""

    needs = frozenset({"labels"})


class ImageContrastive(Pairwise):
    """Two views of a picture find each other (SimCLR, arXiv 2002.05709; beside CLIP: SLIP, arXiv 2112.12750)."""

    temperature: float = Field(0.1, gt=0, description="divides the cosines")
    hidden: int = Field(4096, gt=0, description="hidden width of the projection")
    width: int = Field(256, gt=0, description="output width of the projection")

    needs = frozenset({"two_views"})
    joins = False


class Moco(Objective):
    """A view finds the other one of a slow encoder among a queue of earlier pictures (MoCo v2, arXiv 2003.04297)."""

    temperature: float = Field(0.2, gt=0, description="divides the cosines; MoCo v1 0.07")
    momentum: float = Field(0.999, ge=0, lt=1, description="of the slow encoder")
    queue: int = Field(65_536, ge=2, description="keys of earlier batches that are kept")
    hidden: int = Field(2048, gt=0, description="hidden width of the projection")
    width: int = Field(128, gt=0, description="output width of the projection")

    needs = frozenset({"second_view", "key_view"})
    joins = False


class Simsiam(Objective):
    """Two views of a picture predict each other, without negatives (SimSiam, arXiv 2011.10566)."""

    hidden: int = Field(1024, gt=0, description="width of the projection; SimSiam 2048")
    bottleneck: int = Field(512, gt=0, description="hidden width of the predictor")

    needs = frozenset({"second_view"})
    joins = False


class MaskedLanguage(Objective):
    """Hidden words of the caption are guessed (BERT, arXiv 1810.04805; DeCLIP, arXiv 2110.05208)."""

    share: float = Field(0.15, gt=0, lt=1, description="of words that are chosen")

    needs = frozenset({"text_mask"})
    joins = False


class MaskedAutoencoder(Objective):
    """The pixels of patches that the tower did not see are painted (MAE, arXiv 2111.06377)."""

    share: float = Field(0.75, gt=0, lt=1, description="of patches that are removed")
    width: int = Field(512, gt=0, multiple_of=4, description="channels of the decoder; SegCLIP takes half of the tower's")
    layers: int = Field(8, gt=0, description="blocks of the decoder; SegCLIP 3")
    heads: int = Field(16, gt=0, description="attention heads of the decoder; a divisor of width")
    norm_pix: bool = Field(False, description="compare with patches of mean 0 and deviation 1")

    needs = frozenset({"image_mask"})
    joins = False


class MaskedImage(Objective):
    """The visual tokens of hidden patches are guessed from the patches around them (BEiT, arXiv 2106.08254)."""

    share: float = Field(0.3827, gt=0, lt=1, description="of patches that are hidden, in rectangles; FLAVA 75 of 196, as here, BEiT 0.4")

    needs = frozenset({"image_mask", "visual_tokens"})
    joins = False


class PatchGrouping(Objective):
    """Patches of one superpixel choose the same centre of a grouping tower (SegCLIP, arXiv 2211.14813)."""

    superpixels: Superpixels = Superpixels()

    needs = frozenset({"grouping", "superpixels"})
    joins = False


class FusedMaskedLanguage(Objective):
    """Hidden words of the caption are guessed while looking at the picture (ALBEF, arXiv 2107.07651; FIBER, arXiv 2206.07643)."""

    share: float = Field(0.15, gt=0, lt=1, description="of words that are chosen")

    needs = frozenset({"fusion"})
    joins = False


class MaskedCrossModal(Objective):
    """Hidden words and the visual tokens of hidden patches are guessed from what is left of the pair (FLAVA, arXiv 2112.04482)."""

    image_share: float = Field(0.3827, gt=0, lt=1, description="of patches that are hidden, in rectangles; FLAVA 75 of 196, as here")
    text_share: float = Field(0.15, gt=0, lt=1, description="of words that are chosen")

    needs = frozenset({"fusion", "image_mask", "visual_tokens"})
    joins = False


class Writing(Objective):
    """Those that write through the model's decoder."""

    chunk_size: int = Field(0, ge=0, description="captions written at a time and written again in backward; 0: all at once")


class Captioning(Writing):
    """The caption is written word by word while looking at the picture (CoCa, arXiv 2205.01917)."""

    needs = frozenset({"patches", "tokens", "decoder"})
    joins = False


class PrefixGeneration(Writing):
    """From a picture, a task prompt and the first words of the caption the rest is written (PaLI, arXiv 2209.06794; SimVLM, arXiv 2108.10904)."""

    prompt: str = Field("alt text in english :", description="words in front of every caption that say the task; '' is none")
    given: float = Field(0.5, ge=0, lt=1, description="largest share of a caption's tokens that is given; each time a share from 0 to this")

    needs = frozenset({"patches", "decoder", "prefix"})
    joins = False


class NoiseAdaptive(Pairwise):
    """Pairs whose loss says that they do not belong together get softer targets (NLIP, arXiv 2212.07086)."""

    alpha: float = Field(0.5, gt=0, lt=1, description="share of the target that goes to other pairs where a pair is surely noise")
    window: int = Field(65_536, ge=16, description="latest losses to which two Gaussians are fitted; until so many were seen all pairs count as clean")
    refit_every: int = Field(200, ge=1, description="steps between two fits")


class QueuedContrastive(Pairwise):
    """InfoNCE against the batch and embeddings of earlier batches (FIBER, arXiv 2206.07643)."""

    queue: int = Field(4096, ge=2, description="pairs of earlier batches that are kept")


class ImageTextMatching(Objective):
    """A fused pair is told from its hardest wrong ones (ALBEF, arXiv 2107.07651)."""

    needs = frozenset({"fusion", "picture_ids"})
    joins = False


class RetrievalAugmented(Pairwise):
    """CLIP's loss on picture embeddings into which similar pairs of the model's reference set are mixed (RA-CLIP, CVPR 2023)."""

    needs = frozenset({"neighbours"})


class Regional(Objective):
    """Those that look for objects in composed scenes (`scenes` of the run, `model.regions`)."""

    box: float = Field(2.0, ge=0, description="weight of GIoU; GLIP and DetCLIP 2")
    centre: float = Field(1.0, ge=0, description="weight of centerness")
    candidates: int = Field(9, ge=2, description="places per level that may answer for an object (ATSS 9)")
    alpha: float = Field(0.25, ge=0, le=1, description="weight of right pairs in the focal loss; wrong ones have the rest")
    gamma: float = Field(2.0, ge=0, description="how much less sure answers count in the focal loss")

    joins = False
    reads: ClassVar[str]  # what `model.regions` must read


class RegionWord(Regional):
    """Every region of a scene is compared with every word of a prompt (GLIP, arXiv 2112.03857)."""

    needs = frozenset({"scenes", "patches", "tokens"})
    reads = "prompt"


class RegionConcept(Regional):
    """Every region of a scene is compared with concepts that are read one by one (DetCLIP, arXiv 2209.09407)."""

    needs = frozenset({"scenes", "patches"})
    reads = "concepts"


class Objectives(Config):
    """What pre-training minimises: the weighted sum of what is not null."""

    image_text_contrastive: ImageTextContrastive | None = None
    sigmoid: Sigmoid | None = None
    weighted_captions: WeightedCaptions | None = None
    soft_target: SoftTarget | None = None
    optimal_transport: OptimalTransport | None = None
    nearest_neighbour: NearestNeighbour | None = None
    multi_view: MultiView | None = None
    multi_crop: MultiCrop | None = None
    multi_text: MultiText | None = None
    token_wise: TokenWise | None = None
    hierarchical: Hierarchical | None = None
    cross_level: CrossLevel | None = None
    mixup: Mixup | None = None
    cross_modal_mixup: CrossModalMixup | None = None
    image_text_label: ImageTextLabel | None = None
    image_contrastive: ImageContrastive | None = None
    moco: Moco | None = None
    simsiam: Simsiam | None = None
    masked_language: MaskedLanguage | None = None
    fused_masked_language: FusedMaskedLanguage | None = None
    masked_autoencoder: MaskedAutoencoder | None = None
    masked_image: MaskedImage | None = None
    patch_grouping: PatchGrouping | None = None
    masked_cross_modal: MaskedCrossModal | None = None
    captioning: Captioning | None = None
    prefix_generation: PrefixGeneration | None = None
    noise_adaptive: NoiseAdaptive | None = None
    queued_contrastive: QueuedContrastive | None = None
    image_text_matching: ImageTextMatching | None = None
    retrieval_augmented: RetrievalAugmented | None = None
    region_word: RegionWord | None = None
    region_concept: RegionConcept | None = None

    def chosen(self) -> dict[str, Objective]:
        """kind -> settings of what is on."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset[Need]().union(*(objective.needs for objective in self.chosen().values()))
