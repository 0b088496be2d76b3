"""Systems that look at picture and text together: two-leg models."""

from vlm_core.recipes.pretrain.base import clip_tiny, clip_yfcc
from vlm_core.train.config import Pretrain

SMALL_JOINT = "model.fusion={kind: joint_fusion, width: 128, layers: 2, heads: 4}"


def albef() -> Pretrain:
    """ALBEF (arXiv 2107.07651): contrast, matching with hard negatives and words masked before a fusion of six blocks. Without its momentum distillation;
    its fusion is six blocks of a text tower that attend to the picture, ours reads both."""
    return clip_yfcc().but(
        "model.fusion={kind: joint_fusion}", "objectives.image_text_matching={}", "objectives.fused_masked_language={}", "model.image.patch_size=16",
        "model.text.context_length=30", "model.text.layers=6", "loader.batch_size=512", "optim.lr=1e-4", "optim.weight_decay=0.02", "optim.warmup_steps=1000",
        "crop_scale_min=0.2", "fit.epochs=30",
    )  # fmt: skip


def albef_tiny() -> Pretrain:
    """As clip_tiny, with matching and masked words in a fusion of two blocks."""
    return clip_tiny().but(SMALL_JOINT, "objectives.image_text_matching={}", "objectives.fused_masked_language={}", "fit.epochs=4")


FLAVA = "objectives.image_text_matching={}", "objectives.masked_cross_modal={}", "objectives.masked_language={}"


def flava() -> Pretrain:
    """FLAVA (arXiv 2112.04482): contrast, matching, masked words, and words and visual tokens masked before a fusion of six blocks, all of weight 1.
    Pairs only: no batches of pictures or texts alone; matching meets hard negatives, where the official code draws wrong texts with probability 0.1."""
    return clip_yfcc().but(
        *FLAVA, "model.fusion={kind: joint_fusion}", "model.visual_tokens={kind: patch_clusters}", "model.image.patch_size=16", "model.width=768",
        "model.text.width=768", "model.text.heads=12", "loader.batch_size=8192", "optim.lr=1e-3", "optim.warmup_steps=10000",
    )  # fmt: skip


def flava_tiny() -> Pretrain:
    """As clip_tiny, with FLAVA's objectives in a fusion of two blocks; 256 visual tokens."""
    return clip_tiny().but(*FLAVA, SMALL_JOINT, "model.visual_tokens={kind: patch_clusters, vocabulary: 256, patches: 40000}", "fit.epochs=3")


FIBER = "objectives.image_text_matching={}", "objectives.fused_masked_language={}"


def fiber() -> Pretrain:
    """FIBER's first stage (arXiv 2206.07643): contrast with a queue, matching and masked words by cross-attention in the last six blocks of both towers.
    The paper's towers are Swin-B and RoBERTa with open weights; we fuse in CLIP's, at its learning rate for weights from scratch: give towers that have learnt as `initial`. Heads learn at the same rate, where the paper's are five times as fast as open weights."""
    return clip_yfcc().but(
        *FIBER, "objectives.image_text_contrastive=null", "objectives.queued_contrastive={queue: 4096}", "model.fusion={kind: gated_fusion, blocks: 6}", "model.image.patch_size=16",
        "model.image.image_size=384", "model.text.context_length=40", "optim.lr=5e-4", "optim.weight_decay=0.01", "crop_scale_min=0.5",
        "optim.warmup_share=0.1", "optim.schedule=linear",
    )  # fmt: skip


def fiber_tiny() -> Pretrain:
    """As clip_tiny, with FIBER's matching and masked words and cross-attention in the last two blocks of both towers. Contrast is within the batch: from random weights a
    queue of the model's own older embeddings, which get no gradient, made towers collapse."""
    return clip_tiny().but(*FIBER, "model.fusion={kind: gated_fusion, blocks: 2}", "fit.epochs=4")
