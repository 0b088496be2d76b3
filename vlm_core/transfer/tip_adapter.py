"""Tip-Adapter, training-free (Zhang et al., arXiv 2207.09519, equations 4 and 5). Checked by golden `transfer/tip_adapter`."""

from vlm_core.transfer.base import Support
from vlm_core.transfer.cache import CacheMethod
from vlm_core.transfer.config import TipAdapter


def build(config: TipAdapter, support: Support) -> CacheMethod:
    return CacheMethod(config, support)
