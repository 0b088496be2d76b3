"""Named settings of comparisons: of models, of recipes, of recipes and data."""

from vlm_core.evaluate.config import CompareModels
from vlm_core.race.config import ComparePretraining, Sweep


def paired() -> CompareModels:
    return CompareModels()


def tiny_recipes() -> ComparePretraining:
    """Every tiny recipe at 40,000 pairs seen, which is what clip_tiny sees in its 16 epochs of the embedded corpus, and three seeds."""
    return ComparePretraining()


def recipes_by_filter() -> Sweep:
    """A few recipes on three ways to filter the embedded crawl."""
    return Sweep(recipes=["clip_tiny", "siglip_tiny", "unicl_tiny", "slip_tiny", "laclip_tiny"])
