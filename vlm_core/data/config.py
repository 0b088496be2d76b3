"""Settings of every data verb, in flow order. Torch-free."""

from pydantic import Field, field_validator

from vlm_core.config import Config
from vlm_core.data.sample import ORIGINS
from vlm_core.errors import did_you_mean


class Crawl(Config):
    """Pages of a site, of an archive, or none (a table of addresses needs no pages)."""


class Extract(Config):
    """Pages or tables to candidate pairs."""


class Download(Config):
    """Candidate pairs to pictures."""


class Embed(Config):
    """Pictures and texts to embeddings."""


class Filter(Config):
    """Which samples stay."""


class Recaption(Config):
    """Rewording by a language model."""


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
    caption_weights: dict[str, float] = Field(default={}, description="how often a caption is chosen, by origin (alt, rewritten, ...); an origin not named weighs 1")

    @field_validator("caption_weights")
    @classmethod
    def _known(cls, weights: dict[str, float]) -> dict[str, float]:
        for origin, weight in weights.items():
            if origin not in ORIGINS:
                raise ValueError(f"Found the caption origin {origin!r} in caption_weights, expected a known one; {did_you_mean(origin, ORIGINS)}")
            if weight < 0:
                raise ValueError(f"Found the weight {weight} for captions of origin {origin!r}, expected 0 or more; change that value.")
        return weights


class EvalSets(Config):
    """Labelled test sets."""
