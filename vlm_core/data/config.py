"""Settings of every data verb, in flow order. Torch-free."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from vlm_core.config import Config
from vlm_core.data.sample import ORIGINS
from vlm_core.errors import did_you_mean


class Network(Config):
    """How the platform behaves on other people's servers."""

    agent: str = Field("VLMPlatformBot", pattern=r"^[A-Za-z_-]+$", description="product token: what robots.txt and X-Robots-Tag call us")
    contact: str = Field("", description="address at which site owners reach you, part of the User-Agent; required outside the demo")
    hosts: dict[str, str] = Field(default={}, description="explicit allow-list of private hosts, name: ADDRESS:PORT; all other private addresses are refused")
    ports: list[int] = Field(default=[80, 443, 8080, 8443], description="ports that an address may name")
    rate_per_s: float = Field(1.0, gt=0, description="requests per second to one registrable domain")
    burst: int = Field(5, ge=1, description="requests that may come at once after a pause")
    connections_per_host: int = Field(2, ge=1, le=64, description="connections to one registrable domain at once, per process")
    max_quiet_s: float = Field(60.0, gt=0, description="a host that asks for a longer pause (Retry-After) is left alone, in seconds")
    dns_timeout_s: float = Field(5.0, gt=0, description="for a name, in seconds")
    connect_timeout_s: float = Field(5.0, gt=0, description="for a connection, in seconds")
    read_timeout_s: float = Field(10.0, gt=0, description="for the next bytes, in seconds")
    tdmrep: bool = Field(True, description="ask each origin for /.well-known/tdmrep.json and obey it")


class DemoWeb(Config):
    """The embedded corpus, served as a small web on loopback while the verb runs."""

    kind: Literal["demo"] = "demo"
    corpus: str = Field("infra/demo/corpus.tar", description="tar of the embedded corpus")


class Site(Config):
    """Sites on the web, breadth first from their start pages."""

    kind: Literal["site"] = "site"
    start_urls: list[str] = Field(default=[], description="pages to begin with")
    stay_on: list[str] = Field(default=[], description="hosts that links may lead to; empty: the hosts of the start pages")


class Warc(Config):
    """Pages from a web archive."""

    kind: Literal["warc"] = "warc"
    path: str = Field("", description="WARC or WARC.gz file, or a folder of them")


class Table(Config):
    """No pages: a list of picture addresses and captions, passed on to extract."""

    kind: Literal["table"] = "table"
    path: str = Field("", description="parquet, csv, tsv, json or jsonl file")


PageSource = Annotated[DemoWeb | Site | Warc | Table, Field(discriminator="kind")]


class Crawl(Config):
    """Pages of a site, of an archive, or none (a table of addresses needs no pages)."""

    source: PageSource = Field(default=DemoWeb(), description="where pages come from")
    network: Network = Field(default=Network(), description="how we behave on other people's servers")
    max_pages: int = Field(10_000, ge=1, description="pages read at most")
    max_depth: int = Field(20, ge=0, description="links followed from a start page at most")
    max_page_kb: int = Field(5_000, ge=1, description="size of one page, in KB")
    max_minutes: float = Field(600.0, gt=0, description="time budget; what was read until then is published, in minutes")
    delay_s: float = Field(1.0, ge=0, description="pause between two requests to a host, in seconds; AutoThrottle lengthens it for slow hosts")
    sitemaps: bool = Field(True, description="also read the sitemaps that robots.txt names")
    python: str = Field("", description="interpreter that runs Scrapy; empty: this one")

    @property
    def reads_the_world(self) -> bool:
        return isinstance(self.source, Site)


class Columns(Config):
    """Which columns of a table mean what. Empty names are looked up in the preset."""

    preset: Literal["auto", "plain", "laion", "datacomp", "cc3m"] = Field("auto", description="column names of a known collection; auto: by the names found")
    url: str = Field("", description="address of the picture")
    caption: str = Field("", description="raw caption")
    lang: str = Field("", description="language of the caption")
    page_url: str = Field("", description="page on which it was found")
    licence: str = Field("", description="licence")
    credit: str = Field("", description="whom to credit")


class Extract(Config):
    """Pages or tables to candidate pairs."""

    network_agent: str = Field("VLMPlatformBot", description="product token that opt-outs in pages may name")
    columns: Columns = Field(default=Columns(), description="how to read a table; pages need none")
    figcaptions: bool = Field(True, description="figcaption is a further caption, or the raw one where alt is empty")
    titles: bool = Field(True, description="the title attribute is a further caption")
    max_caption_chars: int = Field(2_000, ge=1, description="longer captions are cut, in characters")


