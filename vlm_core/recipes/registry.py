"""Named settings of promotion."""

from vlm_core.evaluate.config import Promote


def register_base() -> Promote:
    return Promote(name="vlm-base")


def register_filter_network() -> Promote:
    """Under a name of its own: a model trained on what it chose can never take its place as the scorer."""
    return Promote(name="vlm-dfn")


def register_student() -> Promote:
    return Promote(name="vlm-student")
