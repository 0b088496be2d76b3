"""Named settings of promotion."""

from vlm_core.evaluate.config import Promote


def register_base() -> Promote:
    return Promote(name="vlm-base")


def register_student() -> Promote:
    return Promote(name="vlm-student")
