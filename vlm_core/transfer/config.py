"""The menu of transfer methods. Torch-free."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vlm_core.config import Config

Templates = Literal["single", "ensemble"]


class Training(Config):
    """How the parameters of a method are trained; the schedule is a cosine after a constant warm-up."""

    optimiser: Literal["sgd", "adamw"] = Field("sgd", description="update rule; sgd without Nesterov")
    lr: float = Field(0.002, gt=0, description="learning rate after the warm-up")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(5e-4, ge=0, description="L2 penalty (sgd) or decoupled decay (adamw)")
    eps: float = Field(1e-8, gt=0, description="of adamw")
    epochs: int | None = Field(None, gt=0, description="passes over the support set; absent: CoOp's 50, 100, 200 for 1, up to 4, more shots")
    batch: int = Field(32, gt=0, description="pictures per step")
    warmup_epochs: int = Field(1, ge=0, description="epochs at warmup_lr; they do not shorten the cosine")
    warmup_lr: float = Field(1e-5, gt=0, description="learning rate of the warm-up")
    cosine_per: Literal["epoch", "step"] = Field("epoch", description="how often the cosine moves")


class MethodConfig(Config):
    """What all methods' settings have in common."""

    reads_text_tower: ClassVar[bool] = False


class ZeroShot(MethodConfig):
    """Class names in templates, nothing is learnt (CLIP, arXiv 2103.00020)."""

    kind: Literal["zero_shot"] = "zero_shot"
    templates: Templates = Field("single", description="one template, or the unit mean over all of the data set's templates")


class LinearProbe(MethodConfig):
    """Logistic regression on frozen features, its strength chosen on validation data (CLIP, arXiv 2103.00020; CoOp's lpclip)."""

    kind: Literal["linear_probe"] = "linear_probe"
    protocol: Literal["clip", "grid", "coop"] = Field(
        "coop",
        description="clip: searched among eight strengths a decade from 1e-6 to 1e6, refitted on train and val; grid: best of grid, refitted alike; coop: few-shot search by bisection",
    )
    grid: list[float] = Field([1e-3, 1e-2, 0.1, 0.316, 1.0, 10.0, 100.0], min_length=1, description="inverse strengths of the grid protocol")
    steps: int = Field(8, gt=0, description="halvings of the coop protocol")
    max_iter: int = Field(1000, gt=0, description="L-BFGS iterations of one fit")


class TipAdapter(MethodConfig):
    """A cache of labelled features votes beside the text classifier; training-free (Tip-Adapter, arXiv 2207.09519)."""

    kind: Literal["tip_adapter"] = "tip_adapter"
    templates: Templates = Field("single", description="text classifier beside the cache")
    alpha: float = Field(1.17, ge=0, description="weight of the cache before the search")
    beta: float = Field(1.0, gt=0, description="sharpness of the cache before the search")
    alpha_max: float = Field(3.0, gt=0.1, description="largest weight that is tried on validation data")
    beta_max: float = Field(7.0, gt=0.1, description="largest sharpness that is tried on validation data")
    alpha_steps: int = Field(20, gt=0, description="weights tried")
    beta_steps: int = Field(200, gt=0, description="sharpnesses tried")


class TipAdapterF(TipAdapter):
    """Tip-Adapter whose cache keys are fine-tuned (Tip-Adapter-F, arXiv 2207.09519)."""

    kind: Literal["tip_adapter_f"] = "tip_adapter_f"  # type: ignore[assignment]
    training: Training = Training(optimiser="adamw", lr=1e-3, weight_decay=0.01, eps=1e-4, epochs=20, batch=256, warmup_epochs=0, cosine_per="step")


class Coop(MethodConfig):
    """Learnt context words before the class name, through the frozen text tower (CoOp, arXiv 2109.01134)."""

    kind: Literal["coop"] = "coop"
    tokens: int = Field(16, gt=0, description="learnt context tokens; ignored when words are given")
    words: str = Field("", description="initial context, for instance 'a photo of a'; empty: random N(0, 0.02)")
    position: Literal["end", "middle", "front"] = Field("end", description="where the class name stands")
    class_specific: bool = Field(False, description="one context per class instead of a shared one")
    training: Training = Training()

    reads_text_tower: ClassVar[bool] = True


Method = Annotated[ZeroShot | LinearProbe | TipAdapter | TipAdapterF | Coop, Field(discriminator="kind")]
