"""The parts of open_clip that we build on, imported without Weights & Biases: timm would import it for nothing, at four seconds of CPU in every process."""

import sys

_absent = "wandb" not in sys.modules
if _absent:
    sys.modules["wandb"] = None  # type: ignore[assignment]  # an import of it now raises ImportError, which timm expects
try:
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.tokenizer import SimpleTokenizer
    from open_clip.transformer import AttentionalPooler, QuickGELU, ResidualAttentionBlock, TextTransformer, Transformer, VisionTransformer
    from timm import create_model
    from timm.layers import AttentionPoolLatent
finally:
    if _absent:
        del sys.modules["wandb"]

__all__ = [
    "AttentionPoolLatent",
    "AttentionalPooler",
    "ModifiedResNet",
    "QuickGELU",
    "ResidualAttentionBlock",
    "SimpleTokenizer",
    "TextTransformer",
    "Transformer",
    "VisionTransformer",
    "create_model",
]
