"""Settings of embed, shard, the loader and eval-sets. Torch-free."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from vlm_core.config import PLACEMENT, Config
from vlm_core.data.filter.config import Grouping
from vlm_core.data.sample import ORIGINS
from vlm_core.errors import did_you_mean


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
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the towers look at pictures; auto takes a GPU if there is one")


class OpenClipScorer(Config):
    """Any open_clip model, run by clip-retrieval."""

    kind: Literal["open_clip"] = "open_clip"
    model: str = Field("ViT-B-32", description="name of the architecture in open_clip")
    checkpoint: str = Field("laion2b_s34b_b79k", description="checkpoint file, or the tag of published weights (VLM_ONLINE=1)")
    architecture: str = Field("", description="JSON file that describes an architecture of your own; empty: open_clip knows it")
    batch: int = Field(64, ge=1, description="pictures at once")
    workers: int = Field(2, ge=0, le=64, description="processes that decode pictures", json_schema_extra=PLACEMENT)


class ModelScorer(Config):
    """A model that this platform trained: a data filtering network (arXiv 2309.17425)."""

    kind: Literal["model"] = "model"
    model: str = Field("", description="registered NAME@ALIAS or NAME:VERSION, or a model's folder; empty: the folder given as the input scorer")
    unchecked: bool = Field(
        False, description="use it although nothing tells what it was trained on; off: it brings hashes of that (prints of vlm pretrain), or trained_on and eval_sets are given"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the towers look at pictures and read texts; auto takes a GPU if there is one")


ScorerConfig = Annotated[OfflineScorer | OpenClipScorer | ModelScorer, Field(discriminator="kind")]


class TextMask(Config):
    """T-MARS (arXiv 2307.03132): scores each picture once more with its lettering painted over."""

    detector: Literal["network", "strokes"] = Field("network", description="who finds the lettering: PP-OCRv4, or lines of like strokes (no weights, faster, misses more)")
    letters: int = Field(4, ge=2, le=20, description="letters in a row that count as text")


class Embed(Config):
    """Pictures and texts to embeddings in clip-retrieval's layout, and an index to search them."""

    scorer: ScorerConfig = Field(default=OfflineScorer(), description="whose embeddings")
    text_mask: TextMask | None = Field(default=None, description="score the pictures without their lettering, too")
    index_memory: str = Field("4G", pattern=r"^\d+[MG]$", description="memory that the index may take when it serves")
    python: str = Field("", description="interpreter that runs clip-retrieval; empty: this one")

    @property
    def reads_the_world(self) -> bool:
        return isinstance(self.scorer, ModelScorer) and bool(self.scorer.model)  # an alias may point elsewhere tomorrow


class Shard(Config):
    """Shards and their split."""

    format: Literal["tar", "parquet"] = Field("tar", description="tar: WebDataset, for training; parquet: for tools that read tables. The loader reads both")
    grow: bool = Field(True, description="take over the shards in the output folder whose samples are the same; off: mix and lay out everything afresh")
    seed: int = Field(0, ge=0, description="seed of the order of samples and of the split")
    held_out: float = Field(0.15, gt=0, lt=1, description="share of groups that no model is trained on")
    samples_per_shard: int = Field(10_000, ge=1, description="samples in one tar at most")
    shard_mb: int = Field(256, ge=1, description="size of one tar at most, in MB")
    group: Grouping = Field(default=Grouping(), description="what ties samples of different batches to one side of the split; inside a batch the filter says it")
    blur_faces: bool = Field(False, description="write pictures with the faces blurred that the filter's rule faces found")


class Mixed(Config):
    """A further snapshot that training reads."""

    shards: str = Field(description="folder made by 'vlm shard'")
    weight: float = Field(1.0, gt=0, description="how often a sample is drawn from it, next to weight 1 of the main snapshot")


def _caption_weights(weights: dict[str, float], where: str) -> dict[str, float]:
    for name, weight in weights.items():
        origin = name.partition(":")[0]
        if origin not in ORIGINS:
            raise ValueError(f"Found the caption origin {origin!r} in {where}, expected a known one; {did_you_mean(origin, ORIGINS)}")
        if weight < 0:
            raise ValueError(f"Found the weight {weight} for captions of origin {name!r}, expected 0 or more; change that value.")
    return weights


class CaptionSchedule(Config):
    """How the weights of captions change while training goes on: linearly to these."""

    weights: dict[str, float] = Field(default={}, description="weights by origin at the end; an origin not named weighs 1")
    begin: int = Field(0, ge=0, description="epoch in which the change begins")
    epochs: int = Field(1, ge=1, description="epochs that the change takes")

    @field_validator("weights")
    @classmethod
    def _known(cls, weights: dict[str, float]) -> dict[str, float]:
        return _caption_weights(weights, "caption_schedule.weights")


