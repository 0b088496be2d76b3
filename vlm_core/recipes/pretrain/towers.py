"""Systems whose point is a tower: another encoder, one for both sides, a frozen one, or one that is too large for its batch."""

from vlm_core.recipes.pretrain.base import clip_tiny, clip_vit_b32, clip_yfcc
from vlm_core.train.config import Pretrain


def clip_rn50_tiny() -> Pretrain:
    """As clip_tiny, with the smallest ResNet of CLIP's kind."""
    return clip_tiny().but("model.image={kind: clip_resnet, image_size: 64, layers: [1, 1, 1, 1], width: 32, heads: 16}", "optim.beta2=0.999", "fit.epochs=8")


def flip() -> Pretrain:
    """FLIP ViT-L/16 (arXiv 2212.00794): half of the patches are left out. The paper ends with a short phase on whole pictures: go on with patch_dropout=0."""
    return clip_vit_b32().but(
        "model.image={kind: vit, patch_size: 16, width: 1024, layers: 24, heads: 16, patch_dropout: 0.5}", "model.text.width=768", "model.text.heads=12",
        "model.width=768", "model.activation=gelu", "loader.batch_size=65536", "optim.lr=1e-3", "optim.beta2=0.95", "crop_scale_min=0.5",
    )  # fmt: skip


def flip_tiny() -> Pretrain:
    """As clip_tiny, with smaller patches of which half are left out."""
    return clip_tiny().but("model.image.patch_size=8", "model.image.patch_dropout=0.5", "fit.epochs=8")


def lit() -> Pretrain:
    """LiT (arXiv 2111.07991): the image tower stays as it is, BERT-base learns. The paper locks ViT-g/14; here the one with open weights in a package,
    and AdamW in the place of Adafactor."""
    return clip_vit_b32().but(
        "model.image={kind: efficientnet_lite0, names: false, head: linear, dropout: 0}", "model.text={kind: bert, context_length: 64}",
        "model.width=768", "model.scale.init=10", "model.activation=gelu", "loader.batch_size=16384", "optim.lr=1e-3", "optim.weight_decay=0.01",
        "optim.warmup_share=0.03",
    )  # fmt: skip


def lit_tiny() -> Pretrain:
    """A small BERT from random weights learns to read for the locked picture encoder; its word pieces are learnt from the captions."""
    return clip_tiny().but(
        "model.image={kind: efficientnet_lite0, names: false, head: linear, dropout: 0}", "model.scale.init=10",
        "model.text={kind: bert, context_length: 32, vocab_size: 8192, width: 128, layers: 4, heads: 4}", "optim.weight_decay=0.01", "optim.warmup_share=0.03",
    )  # fmt: skip


def basic() -> Pretrain:
    """BASIC (arXiv 2111.10050): a batch of 65,536 with exact gradients, a part at a time, and sharded weights.

    No official code. The paper's CoAtNet-7 learns to classify JFT-5B first, which is out of reach, and has batch norm, whose statistics would be those of a part: here Swin-B from
    random weights; where you have a trunk that learnt to classify, name its file as model.image.weights.
    """
    return clip_vit_b32().but(
        "model.image={kind: timm_trunk, name: swin_base_patch4_window12_384, image_size: 384}", "model.text={kind: clip_transformer, context_length: 64, width: 1024, heads: 16}",
        "model.width=1024", "model.activation=gelu", "loader.batch_size=65536", "fit.micro_batch=64", "fit.strategy=fsdp", "fit.checkpoint_blocks=true",
        "optim.lr=1e-3", "optim.weight_decay=0.0025",
    )  # fmt: skip


def basic_tiny() -> Pretrain:
    """As clip_tiny, with twice the batch, of which the towers see a quarter at a time: the same gradients."""
    return clip_tiny().but("loader.batch_size=256", "fit.micro_batch=64", "fit.epochs=12")


def clippo() -> Pretrain:
    """CLIPPO ViT-B/16 (arXiv 2212.08045): texts are drawn and read by the image tower. Drawn with DejaVu Sans instead of GNU Unifont: set model.text.font."""
    return clip_vit_b32().but(
        "model.image={kind: vit, patch_size: 16, pool: map}", "model.text={kind: rendered}", "model.width=768", "model.activation=gelu",
        "model.scale.init=10", "model.scale.max=1000", "loader.batch_size=10240", "optim.lr=1e-3", "optim.weight_decay=1e-4", "optim.warmup_steps=10000",
    )  # fmt: skip


def clippo_tiny() -> Pretrain:
    """As clip_tiny, without a text tower: captions are drawn into 64 x 64 pixels and read in patches of 8."""
    return clip_tiny().but(
        "model.image.patch_size=8", "model.image.pool=map", "model.text={kind: rendered, image_size: 64, font_size: 8}", "model.scale.init=10",
        "model.scale.max=1000", "fit.epochs=7",
    )  # fmt: skip


ONE_TOWER = "objectives.image_text_contrastive=null", "objectives.cross_modal_mixup={}"


def one_tower() -> Pretrain:
    """OneR (arXiv 2211.11153): one Transformer for pictures, texts and mixtures of both. Sizes as the paper's ViT-B/16; its slow teacher is left out. No official code."""
    return clip_yfcc().but(
        *ONE_TOWER, "objectives.cross_modal_mixup.chunk_size=1024", "model.image.patch_size=16", "model.text={kind: shared_text}", "crop_scale_min=0.5",
    )  # fmt: skip


def one_tower_tiny() -> Pretrain:
    """As clip_tiny, with the image tower's blocks for words too; three sequences per pair, so fewer epochs."""
    return clip_tiny().but(*ONE_TOWER, "model.text={kind: shared_text, context_length: 32}", "fit.epochs=8")


LOCAL_CROPS = "views.crop_scale_min=0.05", "views.crop_scale_max=0.4", "views.jitter_share=0", "views.gray_share=0", "views.blur_share=0", "views.flip=false"
KELIP = (
    "objectives.image_text_contrastive=null", "objectives.multi_crop={}", *LOCAL_CROPS, "objectives.masked_autoencoder={width: 512, layers: 8, heads: 16, norm_pix: true}",
    "model.text.tokenizer=bpe", "loader.language_power=0.7",
)  # fmt: skip


def kelip() -> Pretrain:
    """KELIP ViT-B/32 (arXiv 2203.14463): byte pairs learnt from captions in all their languages, twice as many as CLIP's, languages drawn by n^0.7, local crops that meet the caption too, and MAE on the image tower.

    The paper trains MAE first and takes two large crops and small ones of fewer pixels; here MAE is trained beside the contrast, of one large crop and two small ones (5 to 40 % of the area, DINO's) of the same size.
    Training code was not released.
    """
    return clip_vit_b32().but(*KELIP, "model.text.vocab_size=98304")


def kelip_tiny() -> Pretrain:
    """As clip_tiny, with 8,192 byte pairs of the corpus's own languages, drawn by n^0.7, two local crops, and MAE."""
    return clip_tiny().but(
        *KELIP, "objectives.masked_autoencoder={width: 64, layers: 2, heads: 4, norm_pix: true}", "model.text.vocab_size=8192", "fit.epochs=12"
    )
