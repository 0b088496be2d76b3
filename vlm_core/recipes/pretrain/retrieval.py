"""Systems that look things up while they see."""

from vlm_core.recipes.pretrain.base import clip_tiny, clip_yfcc
from vlm_core.train.config import Pretrain

AUGMENTED = "objectives.image_text_contrastive=null", "objectives.retrieval_augmented={}"


def ra_clip() -> Pretrain:
    """RA-CLIP ViT-B/32 (CVPR 2023): 1.5 M of YFCC15M are references, 64 neighbours. The paper's encoders are DINO and Sentence-T5, ours come from packages. No official code."""
    return clip_yfcc().but(*AUGMENTED, "objectives.retrieval_augmented.chunk_size=1024", "model.retrieval={references: 1500000, image_size: 224}")


def ra_clip_tiny() -> Pretrain:
    """As clip_tiny, with a tenth of the pairs as references and 16 neighbours."""
    return clip_tiny().but(*AUGMENTED, "model.retrieval={references: 200, neighbours: 16, heads: 4}")
