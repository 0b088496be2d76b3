"""Settings of the feature store. Torch-free."""

from pydantic import Field

from vlm_core.config import Config


class Features(Config):
    """Run a model over the labelled sets once; every method that needs only features reads the result."""

    datasets: list[str] = Field([], description="names of labelled sets; empty takes all that are there")
    views: int = Field(0, ge=0, le=64, description="augmented views of each training picture beside the evaluation view (Tip-Adapter's keys use 10)")
    batch: int = Field(64, gt=0, description="pictures or texts encoded at once")
    seed: int = Field(0, ge=0, description="seed of the augmented views")