class Fetch(Config):
    """Budgets of one picture."""

    max_bytes: int = Field(32 * 2**20, ge=1, description="size as fetched, in bytes")
    deadline_s: float = Field(60.0, gt=0, description="for the whole exchange, redirects included, in seconds")
    retries: int = Field(2, ge=0, le=10, description="further attempts after a failure that may pass")
    retry_wait_s: float = Field(1.0, ge=0, description="pause before the first further attempt, doubled each time, in seconds")
    max_pixels: int = Field(64_000_000, ge=1, le=89_000_000, description="pixels of the whole picture, from its header")
    max_decoded_mb: int = Field(96, ge=1, description="memory that decoding one picture may take, in MB")
    min_side: int = Field(16, ge=1, description="shortest side, in pixels")
    max_aspect: float = Field(12.0, ge=0, description="longer side / shorter side; 0: any")


class Download(Config):
    """Candidate pairs to pictures: img2dataset with a hardened client of our own under it."""

    demo: str = Field("", description="tar of the embedded corpus: serve it on loopback meanwhile; empty: the web itself")
    network: Network = Field(default=Network(), description="how we behave on other people's servers")
    fetch: Fetch = Field(default=Fetch(), description="budgets of one picture")
    page_optouts: bool = Field(True, description="do not fetch pictures whose page opts out of machine learning")
    blocked_hashes: str = Field("", description="text file of SHA-256 of pictures that must not be kept; empty: none")
    placeholder_captions: int = Field(20, ge=2, description="one picture under this many different captions is a placeholder")
    image_size: int = Field(256, ge=16, le=4096, description="side that the resize mode is about, in pixels")
    resize_mode: Literal["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"] = Field("keep_ratio", description="img2dataset's resize mode")
    only_if_bigger: bool = Field(True, description="never enlarge")
    jpeg_quality: int = Field(95, ge=1, le=100, description="of the stored pictures")
    processes: int = Field(2, ge=1, le=256, description="downloading processes")
    threads: int = Field(16, ge=1, le=1024, description="connections of one process at once")
    shard_size: int = Field(1_000, ge=1, description="pictures in one tar, and in one unit of work of img2dataset")
    python: str = Field("", description="interpreter that runs img2dataset; empty: this one")


class OfflineScorer(Config):
    """EfficientNet-Lite0 and MiniLM from their packages: name bridge and LiT heads (arXiv 2111.07991), fitted in seconds on pairs of trusted hosts."""

    kind: Literal["offline"] = "offline"
    size_px: int = Field(192, ge=64, le=512, multiple_of=32, description="side of the pictures that the tower sees, in pixels")
    names: int = Field(5, ge=1, le=1000, description="likeliest ImageNet names that stand for a picture")
    trusted: list[str] = Field(default=[], description="hosts whose alt texts fit the heads; empty: every host")
    lang: str = Field("en", description="language of the captions that fit the heads; MiniLM reads English")
    fit_pairs: int = Field(3_200, ge=0, description="pairs that fit the heads at most, half of them each head; 0: the name bridge alone")
    fit_epochs: int = Field(40, ge=1, description="passes over those pairs")
    seed: int = Field(0, ge=0, description="seed of the choice of pairs and of the fit")
    precision: Literal["auto", "32", "bf16"] = Field("auto", description="of the image tower; auto: bf16 where the processor has it and the features agree")


class OpenClipScorer(Config):
    """Any open_clip model, run by clip-retrieval."""

    kind: Literal["open_clip"] = "open_clip"
    model: str = Field("ViT-B-32", description="name of the architecture in open_clip")
    checkpoint: str = Field("laion2b_s34b_b79k", description="checkpoint file, or the tag of published weights (VLM_ONLINE=1)")
    architecture: str = Field("", description="JSON file that describes an architecture of your own; empty: open_clip knows it")
    batch: int = Field(64, ge=1, description="pictures at once")
    workers: int = Field(2, ge=0, le=64, description="processes that decode pictures")


ScorerConfig = Annotated[OfflineScorer | OpenClipScorer, Field(discriminator="kind")]


class Embed(Config):
    """Pictures and texts to embeddings in clip-retrieval's layout, and an index to search them."""

    scorer: ScorerConfig = Field(default=OfflineScorer(), description="whose embeddings")
    index_memory: str = Field("4G", pattern=r"^\d+[MG]$", description="memory that the index may take when it serves")
    python: str = Field("", description="interpreter that runs clip-retrieval; empty: this one")


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


class OfflineWriter(Config):
    """SmolLM2-135M from its package: a base-model prompt, no server."""

    kind: Literal["offline"] = "offline"
    batch: int = Field(16, ge=1, le=256, description="captions at once")


class OpenAiWriter(Config):
    """A chat model behind any server that speaks OpenAI's protocol (vLLM, llama.cpp, ...)."""

    kind: Literal["openai"] = "openai"
    base_url: str = Field("http://127.0.0.1:8000/v1", pattern=r"^https?://", description="address of the server")
    model: str = Field("", description="name of the model at that server")
    api_key_env: str = Field("OPENAI_API_KEY", description="environment variable that holds the key; unset: no key is sent")
    parallel: int = Field(8, ge=1, le=256, description="requests at once")
    timeout_s: float = Field(60.0, gt=0, description="for one answer, in seconds")
    retries: int = Field(3, ge=0, le=10, description="further attempts after a failure that may pass")


