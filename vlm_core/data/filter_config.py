"""Settings of filter: the menu of rules. Torch-free."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vlm_core.config import Config


class Rights(Config):
    """Refuses what its page or its licence withholds."""

    page_optouts: bool = Field(True, description="drop pictures whose page opts out of machine learning")
    refused_licences: list[str] = Field(
        default=[], description="regular expressions (case folded) found in licences that are refused, such as \\bGPL or NonCommercial"
    )
    unknown: Literal["allow", "deny"] = Field("allow", description="what happens to a picture without any licence text")


class TextRules(Config):
    """Length of the caption; DataComp's basic rule is 3 words and 6 characters, counted plainly."""

    min_words: int = Field(1, ge=0, description="fewest words")
    min_chars: int = Field(2, ge=0, description="fewest characters")
    max_words: int = Field(256, ge=1, description="most words")
    by_script: bool = Field(True, description="count words of unspaced scripts by their length, and wide characters twice; off: as DataComp does")


class Titles(Config):
    """Captions that say nothing about the picture."""

    file_names: bool = Field(True, description="drop camera and file names such as IMG_2034.jpg")
    boilerplate: list[str] = Field(
        default=[
            r"(?:an? |the )?(?:image|picture|photo|photograph|img|icon|logo|thumbnail|thumb|banner|avatar|placeholder|graphic|illustration|clip ?art|card)(?: \d+)?",
            r".*\b(?:icon ?set|icons|collection|theme|cliparts)\b.*",
            r"(?:loading|untitled|unnamed|no ?(?:title|name|image)|click (?:here|to enlarge)|read more|spacer|blank|test|default)\W*\d*",
        ],
        description="regular expressions (case folded) that a useless caption matches as a whole",
    )
    max_pictures: int | None = Field(10, ge=1, description="a caption on more than this many different pictures says nothing; none: no limit")


class Personal(Config):
    """Captions with personal data or addresses."""

    email: bool = Field(True, description="drop captions with an e-mail address")
    url: bool = Field(True, description="drop captions with a web address")
    phone: bool = Field(True, description="drop captions with a telephone number")


class ImageRules(Config):
    """Size of the picture as fetched, before any resizing; DataComp's basic rule is 200 px and 3."""

    min_side: int = Field(32, ge=1, description="shortest side, in pixels")
    max_aspect: float = Field(3.0, ge=1, description="longer side / shorter side at most")


class LanguageRule(Config):
    """Identifies the language; drops a caption only when it is long and both detectors are sure that it is none of those wanted."""

    wanted: list[str] = Field(default=[], description="ISO 639-1 codes that stay; empty: every language stays, and its name is recorded")
    min_confidence: float = Field(0.8, ge=0, le=1, description="probability from which a detector is believed")
    long_chars: int = Field(25, ge=20, description="length from which a caption can be identified, in characters (wide ones count twice)")


class ExactDuplicates(Config):
    """One copy of equal bytes or equal stored pictures, chosen by preference."""

    within: Literal["picture", "language"] = Field("picture", description="keep one copy per picture, or one per picture and language")


class NearDuplicates(Config):
    """One of several pictures that look alike, chosen by preference."""

    within: Literal["picture", "language"] = Field("picture", description="keep one copy per look, or one per look and language")
    pdq_bits: int = Field(31, ge=0, le=64, description="differing bits of 256 up to which PDQ hashes match")
    phash_bits: int = Field(2, ge=0, le=16, description="differing bits of 64 up to which pHashes match")
    min_quality: int = Field(50, ge=0, le=100, description="PDQ quality from which both hashes are used")
    max_colour: float | None = Field(
        4.0, gt=0, le=255, description="mean colour difference (0 to 255) up to which a match of the grey hashes is believed; none: no second look"
    )


class SemanticDuplicates(Config):
    """SemDeDup over the image embeddings (arXiv 2303.09540)."""

    eps: float = Field(0.05, ge=0, le=1, description="a cosine above 1 - eps is a duplicate")
    clusters: int = Field(1000, ge=1, description="k-means clusters, at most one per 39 samples")
    iterations: int = Field(20, ge=1, description="k-means iterations")
    keep: Literal["hard", "easy"] = Field("hard", description="stay: the copy farthest from its centroid, or the nearest")
    seed: int = Field(0, ge=0, description="seed of k-means")


class Safety(Config):
    """Score of an image safety model on the stored picture (open_nsfw)."""

    max_score: float = Field(0.8, gt=0, le=1, description="pictures that score higher are dropped")


class ClipScore(Config):
    """Cosine of the image and text embedding."""

    kind: Literal["clip_score"] = "clip_score"


class NegClipLoss(Config):
    """CLIP score less how well image and text fit everything else (arXiv 2405.19547)."""

    kind: Literal["neg_clip_loss"] = "neg_clip_loss"
    temperature: float = Field(0.01, gt=0, description="of the softmax; the scorer's own: 0.01 for OpenAI's models")
    batch: int = Field(32_768, ge=2, description="samples compared with each other")
    repeats: int = Field(10, ge=1, description="random batchings that are averaged")
    seed: int = Field(0, ge=0, description="seed of the batchings")


