"""Systems that compare pictures and texts, or pictures with pictures."""

from vlm_core.recipes.pretrain.base import SECOND, clip_tiny, clip_vit_b32, clip_yfcc
from vlm_core.train.config import Pretrain


def align() -> Pretrain:
    """ALIGN (arXiv 2102.05918): EfficientNet-L2 and BERT-Large on 100,000 word pieces, label smoothing 0.1, a logit scale from 1; 288 px for the paper's 289.
    No official code: AdamW in the place of LAMB, and the towers of timm and transformers."""
    return clip_vit_b32().but(
        "objectives.image_text_contrastive.label_smoothing=0.1", "model.scale.init=1", "model.image={kind: timm_trunk, name: tf_efficientnet_l2, image_size: 288}",
        "model.text={kind: bert, vocab_size: 100000, width: 1024, layers: 24, heads: 16}", "model.width=1376", "model.activation=gelu", "optim.lr=1e-3",
        "optim.weight_decay=1e-5", "optim.warmup_steps=10000", "optim.schedule=linear", "loader.batch_size=16384",
    )  # fmt: skip


def align_tiny() -> Pretrain:
    """As clip_tiny, with ALIGN's label smoothing."""
    return clip_tiny().but("objectives.image_text_contrastive.label_smoothing=0.1")


def slip() -> Pretrain:
    """SLIP ViT-B/16 (arXiv 2112.12750): CLIP and SimCLR on two strong views of every picture, 25 epochs."""
    return clip_yfcc().but(
        "model.image.patch_size=16", "objectives.image_contrastive={chunk_size: 1024}", "views.crop_scale_min=0.08", "crop_scale_min=0.5",
        "optim.lr=3e-3", "optim.eps=1e-8", "fit.epochs=25", "optim.warmup_share=0.04", "optim.floor=0.0033",  # one epoch; to 1e-5
    )  # fmt: skip


def slip_tiny() -> Pretrain:
    """As clip_tiny, with SimCLR beside it; three pictures per pair go through the tower, so fewer epochs."""
    return clip_tiny().but("objectives.image_contrastive={hidden: 512, width: 128}", "fit.epochs=8")


def moco_clip() -> Pretrain:
    """CLIP with a momentum queue for the image tower (MoCo v2, arXiv 2003.04297, in the place of SLIP's SimCLR)."""
    return clip_yfcc().but("objectives.moco={}", "crop_scale_min=0.5")


def moco_clip_tiny() -> Pretrain:
    """As clip_tiny, with MoCo beside it."""
    return clip_tiny().but("objectives.moco={hidden: 256, queue: 2048, momentum: 0.99}", "fit.epochs=7")


DECLIP = (
    "objectives.image_text_contrastive=null", "objectives.multi_view.weight=0.4", "objectives.nearest_neighbour.weight=0.2",
    "objectives.simsiam.weight=0.2", "objectives.masked_language.weight=0.2",
)  # fmt: skip


def declip() -> Pretrain:
    """DeCLIP ViT-B/32 (arXiv 2110.05208): two views, two texts, nearest neighbours, SimSiam and masked words, with the released weights; the logit scale stays from e^3 to e^6."""
    return clip_yfcc().but(*DECLIP, "optim.eps=1e-8", "crop_scale_min=0.2", "model.scale={min: 20.08, init: 20.08, max: 403.4}")


def declip_tiny() -> Pretrain:
    """As clip_tiny, with DeCLIP's four objectives."""
    return clip_tiny().but(*DECLIP, "objectives.nearest_neighbour.bank=2048", "objectives.simsiam={weight: 0.2, hidden: 256, bottleneck: 128}", "fit.epochs=6")


def defilip_yfcc() -> Pretrain:
    """DeFILIP ViT-B/32 (DeCLIP's benchmark, arXiv 2203.05796): DeCLIP's four objectives and FILIP's token-wise one."""
    return declip().but("objectives.token_wise={top_k: 16, chunk_size: 64}")


def otter() -> Pretrain:
    """OTTER (arXiv 2112.09445): optimal-transport targets of a slow copy; batch 512. The paper starts from an ImageNet ResNet-50 and DeCLUTR with SGD."""
    return clip_yfcc().but(
        "objectives.image_text_contrastive=null", "objectives.optimal_transport={}", "model.scale.init=49.4", "loader.batch_size=512", "fit.epochs=10",
    )  # fmt: skip


def otter_tiny() -> Pretrain:
    """As clip_tiny, with OTTER's soft targets."""
    return clip_tiny().but("objectives.image_text_contrastive=null", "objectives.optimal_transport.momentum=0.99", "fit.epochs=12")


