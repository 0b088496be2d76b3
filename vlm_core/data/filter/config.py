"""Settings of filter: the menu of rules. Torch-free."""

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from vlm_core.config import Config
from vlm_core.data.filter.cut_config import Cut
from vlm_core.errors import did_you_mean


class UidList(Config):
    """Uids that somebody chose, such as DataComp's published subsets: uint64 pairs (.npy), a column uid (.parquet), or one a line (.txt)."""

    keep: str = Field("", description="file of uids; a sample that is not in it goes; empty: all may stay")
    drop: str = Field("", description="file of uids; a sample that is in it goes")

    @model_validator(mode="after")
    def _any(self) -> Self:
        if not (self.keep or self.drop):
            raise ValueError("Found uid_list without a file, expected keep or drop; name one, or set uid_list=null.")
        return self


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
    max_words: int | None = Field(256, ge=1, description="most words; none: no limit, as in DataComp")
    by_script: bool = Field(True, description="count words of unspaced scripts by their length, and wide characters twice; off: as DataComp does")


class Quality(Config):
    """Captions that are hardly language; CC12M allows a fifth of the words to be repetitions."""

    max_digits: float = Field(0.5, ge=0, le=1, description="share of digits among letters and digits at most")
    max_punctuation: float = Field(0.3, ge=0, le=1, description="share of punctuation and symbols among all characters but spaces at most")
    max_repeated_words: float = Field(0.5, ge=0, le=1, description="share of words that stood before in the caption at most")
    ngram: int = Field(2, ge=2, le=10, description="words in a run that is looked for again")
    max_repeated_ngrams: float = Field(0.3, ge=0, le=1, description="share of such runs that stood before in the caption at most")
    markup: bool = Field(True, description="drop captions in which HTML entities or tags are left after one unescaping")


class BlockedWords(Config):
    """Words that no caption may hold, such as profanity; the list is yours."""

    file: str = Field(description="text file, one word or phrase a line; # begins a comment")


class Vocabulary(Config):
    """Text-based filter: keeps captions that name a thing of a vocabulary (DataComp's takes the classes of ImageNet-21k)."""

    file: str = Field("", description="text file, one word or phrase a line; empty: the names of the 1,000 ImageNet classes, from their package")
    languages: list[str] = Field(default=["en"], description="ISO 639-1 codes that the vocabulary is written in; empty: any")
    others: Literal["drop", "keep"] = Field("drop", description="what happens to captions in other languages")
    mode: Literal["fixed", "reference"] = Field(
        "fixed", description="letters of any case, phrases and English plurals; or words between white space exactly as they stand, as DataComp does"
    )


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
    iban: bool = Field(True, description="drop captions with an international bank account number whose check digits are right")
    card: bool = Field(True, description="drop captions with a payment card number (right length, first digit and Luhn check digit)")
    ip_address: bool = Field(True, description="drop captions with an IPv4 or IPv6 address")
    national_id: bool = Field(True, description="drop captions with a personal number of the US, Korea, France, Spain, China or Brazil")


class ImageRules(Config):
    """Size of the picture as fetched, before any resizing; DataComp's basic rule is 200 px and 3."""

    min_side: int = Field(32, ge=1, description="shortest side, in pixels")
    max_aspect: float = Field(3.0, ge=1, description="longer side / shorter side at most")
    min_bytes: int = Field(0, ge=0, description="size of the file as fetched at least, in bytes; LAION takes 5,000")
    formats: list[str] = Field(default=[], description="file formats that stay, such as jpeg or png; empty: all. CC3M and CC12M take jpeg only")


class Domains(Config):
    """Which sites a picture may come from. A name stands for itself and everything below it."""

    only: list[str] = Field(default=[], description="hosts or domains that stay; empty: all but those of never")
    never: list[str] = Field(default=[], description="hosts or domains that are refused")


