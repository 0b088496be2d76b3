"""Settings of the three loops. Torch-free."""

from typing import Literal, Self

from pydantic import Field, model_validator

from vlm_core.config import PLACEMENT, Config
from vlm_core.data.config import Loader
from vlm_core.data.shards.scene_config import Scenes
from vlm_core.data.shards.view_config import Views
from vlm_core.distill.config import Terms
from vlm_core.errors import Incompatible, did_you_mean
from vlm_core.models.config import EfficientnetLite0, Minilm, TwoTower
from vlm_core.objectives.config import ImageTextContrastive, Objectives
from vlm_core.train.fits import check
from vlm_core.transfer.config import Method, TipAdapter

PARTS = ("image", "text", "fusion", "decoder", "regions", "retrieval", "objectives")


class Optim(Config):
    """AdamW with a linear warm-up and a schedule; no decay for gains, biases, tokens, positions and the logit scale."""

    lr: float = Field(5e-4, gt=0, description="highest learning rate")
    weight_decay: float = Field(0.2, ge=0, description="decoupled decay of matrices")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the gradient's mean")
    beta2: float = Field(0.98, ge=0, lt=1, description="decay of the gradient's square; ResNets 0.999")
    eps: float = Field(1e-6, gt=0, description="added to the root of the square; ResNets 1e-8")
    schedule: Literal["cosine", "linear", "constant", "steps"] = Field(
        "cosine", description="of lr behind the warm-up; cosine and linear end at `floor`, steps falls to a tenth at each of `milestones`"
    )
    floor: float = Field(0.0, ge=0, lt=1, description="where cosine and linear end, as a share of lr")
    milestones: list[float] = Field(default=[], description="with schedule=steps: shares of all steps at which lr falls to a tenth, in order")
    rates: dict[str, float] = Field(
        default={}, description=f"multiple of lr for the weights of a part, by its name: {', '.join(PARTS)}; one not named learns at lr"
    )
    warmup_steps: int = Field(2000, ge=0, description="steps until lr is reached; at most a fifth of all steps is used")
    warmup_share: float | None = Field(None, ge=0, lt=1, description="warm-up as a share of all steps, in the place of warmup_steps; none: steps")
    cooldown_share: float = Field(0.0, ge=0, le=1, description="share of all steps at the end in which a constant lr falls linearly to 0")
    grad_clip: float | None = Field(1.0, gt=0, description="largest norm of the whole gradient; none: not clipped")
    layer_decay: float | None = Field(
        None, gt=0, le=1, description="lr of a tower's block / that of the block above it; what lies below the blocks counts as one more; none: 1"
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of a running mean of the towers' weights, less in the first steps; the mean is what is published; none: off"
    )

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.cooldown_share and self.schedule != "constant":
            raise ValueError(
                f"Found cooldown_share {self.cooldown_share} with the schedule {self.schedule!r}, which falls by itself, expected 0; choose schedule=constant."
            )
        if bool(self.milestones) != (self.schedule == "steps") or self.milestones != sorted(self.milestones) or any(not 0 < at < 1 for at in self.milestones):
            raise ValueError(
                f"Found milestones {self.milestones} with the schedule {self.schedule!r}, expected rising shares between 0 and 1 with schedule=steps, and none with others; change one."
            )
        if self.floor and self.schedule not in ("cosine", "linear"):
            raise ValueError(f"Found floor {self.floor} with the schedule {self.schedule!r}, expected cosine or linear, which end there; drop floor.")
        for name, rate in self.rates.items():
            if name not in PARTS or rate < 0:
                raise ValueError(f"Found the rate {rate} for {name!r}, expected 0 or more for a part of the model; {did_you_mean(name, PARTS)}")
        if (self.warmup_share or 0) + self.cooldown_share > 1:
            raise ValueError(f"Found warmup_share {self.warmup_share} and cooldown_share {self.cooldown_share}, expected at most 1 together; lower one.")
        return self


