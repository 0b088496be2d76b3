"""Systems that also paint or write what they did not see."""

from vlm_core.recipes.pretrain.base import clip_tiny, clip_yfcc
from vlm_core.train.config import Pretrain


def mae_clip() -> Pretrain:
    """CLIP with MAE on the image tower (arXiv 2111.06377; KELIP pre-trains with it, SegCLIP adds it as here)."""
    return clip_yfcc().but("objectives.masked_autoencoder={width: 384, layers: 3, heads: 8}", "model.image.patch_size=16")


def mae_clip_tiny() -> Pretrain:
    """As clip_tiny, with MAE beside it, on normalised patches."""
    return clip_tiny().but("objectives.masked_autoencoder={width: 64, layers: 2, heads: 4, norm_pix: true}", "fit.epochs=12")


def coca() -> Pretrain:
    """CoCa ViT-B/32 (arXiv 2205.01917; open_clip's sizes): contrast, and captioning with weight 2 from 255 queries on the picture. The paper takes the
    contrastive feature from these queries, open_clip from one more of them; here it is the class token's. No official code: AdamW in the place of Adafactor."""
    return clip_yfcc().but(
        "objectives.captioning={weight: 2}",
        "model.decoder={layers: 12, queries: 255}",
        "model.text.context_length=76",
        "optim.weight_decay=0.01",
        "optim.lr=8e-4",
        "optim.warmup_share=0.02",
        "optim.schedule=linear",
    )


def coca_tiny() -> Pretrain:
    """As clip_tiny, with a captioning decoder of two blocks that reads all patches."""
    return clip_tiny().but("objectives.captioning={weight: 2}", "model.decoder={layers: 2, heads: 4}", "fit.epochs=5")


NLIP = "objectives.image_text_contrastive=null", "objectives.captioning={}", "objectives.masked_autoencoder={width: 384, layers: 3, heads: 8}"


def nlip() -> Pretrain:
    """NLIP ViT-B/16 (arXiv 2212.07086): targets softened where a pair looks like noise, captioning and masked pictures. The paper's BART decoder is also told
    concepts that CLIP finds in the picture, and rewrites noisy captions; that is what `vlm recaption` is for. No official code."""
    return clip_yfcc().but(
        *NLIP, "objectives.noise_adaptive={chunk_size: 1024}", "model.decoder={layers: 6}", "model.image.patch_size=16", "optim.weight_decay=0.2", "fit.epochs=50",
    )  # fmt: skip


def nlip_tiny() -> Pretrain:
    """As clip_tiny, with NLIP's three objectives; the noise is judged by the latest 2,048 losses."""
    return clip_tiny().but(
        *NLIP, "objectives.noise_adaptive={window: 2048, refit_every: 10}", "objectives.masked_autoencoder={width: 64, layers: 2, heads: 4, norm_pix: true}",
        "model.decoder={layers: 2, heads: 4}", "fit.epochs=4",
    )  # fmt: skip


def pali_style() -> Pretrain:
    """PaLI (arXiv 2209.06794) at CLIP's size: the caption, or the rest of a split one, is written after a task prompt. Contrast beside it is our addition,
    so that the model has embeddings to be compared by; `vlm evaluate --set caption_likelihood=true` classifies by what the decoder says. No official code."""
    return clip_yfcc().but("objectives.prefix_generation={weight: 2}", "model.decoder={layers: 12}", "model.image.patch_size=16", "optim.weight_decay=0.01")


def pali_style_tiny() -> Pretrain:
    """As clip_tiny, with a decoder of two blocks that completes captions."""
    return clip_tiny().but("objectives.prefix_generation={weight: 2}", "model.decoder={layers: 2, heads: 4}", "fit.epochs=4")
