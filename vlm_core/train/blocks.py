"""The repeated blocks of towers, whatever library they come from: what is checkpointed, compiled, sharded, and what layers a rate decays over."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """Members of the outermost lists whose members are all of one class with parts of its own: Transformer blocks, bottlenecks of a stage."""
    for child in module.children():
        members = list(child.children()) if isinstance(child, nn.ModuleList | nn.Sequential) else []
        if members and len({type(member) for member in members}) == 1 and any(True for _ in members[0].children()):
            yield from members
        else:
            yield from blocks_of(child)


def checkpoint_blocks(module: nn.Module) -> None:
    """Activations inside blocks are not kept but made again in backward: same gradients, less memory, a third more work."""
    for block in blocks_of(module):
        block.forward = partial(_again, block.forward)


def _again(forward: Any, *inputs: Any, **named: Any) -> Any:
    return checkpoint(forward, *inputs, use_reentrant=False, **named)