class Loader(Config):
    """How training reads shards."""

    batch_size: int = Field(128, ge=2, description="pairs per step, over all ranks together")
    workers: int = Field(0, ge=0, le=64, description="reading processes per rank; 0 reads in the training process", json_schema_extra=PLACEMENT)
    shuffle_window: int = Field(16, ge=1, description="shards whose samples are mixed with each other; as many as there are mixes all")
    cache_mb: int = Field(0, ge=0, description="decoded pictures kept in memory per process, in MB; for sets that fit")
    verify: bool = Field(False, description="compare the MD5 of every picture and record that is read with the index")
    mix: dict[str, Mixed] = Field(default={}, description="further snapshots by a name of yours, each with its weight; what one holds out no one is trained on")
    despite_takedowns: bool = Field(False, description="read a snapshot although something of it was taken down; which one and what stays on record")
    debiased: Literal["source"] | None = Field(
        None, description="source: every batch comes from one source of the snapshot alone, or from one snapshot of a mix (ZeroVL, arXiv 2112.09331); none: mixed"
    )
    language_power: float | None = Field(
        None, gt=0, le=1, description="languages of the raw captions are drawn in proportion to this power of their samples (KELIP 0.7), each in its own epochs; none: as they come"
    )
    caption_weights: dict[str, float] = Field(
        default={}, description="how often a caption is chosen, by origin (alt, rewritten, ...) or origin:language (alt:ko); one not named weighs 1"
    )
    caption_schedule: CaptionSchedule | None = Field(default=None, description="other weights in later epochs")
    caption_temperature: float | None = Field(None, gt=0, description="softmax over the image-text scores of a sample's captions, times the weights; none: scores do not matter")
    second_caption: list[str] = Field(
        default=[], description="origins of a second caption that is read beside the raw one, for objectives that see both (weighted_captions); empty: one caption"
    )

    @model_validator(mode="after")
    def _one_order(self) -> "Loader":
        if self.language_power is not None and (self.mix or self.debiased):
            other = "mix" if self.mix else "debiased"
            raise ValueError(f"Found language_power with {other}, expected one of them, since each says whose sample comes next; drop one of the two.")
        return self

    @field_validator("caption_weights")
    @classmethod
    def _known(cls, weights: dict[str, float]) -> dict[str, float]:
        return _caption_weights(weights, "caption_weights")

    @field_validator("second_caption")
    @classmethod
    def _origins(cls, names: list[str]) -> list[str]:
        _caption_weights(dict.fromkeys(names, 1.0), "second_caption")
        return names


class Fingerprint(Config):
    """Fingerprints of evaluation sets, for the rule `decontaminate` of the filter."""

    splits: list[str] = Field(default=["val", "test"], min_length=1, description="splits of datasets made by 'vlm eval-sets' whose pictures are looked for")
    recall: float = Field(0.99, gt=0, le=1, description="share of augmented copies that hashes and vectors together shall find")
    false_alarms: float = Field(0.02, ge=0, lt=1, description="share of other pictures that vectors may take for copies at most; where both cannot be had, recall gives way")
    calibrate_on: int = Field(400, ge=4, description="pictures whose copies calibrate (one half) and measure (the other)")
    pdq_bits: int = Field(31, ge=0, le=64, description="differing bits of 256 up to which PDQ hashes match, as in the rule")
    phash_bits: int = Field(2, ge=0, le=16, description="differing bits of 64 up to which pHashes match, as in the rule")
    altered_bits: int = Field(52, ge=0, le=64, description="differing bits of 256 up to which PDQ hashes of crops, small turns and negatives match, as in the rule")
    smallest_crop: float = Field(0.78, ge=0.5, le=1, description="crops whose hashes are kept, down to this share of either side (350 hashes a picture); 1: none")
    min_quality: int = Field(50, ge=0, le=100, description="PDQ quality from which both hashes are used, as in the rule")
    batch: int = Field(128, ge=1, description="pictures encoded at once")


class ExportData(Config):
    """A snapshot for others."""

    format: Literal["croissant", "datasheet", "datacomp", "hf"] = Field("croissant", description="what is written: Croissant with the shards, a datasheet, DataComp's metadata and uids, an image folder")
    name: str = Field("snapshot", min_length=1, max_length=200, description="title of the data set")
    despite_takedowns: bool = Field(False, description="export a snapshot although something of it was taken down; it stays on record and in the export")


class TakedownProof(Config):
    """Looks for everything that was taken down in every live product."""

    also: list[str] = Field(default=[], description="further files or folders to look through, such as web archives (.warc.gz)")
    cache: str = Field("", description="files/md5 of the DVC cache; empty: that of this project")
    purge: bool = Field(False, description="delete the objects of the DVC cache that hold something of it; remotes are never touched")

    @property
    def reads_the_world(self) -> bool:
        return True


class CatalogCompact(Config):
    """Merges small fragments of the catalog."""

    min_fragments: int = Field(8, ge=2, description="small fragments of a table from which on they are merged")
    small_mb: int = Field(256, ge=1, description="size below which a fragment is small, in MB")
    keep_s: float = Field(3600, ge=0, description="seconds that merged fragments stay on disk, for those who read them just then")

    @property
    def reads_the_world(self) -> bool:
        return True


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