class Fit(Config):
    """How long, on what, and how often something is written down."""

    epochs: int = Field(32, ge=1, description="times every sample is seen, where samples is none")
    samples: int | None = Field(
        None, ge=1, description="pairs seen in all, to the nearest whole step; the same for every batch size and snapshot; none: epochs decide"
    )
    accelerator: Literal["auto", "cpu", "gpu"] = Field("auto", description="auto takes a GPU if there is one", json_schema_extra=PLACEMENT)
    devices: int = Field(1, ge=1, le=64, description="processes on this machine, one per GPU", json_schema_extra=PLACEMENT)
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="of several processes: all weights in each (DDP), or a part of them and of their moments in each (FSDP2)",
        json_schema_extra=PLACEMENT,  # step checkpoints hold whole weights either way
    )
    micro_batch: int | None = Field(None, ge=1, description="pairs of a process that the towers see at a time, for batches larger than memory; none: all")
    gradients: Literal["cached", "accumulated"] = Field(
        "cached",
        description="with micro_batch. cached: equal to those of the whole batch, one forward pass more; accumulated: pairs of a part see only each other",
    )
    checkpoint_blocks: bool = Field(False, description="make activations inside the towers' blocks again in backward: less memory, a third more work")
    compile: Literal["off", "probe"] = Field("off", description="probe: a few steps with torch.compile and without; the faster is kept if both agree")
    precision: Literal["32", "bf16"] = Field("32", description="of the towers; losses are float32 always")
    log_every: int = Field(10, ge=1, description="steps between two rows of numbers")
    heldout_every: int = Field(
        0, ge=0, description="steps between two looks at held-out pairs: retrieval, and pictures with their nearest captions; 0: at the end only"
    )
    term_norms: bool = Field(False, description="also write down the norm of each term's gradient; one more backward pass for each, at logged steps")
    explodes: float | None = Field(
        3.0,
        gt=1,
        description="a term this many times as large as at first (and as ln of the batch's pairs) behind the warm-up, in five logged steps in a row, ends the run; none: only numbers that are not finite do",
    )
    checkpoint_every: int = Field(200, ge=1, description="steps between two step checkpoints; a crash costs at most this many")
    deterministic: bool = Field(True, description="refuse operations whose result depends on timing")


class Pretrain(Config):
    """Shards -> a vision-language model."""

    model: TwoTower = TwoTower()
    objectives: Objectives = Objectives()
    optim: Optim = Optim()
    loader: Loader = Loader()
    fit: Fit = Fit()
    views: Views = Views()
    scenes: Scenes = Scenes()
    crop_scale_min: float = Field(0.9, gt=0, le=1, description="smallest share of a picture that a random crop keeps")
    prints: bool = Field(
        False,
        description="keep hashes of the training pictures with the model: it may then choose what later models see, and no test set shares a picture with it",
    )
    seed: int = Field(0, ge=0, description="seed of first weights, order, crops, captions and dropout")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check(self)
        return self

    @property
    def cached(self) -> bool:
        """Both trunks are locked, so their features are computed once."""
        return isinstance(self.model.image, EfficientnetLite0) and self.model.image.lock and isinstance(self.model.text, Minilm) and self.model.text.lock


class Transfer(Config):
    """One method on one labelled set, over numbers of shots and seeds."""

    method: Method = TipAdapter()
    dataset: str = Field("emoji_groups", min_length=1, description="name of the labelled set")
    shots: list[int] = Field(
        [1, 4, 16], min_length=1, description="labelled pictures per class; fewer where a class has fewer; 0 takes the whole training split"
    )
    seeds: list[int] = Field([1, 2, 3], min_length=1, description="seeds of the few-shot draw, of first weights and of the order")
    resamples: int = Field(2_000, ge=1_000, description="bootstrap resamples behind each interval")

    @model_validator(mode="after")
    def _counts(self) -> Self:
        for name, values in (("shots", self.shots), ("seeds", self.seeds)):
            if min(values) < 0 or len(set(values)) != len(values):
                raise ValueError(f"Found {name} {values}, expected different numbers from 0 up; change {name}.")
        return self


CACHED_CROP = 0.9  # share of a picture from which a crop counts as the picture itself


class Distil(Config):
    """A small student learns from a trained model; its twin is trained alike without one."""

    student: Pretrain = Pretrain(objectives=Objectives(image_text_contrastive=ImageTextContrastive()))
    terms: Terms = Terms()
    teacher_views: Literal["same", "cached"] = Field(
        "same",
        description="pictures that the teacher sees. same: the student's crop, in every step (CLIP-KD); cached: the centre of each once, for students whose crops keep nine tenths",
    )
    twin: bool = Field(True, description="also train the same student without a teacher: same first weights, same batches, same steps")

    @model_validator(mode="after")
    def _learns(self) -> Self:
        if not self.terms.chosen():
            raise Incompatible(
                f"Found no distillation term, expected at least one; set for instance terms.feature_kd={{}}, or choose: {', '.join(Terms.model_fields)}."
            )
        if self.teacher_views == "cached" and self.student.crop_scale_min < CACHED_CROP:
            raise Incompatible(
                f"Found teacher_views=cached with student.crop_scale_min {self.student.crop_scale_min}, expected crops of at least {CACHED_CROP}: the teacher's embedding is that of "
                f"the whole picture; set teacher_views=same, or student.crop_scale_min={CACHED_CROP}."
            )
        if isinstance(self.student.model.image, EfficientnetLite0) and self.student.model.image.lock:
            raise Incompatible("Found a student whose image tower is locked, expected one that learns; set student.model.image.lock=false or choose vit.")
        if self.student.model.retrieval is not None:
            raise Incompatible(
                "Found a student that looks things up (model.retrieval), expected one that learns from its teacher alone; set student.model.retrieval=null."
            )
        return self