class DomainCap(Config):
    """No registrable domain fills more than its share of the set; which samples stay depends on uid and seed only."""

    max_samples: int = Field(10_000, ge=1, description="samples of one registrable domain at most")
    seed: int = Field(0, ge=0, description="seed of the draw")


class LanguageRule(Config):
    """Identifies the language; drops a caption only when it is long and both detectors are sure that it is none of those wanted."""

    who: Literal["detectors", "page", "fasttext"] = Field(
        "detectors",
        description="who says which language it is; page: what the table says is taken as it is; fasttext: its lid.176 alone, unsure or not, as in DataComp",
    )
    wanted: list[str] = Field(default=[], description="ISO 639-1 codes that stay; empty: every language stays, and its name is recorded")
    min_confidence: float = Field(0.8, ge=0, le=1, description="probability from which a detector is believed")
    long_chars: int = Field(25, ge=20, description="length from which a caption can be identified, in characters (wide ones count twice)")


class Decontaminate(Config):
    """Drops what an evaluation set holds: equal bytes, near hashes of any turn, vectors as close as those of augmented copies, runs of words of its captions."""

    prints: str = Field(description="file of fingerprints that 'vlm fingerprint' made of the evaluation sets (prints.parquet)")
    pdq_bits: int = Field(31, ge=0, le=64, description="differing bits of 256 up to which PDQ hashes match")
    phash_bits: int = Field(2, ge=0, le=16, description="differing bits of 64 up to which pHashes match")
    altered_bits: int = Field(52, ge=0, le=64, description="differing bits of 256 up to which PDQ hashes of crops, small turns and negatives match")
    min_quality: int = Field(50, ge=0, le=100, description="PDQ quality from which both hashes are used")
    use_vectors: bool = Field(True, description="compare image embeddings, too; they find crops, which hashes miss")
    min_cosine: float | None = Field(None, ge=-1, le=1, description="cosine from which a picture counts as a copy; none: the one that was calibrated")
    ngram: int = Field(13, ge=2, le=50, description="words of a caption in a row that give it away; shorter captions of 6 words or more count as a whole")


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
    neighbours: int = Field(2, ge=1, le=10, description="nearest clusters in which a picture's duplicates are looked for; 1: its own only, as in the paper")
    chains: Literal["reference", "greedy"] = Field("reference", description="every earlier picture makes others go, or (greedy) only one that stays")
    seed: int = Field(0, ge=0, description="seed of k-means")


class Safety(Config):
    """Score of an image safety model on the stored picture (open_nsfw)."""

    max_score: float = Field(0.8, gt=0, le=1, description="pictures that score higher are dropped")


class Faces(Config):
    """Finds faces (OpenCV's frontal and profile cascades), counts them and keeps their places, so that shards can be written with faces blurred."""

    max_faces: int | None = Field(None, ge=0, description="pictures with more faces are dropped; none: they are only counted")
    min_share: float = Field(0.08, gt=0, le=1, description="smallest face that is looked for, as a share of the picture's shorter side")
    neighbours: int = Field(5, ge=1, le=50, description="overlapping hits that make a face: fewer find more faces, and more that are none")


