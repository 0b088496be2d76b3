"""Settings of the two searches over recipes. Torch-free."""

from typing import Self, TypeVar

from pydantic import Field, field_validator, model_validator

from vlm_core.config import Config
from vlm_core.data.config import EvalSets, Shard
from vlm_core.data.sample import ORIGINS
from vlm_core.errors import did_you_mean
from vlm_core.evaluate.config import Evaluate

# Odds of 0 for all origins give the raw caption: the one that names the sample, which is never a further one of its page nor a generated one.
RAW = dict.fromkeys(ORIGINS, 0.0)


Named = TypeVar("Named")


def _names(named: dict[str, Named], what: str) -> dict[str, Named]:
    for name in named:
        if not name.isidentifier():
            raise ValueError(f"Found the {what} {name!r}, expected a name of letters, digits and '_'; change it.")
    return named


class Composed(Config):
    """A candidate of its own: a recipe with changes."""

    recipe: str = Field("clip_tiny", description="recipe of pretrain")
    changes: list[str] = Field(default=[], description="settings laid over that recipe, as --set takes them, such as objectives.sigmoid={}")


class Race(Config):
    """What both have: recipes at equal pairs seen, over seeds, judged by one evaluator."""

    recipes: list[str] = Field(default=[], description="recipes of pretrain; empty: every one whose name ends in _tiny")
    variants: dict[str, Composed] = Field(
        default={}, description="further candidates by a name of yours: recipes with changes of their own, such as more objectives"
    )
    base: str = Field("clip_tiny", description="recipe that all are compared with; always takes part")
    samples: int = Field(40_000, ge=1, description="pairs seen by each, the same for all: the budget of one run")
    seeds: int = Field(3, ge=1, le=100, description="runs of each, with seeds 0, 1, ...")
    changes: list[str] = Field(default=[], description="settings laid over every recipe, as --set takes them, such as fit.precision=bf16")
    evaluate: Evaluate = Field(default=Evaluate(), description="the evaluator, the same for all; its despite_takedowns holds for training, too")
    primary: str = Field("heldout/matching/auc", description="dataset/task/metric that orders the table")
    side_by_side: int = Field(1, ge=1, le=256, description="runs at a time; they divide the cores, since small models do not use several well")
    threads: int | None = Field(
        None, ge=1, description="cores of one run; none: those of the machine divided by side_by_side. Weights are equal to the bit at equal threads only"
    )

    @field_validator("variants")
    @classmethod
    def _named(cls, variants: dict[str, Composed]) -> dict[str, Composed]:
        return _names(variants, "variant")

    @property
    def reads_the_world(self) -> bool:
        return True  # recipes are code: each part decides itself whether it is the same as before


class ComparePretraining(Race):
    """Every recipe on one snapshot, at equal pairs and seeds, against one of them."""


class Variant(Config):
    """One way from the crawl to training data."""

    filter: str = Field("demo_filter", description="recipe of filter")
    changes: list[str] = Field(default=[], description="settings laid over that recipe, as --set takes them, such as cuts.clip.fraction=0.5")
    captions: dict[str, float] = Field(
        default={},
        description="how often a caption is chosen, by origin (alt, rewritten, ...), for recipes that read one caption and do not say which; one not named weighs 1",
    )


class Sweep(Race):
    """Recipes x ways to filter, against plain CLIP on the unfiltered crawl; the search drops what falls behind and says what it began with."""

    data: dict[str, Variant] = Field(
        default={"crawl": Variant(filter="no_filter", captions=RAW), "filtered": Variant(captions=RAW), "filtered_captions": Variant()},
        min_length=1, description="training data by name",
    )  # fmt: skip
    base_data: str = Field("crawl", description="training data of the base: must hold all that the others keep, so that no test sample was trained on")
    judged_on: str = Field("filtered", description="training data whose held-out pairs judge all models")
    rungs: int = Field(0, ge=0, le=5, description="rounds before the last, with one seed each; 0: a plain grid")
    keep: float = Field(1 / 3, gt=0, lt=1, description="share of the candidates that a round leaves; a round sees this share of the pairs of the next")
    max_pairs: int = Field(20_000_000, ge=1, description="pairs seen by all runs together at most; a larger plan is refused before it begins")
    shard: Shard = Field(default=Shard(samples_per_shard=500, grow=False), description="how samples are laid out, the same for all")
    eval_sets: EvalSets = Field(default=EvalSets(), description="labelled test sets, made apart from all that the base data hold")

    @field_validator("data")
    @classmethod
    def _data_named(cls, data: dict[str, Variant]) -> dict[str, Variant]:
        return _names(data, "training data")

    @model_validator(mode="after")
    def _known(self) -> Self:
        for field in ("base_data", "judged_on"):
            if (name := getattr(self, field)) not in self.data:
                raise ValueError(f"Found {field} {name!r}, expected one of data; {did_you_mean(name, self.data)}")
        return self
