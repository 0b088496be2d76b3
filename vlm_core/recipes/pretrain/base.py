"""What every recipe starts from: CLIP, SigLIP and LiT in the sizes that a laptop trains, CLIP in the paper's, and the sizes that methods on YFCC15M share."""

from vlm_core.data.config import Loader
from vlm_core.models.config import ClipTransformer, EfficientnetLite0, Minilm, TwoTower, Vit
from vlm_core.objectives.config import ImageTextContrastive, Objectives
from vlm_core.train.config import Fit, Optim, Pretrain

SECOND = "loader.second_caption=[synthetic, rewritten, figcaption]"


def clip_tiny() -> Pretrain:
    """From random weights: two to three minutes on two quiet cores for 2,500 pairs. Longer training helps; the demo has to stay short."""
    return Pretrain(
        model=TwoTower(
            image=Vit(image_size=64, patch_size=16, width=128, layers=4, heads=4),
            text=ClipTransformer(context_length=32, width=128, layers=4, heads=4),
            width=128,
        ),
        objectives=Objectives(image_text_contrastive=ImageTextContrastive()),
        optim=Optim(lr=1e-3, weight_decay=0.1, warmup_steps=50),
        loader=Loader(batch_size=128, cache_mb=1500),
        fit=Fit(epochs=16, log_every=10, checkpoint_every=100),
        crop_scale_min=0.5,
    )


def siglip_tiny() -> Pretrain:
    """As clip_tiny, with the sigmoid loss."""
    return clip_tiny().but("objectives.image_text_contrastive=null", "objectives.sigmoid={}", "model.scale.init=10", "model.scale.bias=-10")


def filter_network() -> Pretrain:
    """A data filtering network (DFN, arXiv 2309.17425): clip_tiny that keeps what it was trained on with it. Use the largest recipe that you can pay for."""
    return clip_tiny().but("prints=true")


def lit_packaged() -> Pretrain:
    """Heads on locked open weights from packages (LiT, arXiv 2111.07991): under a minute on two cores."""
    return Pretrain(
        model=TwoTower(image=EfficientnetLite0(), text=Minilm(), width=256),
        objectives=Objectives(image_text_contrastive=ImageTextContrastive()),
        optim=Optim(lr=1e-3, weight_decay=0.1, warmup_steps=50),
        loader=Loader(batch_size=128),
        fit=Fit(epochs=12, log_every=10, checkpoint_every=100),
    )


def clip_vit_b32() -> Pretrain:
    """CLIP ViT-B/32 in the paper's sizes (arXiv 2103.00020, tables 18 to 20): 400 M pairs, batch 32,768 over many GPUs."""
    return Pretrain(
        model=TwoTower(image=Vit(), text=ClipTransformer(), width=512, activation="quick_gelu"),
        objectives=Objectives(image_text_contrastive=ImageTextContrastive(chunk_size=1024)),
        optim=Optim(lr=5e-4, weight_decay=0.2),
        loader=Loader(batch_size=32_768, workers=8),
        fit=Fit(epochs=32, devices=64, precision="bf16", log_every=50, checkpoint_every=1000, deterministic=False),
    )


def clip() -> Pretrain:
    """CLIP ViT-L/14, the paper's best before its last epoch at 336 px (arXiv 2103.00020, table 20); training code was not released, so schedules are open_clip's."""
    return clip_vit_b32().but(
        "model.image={kind: vit, patch_size: 14, width: 1024, layers: 24, heads: 16}", "model.text.width=768", "model.text.heads=12", "model.width=768", "optim.lr=4e-4",
    )  # fmt: skip


def clip_small() -> Pretrain:
    """CLIP ViT-B/32 for 3 M pairs such as CC3M: batch 1,024, 30 epochs; settings that open_clip's maintainers advise (arXiv 2103.00020)."""
    fit = "fit.devices=1", "loader.batch_size=1024", "optim.lr=1e-3", "optim.weight_decay=0.1", "optim.warmup_share=0.1", "fit.epochs=30"
    return clip_vit_b32().but(*fit)


def datacomp_small() -> Pretrain:
    """DataComp's small track (arXiv 2304.14108): ViT-B/32, 12.8 M pairs seen; fixed by the benchmark."""
    return clip_vit_b32().but("fit.devices=8", "loader.batch_size=4096", "optim.warmup_steps=500", "fit.samples=12800000", "crop_scale_min=0.9")


def datacomp_medium() -> Pretrain:
    """DataComp's medium track (arXiv 2304.14108): ViT-B/32, 128 M pairs seen; fixed by the benchmark."""
    return datacomp_small().but("fit.samples=128000000")


def siglip() -> Pretrain:
    """SigLIP ViT-B/16 (arXiv 2303.15343): the sigmoid loss in parts, attention pooling, bias -10. The paper's text tower sees both ways and reads SentencePiece; here
    CLIP's, and AdamW in the place of Adafactor."""
    return clip_vit_b32().but(
        "objectives.image_text_contrastive=null", "objectives.sigmoid={chunk_size: 1024}", "model.scale.init=10", "model.scale.bias=-10",
        "model.image={kind: vit, patch_size: 16, pool: map}", "model.text.context_length=64", "model.text.width=768", "model.text.heads=12", "model.width=768",
        "model.activation=gelu", "optim.lr=1e-3", "optim.weight_decay=1e-4", "optim.beta2=0.95", "optim.warmup_share=0.05",
    )  # fmt: skip


def clip_rn50() -> Pretrain:
    """CLIP ResNet-50 in the paper's sizes (arXiv 2103.00020, table 19)."""
    return clip_vit_b32().but(
        "model.image={kind: clip_resnet}", "model.width=1024", "optim.beta2=0.999", "optim.eps=1e-8",
    )  # fmt: skip


def clip_yfcc() -> Pretrain:
    """What methods trained on YFCC15M share: ViT-B/32, batch 4,096, 32 epochs (DeCLIP's benchmark)."""
    fit = "fit.devices=8", "loader.batch_size=4096", "optim.lr=1e-3", "optim.weight_decay=0.1", "optim.warmup_steps=2500", "fit.epochs=32"
    return clip_vit_b32().but(*fit)
