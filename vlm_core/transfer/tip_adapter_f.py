"""Tip-Adapter-F: the keys of the cache are fine-tuned, the values stay (Zhang et al., arXiv 2207.09519, section 3.2).

We keep the last step and search alpha and beta on validation data; the official script keeps the epoch that is best on the test split.
Loss and gradient are checked by golden `transfer/tip_adapter`.
"""
# N support pictures, D joint width

from torch import Tensor, nn

from vlm_core.transfer.base import Support
from vlm_core.transfer.cache import CacheMethod
from vlm_core.transfer.config import TipAdapterF


class TipAdapterFMethod(CacheMethod):
    def __init__(self, config: TipAdapterF, support: Support) -> None:
        super().__init__(config, support)
        self.training_settings = config.training

    def register_keys(self, keys_ND: Tensor) -> None:
        self.keys_ND = nn.Parameter(keys_ND)


def build(config: TipAdapterF, support: Support) -> TipAdapterFMethod:
    return TipAdapterFMethod(config, support)
