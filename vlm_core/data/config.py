"""Settings of every data verb, in flow order. Torch-free."""

from pydantic import Field

from vlm_core.config import Config


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


class EvalSets(Config):
    """Labelled test sets."""
