"""Zero-shot classification (CLIP, Radford et al., arXiv 2103.00020, section 3.1). Checked by golden `evaluation/zeroshot_classifier`."""
# B batch, C classes, D joint width

from torch import Tensor
from torch.nn import functional as F

from vlm_core.transfer.base import Setting, Support, TransferMethod
from vlm_core.transfer.config import ZeroShot


class ZeroShotMethod(TransferMethod):
    setting = Setting.ZERO_SHOT
    text_CD: Tensor

    def __init__(self, text_CD: Tensor, scale: float) -> None:
        super().__init__()
        self.register_buffer("text_CD", text_CD.clone())
        self.scale = scale

    def logits(self, image_BD: Tensor) -> Tensor:
        return self.scale * F.normalize(image_BD, dim=-1) @ self.text_CD.T


def build(config: ZeroShot, support: Support) -> ZeroShotMethod:
    return ZeroShotMethod(support.classifier(config.templates), support.scale)
