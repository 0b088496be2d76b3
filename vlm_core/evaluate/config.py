"""Settings of evaluation and of promotion. Torch-free."""

from typing import Literal

from pydantic import Field

from vlm_core.config import Config


class Evaluate(Config):
    """One evaluator for every model: zero-shot, retrieval, matching and linear probe on data that no training saw."""

    datasets: list[str] = Field([], description="names of labelled test sets; empty takes all that are there")
    recall_at: list[int] = Field([1, 5, 10], min_length=1, description="cut-offs of retrieval")
    probe: bool = Field(True, description="fit a linear probe on the training split of every labelled set")
    probe_c: list[float] = Field(
        [0.01, 0.1, 1.0, 10.0],
        min_length=1,
        description="inverse strengths among which the validation split chooses: a quick probe for comparisons; vlm transfer --recipe linear_probe_full is CLIP's search",
    )
    probe_max_iter: int = Field(200, gt=0, description="L-BFGS iterations of one probe")
    caption_likelihood: bool = Field(
        False, description="also classify by how likely the model finds a class as caption (models with a decoder); a pass per picture and class"
    )
    scenes: int = Field(
        200, ge=10, le=10_000, description="composed of held-out pictures, to ground phrases in (models with regions) and to segment (models that show patches)"
    )
    segmentation: str = Field("emoji_groups", description="labelled set whose test pictures make the scenes that are segmented; empty: none")
    despite_takedowns: bool = Field(False, description="measure on held-out pairs although something of their snapshot was taken down; it stays on record")
    batch: int = Field(64, gt=0, description="pictures or texts encoded at once")
    resamples: int = Field(2_000, ge=1_000, description="bootstrap resamples behind each interval")
    seed: int = Field(0, ge=0, description="seed of the resampling")


class CompareModels(Config):
    """Evaluations of several models, each from one or more seeds, against one of them."""

    base: str = Field("clip_tiny", description="the model that all others are compared with")
    primary: str = Field("heldout/matching/auc", description="dataset/task/metric that orders the table")
    title: str = Field("Comparison of models", description="headline of the page")
    conditions: str = Field("", description="how the models came about, for the page")
    pairs_on: Literal["card", "data"] = Field(
        "card",
        description="card: differences under equal protocol cards only; data: a model's own input (pixels, tokenizer, context) is part of its method, samples and task are equal",
    )
    appendix: str = Field("", description="end of the page")
    candidates: int = Field(0, ge=0, description="models that a search began with, if it dropped some on the way: p values account for all of them")


class Promote(Config):
    """Registers a model; the challenger becomes champion only through the gate."""

    name: str = Field("vlm-base", pattern=r"^[a-z0-9][a-z0-9-]*$", description="registered model that gets a new version")
    primary: str = Field("heldout/matching/auc", description="dataset/task/metric that decides; all others guard")
    margin: float = Field(0.02, ge=0, lt=1, description="what a guard may lose, in units of its metric")
    despite_takedowns: bool = Field(False, description="a model that stands on samples that were taken down may become champion, too; it is on record then")
    resamples: int = Field(10_000, ge=1_000, description="paired bootstrap resamples")
    seed: int = Field(0, ge=0, description="seed of the resampling")
