"""Systems that learn where in a picture things are: words and boxes. They train on scenes composed of the pictures of a batch, as snapshots have no boxes."""

from vlm_core.recipes.pretrain.base import clip_tiny, clip_yfcc
from vlm_core.train.config import Pretrain

GLIP = "objectives.region_word={}", "model.regions={reads: prompt, levels: 5, blocks: 6}", "model.text.context_length=256"
DETCLIP = "objectives.region_concept={}", "model.regions={reads: concepts, definitions: true, levels: 5}", "model.text.context_length=48"
DENSE = "model.image.patch_size=16", "model.image.image_size=800", "loader.batch_size=64", "fit.epochs=30", "optim.warmup_steps=2000"
STEPPED = "optim.schedule=steps", "optim.milestones=[0.67, 0.89]", "optim.rates={text: 0.1}"
TINY = "model.image.patch_size=8", "scenes.share=0.5", "fit.epochs=8"
HEAD_TINY = "levels: 3, blocks: 1, width: 64, anchor_scale: 4"


def glip() -> Pretrain:
    """GLIP (arXiv 2112.03857): words of a prompt find their boxes, CLIP's loss beside. As GLIP-T (A) without deep fusion; ViT-B/16 at 800 px for Swin-T. Text learns at a
    tenth of the rate, which falls to a tenth at 67 and 89 %. Boxes are those of composed scenes."""
    return clip_yfcc().but(*GLIP, *DENSE, "scenes.negatives=85", "optim.lr=1e-4", "optim.weight_decay=1e-4", *STEPPED, "optim.ema=0.999")


def glip_tiny() -> Pretrain:
    """As clip_tiny with patches of 8 pixels, GLIP's objective on one scene per two pairs; a prompt of several phrases needs 64 tokens."""
    return clip_tiny().but("objectives.region_word={}", *TINY, "model.text.context_length=64", f"model.regions={{reads: prompt, {HEAD_TINY}}}")


def detclip() -> Pretrain:
    """DetCLIP (arXiv 2209.09407): 150 concepts read one by one, with definitions, CLIP's loss beside; ViT-B/16 at 800 px for Swin-T. No official code: the
    dictionary is ImageNet's names and descriptions, and labels that scenes lack are not completed."""
    return clip_yfcc().but(*DETCLIP, *DENSE, "scenes.negatives=146", "loader.batch_size=128", "fit.epochs=12", "optim.lr=2.8e-4", "optim.weight_decay=0.05",
                              "optim.rates={text: 0.1}")  # fmt: skip


def detclip_tiny() -> Pretrain:
    """As clip_tiny with patches of 8 pixels, DetCLIP's objective on one scene per two pairs."""
    return clip_tiny().but("objectives.region_concept={}", *TINY, f"model.regions={{reads: concepts, definitions: true, {HEAD_TINY}}}")