class NormSim(Config):
    """p-norm of the cosines with target images (arXiv 2405.19547)."""

    kind: Literal["norm_sim"] = "norm_sim"
    targets: str = Field(description="file of target image embeddings of the same scorer, .npy (T, D)")
    p: Literal["2", "inf"] = Field("inf", description="norm over the targets")


class Hype(Config):
    """HYPE (ICLR 2024): hyperbolic closeness and specificity; the embeddings must be a hyperbolic model's tangent vectors."""

    kind: Literal["hype"] = "hype"
    image_references: str = Field(description="file of reference image embeddings, .npy (M, D)")
    text_references: str = Field(description="file of reference text embeddings, .npy (M, D)")
    curvature: float = Field(1.0, gt=0, description="of the hyperbolic space")


ScoreConfig = Annotated[ClipScore | NegClipLoss | NormSim | Hype, Field(discriminator="kind")]


class Cut(Config):
    """Keeps the best share by a score, or what reaches a threshold. A threshold belongs to one scorer; a fraction fits all."""

    score: ScoreConfig = Field(default=ClipScore(), description="what is ranked")
    fraction: float | None = Field(0.3, gt=0, le=1, description="share that stays; none: use the threshold")
    threshold: float | None = Field(None, description="score that must be reached; none: use the fraction")
    within: Literal["language", "all"] = Field("language", description="rank inside each language, or all together")
    mode: Literal["fixed", "reference"] = Field("fixed", description="exactly int(N f) with ties by uid, or DataComp's one more and all ties")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.fraction is None) == (self.threshold is None):
            raise ValueError(f"Found fraction {self.fraction} and threshold {self.threshold}, expected exactly one of them; set the other to null.")
        return self


class Targets(Config):
    """DataComp's image-based filter: keeps the clusters in which target images lie."""

    targets: str = Field(description="file of training image embeddings of the target task and the same scorer, .npy (T, D)")
    clusters: int = Field(1000, ge=1, description="k-means clusters, at most one per 39 samples")
    iterations: int = Field(20, ge=1, description="k-means iterations")
    spherical: bool = Field(False, description="normalise the centroids; off is DataComp")
    seed: int = Field(0, ge=0, description="seed of k-means")


class Balance(Config):
    """MetaCLIP: keep captions that name an entry, and thin out those that name only frequent ones."""

    entries: str = Field(description="text file of entries, one per line")
    t: int = Field(20_000, ge=1, description="captions an entry may have before it is thinned; MetaCLIP takes 20,000 for 400 M pairs")
    match: Literal["padded", "automaton"] = Field("automaton", description="how entries are found: v1, or v2 which also suits scripts without spaces")
    seed: int = Field(0, ge=0, description="seed of the draw, which depends on seed and uid only")


class Grouping(Config):
    """What must stay on one side of a split: equal captions, pictures that look alike, one author's works."""

    pdq_bits: int = Field(40, ge=0, le=64, description="differing bits of 256 up to which pictures belong together; wider than for duplicates")
    phash_bits: int = Field(4, ge=0, le=16, description="differing bits of 64 up to which pictures belong together")
    max_credit_share: float = Field(
        0.02, ge=0, le=1, description="a credit on a larger share of the samples names a collection, not an author; 0 ignores credits"
    )


class Filter(Config):
    """Which samples stay: rules run in this order, and a sample's first drop ends its trail. A rule left out does not run."""

    rights: Rights | None = Field(default=None, description="licence and opt-out of the page")
    text: TextRules | None = Field(default=None, description="length of the caption")
    titles: Titles | None = Field(default=None, description="captions that say nothing")
    personal: Personal | None = Field(default=None, description="personal data in captions")
    image: ImageRules | None = Field(default=None, description="size of the picture")
    language: LanguageRule | None = Field(default=None, description="language of the caption")
    exact_duplicates: ExactDuplicates | None = Field(default=None, description="equal pictures")
    near_duplicates: NearDuplicates | None = Field(default=None, description="pictures that look alike")
    semantic_duplicates: SemanticDuplicates | None = Field(default=None, description="pictures that mean the same")
    safety: Safety | None = Field(default=None, description="unsafe pictures")
    targets: Targets | None = Field(default=None, description="clusters of target images")
    cut: Cut | None = Field(default=None, description="the best share by a score")
    second_cut: Cut | None = Field(default=None, description="another share of what the first cut leaves")
    balance: Balance | None = Field(default=None, description="balance over entries, last because it counts what survived")
    group: Grouping = Field(default=Grouping(), description="groups for the split")
    truth: str = Field("", description="JSON lines that say what is dirty, to measure the rules; empty: not measured")
