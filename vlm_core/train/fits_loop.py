"""Whether the ways of the loop fit the model and the objectives, before anything is read. Torch-free."""

from typing import TYPE_CHECKING

from vlm_core.errors import Incompatible
from vlm_core.objectives.config import Need, Writing

if TYPE_CHECKING:
    from vlm_core.train.config import Pretrain

OWN_PASSES: frozenset[Need] = frozenset({"fusion", "scenes", "one_tower", "visual_tokens"})  # run through blocks of the towers again, the whole batch at once
SLOW: frozenset[Need] = frozenset({"slow_towers", "key_view"})


def check(config: "Pretrain") -> None:
    """Raises Incompatible, which names the two parts that do not fit and what would."""
    _gradients(config)
    if config.fit.strategy == "fsdp":
        _sharded(config)
    if config.fit.compile == "probe" and config.model.image.locked:
        raise Incompatible(
            "Found fit.compile=probe with a locked image tower, whose features are computed once, expected blocks that run; set fit.compile=off."
        )


def _gradients(config: "Pretrain") -> None:
    fit, chosen = config.fit, config.objectives.chosen()
    if fit.micro_batch is None:
        if fit.gradients == "accumulated":
            raise Incompatible("Found fit.gradients=accumulated with fit.micro_batch=null, expected the size of a part; set fit.micro_batch.")
        return
    if fit.term_norms:
        raise Incompatible(
            "Found fit.term_norms with fit.micro_batch, expected steps in one piece, since each term's gradient is asked for by itself; drop one of the two."
        )
    if fit.gradients == "accumulated":
        return
    again = [kind for kind, objective in chosen.items() if objective.needs & OWN_PASSES]
    if again:
        raise Incompatible(
            f"Found the objective {again[0]!r} with fit.micro_batch={fit.micro_batch} and cached gradients, expected objectives that depend on features only, since its "
            "further passes through the towers would see the whole batch at once; set fit.gradients=accumulated or drop one of the two."
        )
    writing = [kind for kind, objective in chosen.items() if isinstance(objective, Writing) and not 0 < objective.chunk_size <= fit.micro_batch]
    if writing:
        raise Incompatible(
            f"Found the objective {writing[0]!r} with fit.micro_batch={fit.micro_batch} and cached gradients, expected a decoder that sees no more captions at a time than the towers; "
            f"set objectives.{writing[0]}.chunk_size={fit.micro_batch} or fit.gradients=accumulated."
        )
    if config.model.image.batch_norm:
        raise Incompatible(
            f"Found the image tower {config.model.image.kind!r} with fit.micro_batch={fit.micro_batch} and cached gradients, expected one without batch norm, whose statistics "
            "would be those of a part; choose model.image={kind: vit}, or set fit.gradients=accumulated."
        )


def _sharded(config: "Pretrain") -> None:
    slow = [kind for kind, objective in config.objectives.chosen().items() if objective.needs & SLOW]
    if slow:
        raise Incompatible(
            f"Found the objective {slow[0]!r} with fit.strategy=fsdp, expected whole weights for its slow copy; set fit.strategy=ddp or drop objectives.{slow[0]}."
        )
    for name, off in (("heldout_every", 0), ("term_norms", False), ("compile", "off")):
        if getattr(config.fit, name) != off:
            raise Incompatible(
                f"Found fit.{name} with fit.strategy=fsdp, expected whole weights on one process for it; set fit.strategy=ddp or fit.{name}={str(off).lower()}."
            )