class Hook(Config):
    """A score that somebody else's model gave (watermark, aesthetics), from a Parquet file, with limits on both sides."""

    file: str = Field(description="Parquet file with uid and the score")
    column: str = Field("score", description="column of the score")
    min_score: float | None = Field(None, description="score that must be reached; none: no lower limit")
    max_score: float | None = Field(None, description="score that must not be exceeded; none: no upper limit")
    missing: Literal["keep", "drop"] = Field("keep", description="what happens to samples without a score")


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
    per_language: bool = Field(
        False, description="t is that of English; each other language gets the one that leaves the same share of matches to rare entries (MetaCLIP 2)"
    )
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
    """Which samples stay: rules run in this order or in that of `order`, and a sample's first drop ends its trail. A rule left out does not run."""

    uid_list: UidList | None = Field(default=None, description="samples that somebody listed")
    rights: Rights | None = Field(default=None, description="licence and opt-out of the page")
    domains: Domains | None = Field(default=None, description="sites that pictures may come from")
    text: TextRules | None = Field(default=None, description="length of the caption")
    quality: Quality | None = Field(default=None, description="captions that are hardly language")
    titles: Titles | None = Field(default=None, description="captions that say nothing")
    blocked_words: BlockedWords | None = Field(default=None, description="words that no caption may hold")
    personal: Personal | None = Field(default=None, description="personal data in captions")
    image: ImageRules | None = Field(default=None, description="size of the picture")
    language: LanguageRule | None = Field(default=None, description="language of the caption")
    vocabulary: Vocabulary | None = Field(default=None, description="captions that name a thing of a vocabulary")
    decontaminate: Decontaminate | None = Field(default=None, description="what evaluation sets hold")
    exact_duplicates: ExactDuplicates | None = Field(default=None, description="equal pictures")
    near_duplicates: NearDuplicates | None = Field(default=None, description="pictures that look alike")
    semantic_duplicates: SemanticDuplicates | None = Field(default=None, description="pictures that mean the same")
    safety: Safety | None = Field(default=None, description="unsafe pictures")
    faces: Faces | None = Field(default=None, description="faces in pictures")
    watermark: Hook | None = Field(default=None, description="limits on an outside watermark score")
    aesthetic: Hook | None = Field(default=None, description="limits on an outside score of beauty")
    targets: Targets | None = Field(default=None, description="clusters of target images")
    cuts: dict[str, Cut] = Field(default={}, description="the best shares by scores, by names of yours; each is a rule cuts.NAME, and they run in the order of their names")
    domain_cap: DomainCap | None = Field(default=None, description="most samples of one domain")
    balance: Balance | None = Field(default=None, description="balance over entries, last because it counts what survived")
    group: Grouping = Field(default=Grouping(), description="groups for the split")
    truth: str = Field("", description="JSON lines that say what is dirty, to measure the rules; empty: not measured")
    order: list[str] = Field(default=[], description="the rules that are set, each once, in the order in which they run; empty: the order of this form")

    def chosen(self) -> list[str]:
        """The rules that run, in their order."""
        return self.order or self._set()

    def section(self, rule: str) -> Config:
        """The settings of a rule that is set."""
        name, _, cut = rule.partition(".")
        found: Config = self.cuts[cut] if cut else getattr(self, name)
        return found

    @classmethod
    def menu(cls) -> list[str]:
        """Every rule, in the order of the fields; `cuts` stands for any number of them."""
        return [name for name, field in cls.model_fields.items() if field.default is None or name == "cuts"]

    def _set(self) -> list[str]:
        named = [[f"cuts.{cut}" for cut in sorted(self.cuts)] if name == "cuts" else [name] * (getattr(self, name) is not None) for name in self.menu()]
        return [name for names in named for name in names]

    @field_validator("cuts")
    @classmethod
    def _names(cls, cuts: dict[str, Cut]) -> dict[str, Cut]:
        if wrong := [name for name in cuts if not re.fullmatch(r"[a-z][a-z0-9_]*", name)]:
            raise ValueError(f"Found the cut {wrong[0]!r}, expected a name of small letters, digits and _; rename it.")
        return cuts

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        chosen = self._set()
        for name in self.order:
            if name not in chosen:
                raise ValueError(f"Found the rule {name!r} in order, expected one that is set; {did_you_mean(name, chosen)}")
        if twice := sorted({name for name in self.order if self.order.count(name) > 1}):
            raise ValueError(f"Found the rule {twice[0]!r} twice in order, expected each rule once; name it once.")
        if missing := [name for name in chosen if self.order and name not in self.order]:
            raise ValueError(f"Found an order without {', '.join(missing)}, expected every rule that is set; add it, or set it to null.")
        return self
