"""Named settings of comparisons: of models, of recipes, of recipes and data."""

from vlm_core.evaluate.config import CompareModels
from vlm_core.race.config import ComparePretraining, Composed, Sweep


def paired() -> CompareModels:
    return CompareModels()


def tiny_recipes() -> ComparePretraining:
    """Every tiny recipe at 40,000 pairs seen, which is what clip_tiny sees in its 16 epochs of the embedded corpus, and three seeds."""
    return ComparePretraining()


def recipes_by_filter() -> Sweep:
    """A few recipes, and compositions of what they bring, on three ways to filter the embedded crawl; the best quarter goes on to three seeds.

    About an hour on two cores with side_by_side=2; more pairs are more telling: raise samples, and max_pairs with it.
    """
    simclr = "objectives.image_contrastive={hidden: 512, width: 128}"
    return Sweep(
        recipes=["clip_tiny", "siglip_tiny", "unicl_tiny", "slip_tiny", "laclip_tiny", "ra_clip_tiny"],
        variants={
            "two_texts_simclr": Composed(recipe="laclip_tiny", changes=[simclr]),
            "retrieval_simclr": Composed(recipe="ra_clip_tiny", changes=[simclr, "crop_scale_min=0.35"]),
            "labels_simclr": Composed(recipe="unicl_tiny", changes=[simclr, "crop_scale_min=0.35"]),
            "sigmoid_all_captions": Composed(recipe="siglip_tiny", changes=["loader.caption_weights={alt: 1}", "crop_scale_min=0.35"]),  # others weigh 1 as well
        },
        samples=10_000, rungs=1, keep=0.25, max_pairs=400_000,
    )  # fmt: skip