WriterConfig = Annotated[OfflineWriter | OpenAiWriter, Field(discriminator="kind")]


class Gates(Config):
    """What a rewrite must pass before training sees it."""

    min_chars: int = Field(5, ge=1, description="fewest characters")
    max_words: int = Field(40, ge=1, description="most words")
    max_example_overlap: float = Field(0.6, gt=0, le=1, description="token Jaccard with an example of the prompt at most (LaCLIP: 0.9)")
    min_text_similarity: float = Field(0.5, ge=-1, le=1, description="MiniLM cosine of rewrite and raw caption at least")
    max_image_drop: float = Field(0.05, ge=0, le=2, description="how far the image-text score may fall below that of the raw caption; belongs to a scorer")


class Recaption(Config):
    """Rewording of raw captions by a language model (LaCLIP, arXiv 2305.20088); every answer passes the gates or is kept as rejected."""

    writer: WriterConfig = Field(default=OfflineWriter(), description="who rewrites")
    budget: int = Field(120, ge=0, description="captions that are rewritten, drawn by seed and uid; 0: all")
    rewrites: int = Field(1, ge=1, le=8, description="rewrites per caption, each in the next of the styles")
    styles: list[Literal["plain", "vivid", "short", "human"]] = Field(default=["plain", "vivid", "short", "human"], description="example sets shown to the model")
    languages: list[str] = Field(default=["en"], description="languages whose captions are rewritten")
    examples: int = Field(3, ge=1, le=8, description="example pairs in a prompt, drawn without replacement")
    temperature: float = Field(0.9, ge=0, le=2, description="of sampling; 0 takes the likeliest word")
    top_p: float = Field(0.95, gt=0, le=1, description="probability mass that is sampled from")
    max_tokens: int = Field(32, ge=4, le=512, description="length of an answer at most, in tokens (LaCLIP: 77)")
    seed: int = Field(0, ge=0, description="with the uid, seed of the draw, of the examples and of sampling")
    gates: Gates = Field(default=Gates(), description="what a rewrite must pass")


class Shard(Config):
    """Tar shards and their split."""

    seed: int = Field(0, ge=0, description="seed of the order of samples and of the split")
    held_out: float = Field(0.15, gt=0, lt=1, description="share of groups that no model is trained on")
    samples_per_shard: int = Field(10_000, ge=1, description="samples in one tar at most")
    shard_mb: int = Field(256, ge=1, description="size of one tar at most, in MB")


class Loader(Config):
    """How training reads shards."""

    batch_size: int = Field(128, ge=2, description="pairs per step, over all ranks together")
    workers: int = Field(0, ge=0, le=64, description="reading processes per rank; 0 reads in the training process")
    shuffle_window: int = Field(16, ge=1, description="shards whose samples are mixed with each other; as many as there are mixes all")
    cache_mb: int = Field(0, ge=0, description="decoded pictures kept in memory per process, in MB; for sets that fit")
    caption_weights: dict[str, float] = Field(
        default={}, description="how often a caption is chosen, by origin (alt, rewritten, ...); an origin not named weighs 1"
    )

    @field_validator("caption_weights")
    @classmethod
    def _known(cls, weights: dict[str, float]) -> dict[str, float]:
        for origin, weight in weights.items():
            if origin not in ORIGINS:
                raise ValueError(f"Found the caption origin {origin!r} in caption_weights, expected a known one; {did_you_mean(origin, ORIGINS)}")
            if weight < 0:
                raise ValueError(f"Found the weight {weight} for captions of origin {origin!r}, expected 0 or more; change that value.")
        return weights


DATASETS = ("emoji_groups", "emoji_subgroups", "emoji_shift", "clipart_folders")


class EvalSets(Config):
    """Labelled test sets from the embedded corpus; a test split holds nothing that resembles a training sample."""

    corpus: str = Field("infra/demo/corpus.tar", description="tar of the embedded corpus")
    datasets: list[str] = Field(default=list(DATASETS), min_length=1, description="which datasets: " + ", ".join(DATASETS))
    test_share: float = Field(0.35, gt=0, lt=1, description="pictures of a class that become its test split, if so many were not trained on")
    val_share: float = Field(0.15, gt=0, lt=1, description="groups of the rest that become the validation split")
    min_train: int = Field(16, ge=1, description="classes with fewer training pictures are left out")
    min_test: int = Field(4, ge=1, description="classes with fewer test pictures are left out")
    group: Grouping = Field(default=Grouping(max_credit_share=1), description="what must not be parted: look-alikes, equal captions, one clip-art author")
    seed: int = Field(0, ge=0, description="seed of the splits")

    @field_validator("datasets")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in DATASETS:
                raise ValueError(f"Found the dataset {name!r}, expected a known one; {did_you_mean(name, DATASETS)}")
        return names