def zerovl() -> Pretrain:
    """ZeroVL (arXiv 2112.09331): debiased sampling and coin-flip mixup at a constant logit scale of 50; 16 parts of 1,024 pairs by the gradient cache. The paper's towers start from ImageNet-21k and BERT."""
    return clip_yfcc().but(
        "objectives.image_text_contrastive=null", "objectives.mixup={chunk_size: 1024}", "model.image.patch_size=16", "model.text.context_length=25",
        "model.scale.init=50", "model.scale.min=50", "model.scale.max=50", "crop_scale_min=0.6", "optim.lr=1e-4", "optim.weight_decay=0.001",
        "loader.batch_size=16384", "loader.debiased=source", "fit.epochs=20", "fit.micro_batch=128", "optim.warmup_share=0.025", "optim.floor=0.1",
    )  # fmt: skip


def zerovl_tiny() -> Pretrain:
    """As clip_tiny, with mixup in the place of CLIP's loss and batches of one source; the logit scale stays free, as 50 is too sharp for so little data."""
    return clip_tiny().but("objectives.image_text_contrastive=null", "objectives.mixup={}", "loader.debiased=source")


def filip() -> Pretrain:
    """FILIP (arXiv 2111.07783): token-wise interaction, here beside CLIP's loss, since models are compared by their pooled embeddings. No official code: 16 tokens a side
    and padding left out as in DeCLIP's re-implementation."""
    return clip_yfcc().but("objectives.token_wise={top_k: 16, chunk_size: 64}", "optim.weight_decay=0.5", "optim.lr=5e-4")


def filip_tiny() -> Pretrain:
    """As clip_tiny, with FILIP's token-wise term."""
    return clip_tiny().but("objectives.token_wise={top_k: 8, chunk_size: 32}", "fit.epochs=12")


PYRAMID = (
    "objectives.image_text_contrastive=null", "objectives.hierarchical={weight: 0.333333}", "objectives.cross_level={weight: 0.666667}",
    SECOND, "crop_scale_min=0.9",
)  # fmt: skip


def pyramidclip() -> Pretrain:
    """PyramidCLIP (arXiv 2204.14095): three levels of picture and text, each a third of the loss; needs second captions as summaries. The paper's regions, names and
    attributes come from a detector; ours are cells and names of a packaged ImageNet classifier, without attributes, read by half of the tower. Official code for inference only."""
    chunks = "objectives.hierarchical.chunk_size=1024", "objectives.cross_level.chunk_size=1024"
    return clip_yfcc().but(*PYRAMID, *chunks, "model.roi_features={image_size: 224}", "views.crop_scale_min=0.5", "optim.weight_decay=0.2")


def pyramidclip_tiny() -> Pretrain:
    """As clip_tiny, with PyramidCLIP's three levels; regions are read by the last two blocks."""
    return clip_tiny().but(*PYRAMID, "model.roi_features={blocks: 2}", "crop_scale_min=0.5", "views.crop_scale_min=0.4", "fit.epochs=7")


def laclip() -> Pretrain:
    """LaCLIP-MT ViT-B/16 (arXiv 2305.20088): every picture meets its raw caption and a rewrite in one step; SLIP's settings. The paper's main
    model reads one of them at random instead: loader.caption_weights."""
    return clip_yfcc().but(
        "objectives.image_text_contrastive=null", "objectives.multi_text={chunk_size: 1024}", "loader.second_caption=[rewritten]",
        "model.image.patch_size=16", "loader.batch_size=8192", "optim.weight_decay=0.5", "crop_scale_min=0.5", "fit.epochs=35", "optim.warmup_share=0.029", "optim.floor=0.01",
    )  # fmt: skip


def laclip_tiny() -> Pretrain:
    """As clip_tiny, with two captions per picture and step."""
    return clip_tiny().but("objectives.image_text_contrastive=null", "objectives.multi_text={}", SECOND, "fit.epochs=11")


def alip() -> Pretrain:
    """ALIP ViT-B/32 (arXiv 2308.08428): raw and synthetic caption, weighted by how far the three agree."""
    return clip_yfcc().but(
        "objectives.image_text_contrastive=null",
        "objectives.weighted_captions={}",
        "loader.second_caption=[synthetic]",
        "optim.weight_decay=0.2",
        "optim.warmup_share=0.1",
    )


def alip_tiny() -> Pretrain:
    """As clip_tiny, with ALIP's adaptive weights."""
    return clip_tiny().but("objectives.image_text_contrastive=null", "objectives.weighted_captions={}", SECOND, "fit.epochs=11")


def unicl() -> Pretrain:
    """UniCL (arXiv 2204.03610): pairs of one class are right for each other. Swin-T, CLIP's text Transformer and a logit scale from e, as in the released model; the loss
    is not in the released code. A pair's class is its normalised caption."""
    return clip_yfcc().but(
        "objectives.image_text_contrastive=null", "objectives.image_text_label={chunk_size: 1024}", "optim.weight_decay=0.05", "model.scale.init=2.718",
        "model.image={kind: timm_trunk, name: swin_tiny_patch4_window7_224}",
    )  # fmt: skip


def unicl_tiny() -> Pretrain:
    """As clip_tiny; pictures with equal captions are no longer set against each other."""
    return clip_tiny().but("objectives.image_text_contrastive=null", "objectives.image_text_label={}")
