"""Batches that are larger than memory: the towers see a part of the batch at a time.

    cached        the gradient of the whole batch. Features of all parts without gradient; the loss of all features, once; then each part again with
                  gradient, which takes over what the loss said about its features. One forward pass more.
    accumulated   the mean of the gradients of the parts, each with the loss of its own pairs: fewer negatives, no further pass.

Source: rule 5 of the pre-training sheet; GradCache, arXiv 2101.06983. Random numbers of a part are drawn again, so dropout and patch dropout repeat. Exact
for whatever objectives do with features, queues and slow copies included, since they see the batch once; not under batch norm in the towers, whose
statistics would be those of a part, and so refused.
"""

# B pairs of this rank

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vlm_core.errors import Incompatible
from vlm_core.models.towers import Outputs, TwoTower, widen
from vlm_core.objectives.base import full_precision
from vlm_core.train.body import Batch, Body, Terms

Step = tuple[Tensor, Tensor, Terms]  # what backward has still to run through, the loss, its terms


def whole_step(body: Body, batch: Batch) -> Step:
    total, terms = body(batch)
    return total, total.detach(), terms


def accumulated_step(body: Body, batch: Batch, size: int) -> Step:
    """Gradients are the mean over the parts; a last part with fewer pairs weighs less."""
    count, losses, sums = pairs_of(batch), list[Tensor](), Terms()
    left = torch.zeros(())
    for rows in parts(count, size):
        if losses:
            _backward(left)
        share = (rows.stop - rows.start) / count
        total, terms = body(part(batch, rows, count))
        left = share * total
        losses.append(left.detach())
        for name, value in terms.items():
            sums[name] = sums.get(name, torch.zeros_like(value.detach())) + share * value.detach()
    return left, torch.stack(losses).sum(), sums


def cached_step(body: Body, batch: Batch, size: int) -> Step:
    """Gradients are those of the whole batch."""
    batch = body.ask(batch)
    count, towers = pairs_of(batch), body.towers
    given = [part(batch, rows, count) for rows in parts(count, size)]
    made, states = list[Outputs](), list[list[Tensor]]()
    with torch.no_grad():
        for each in given:
            states.append(_random_state())
            made.append(towers(each, body.needs))
    leaves = list[Tensor]()
    features = _joined(made, leaves)
    total, terms = body.judge(features._replace(scale=towers.scale, bias=towers.bias, towers=towers), batch)
    _backward(total)
    left = torch.zeros(())
    for number, (rows, each) in enumerate(zip(parts(count, size), given, strict=True)):
        if number:
            _backward(left)
        _set_random_state(states[number])
        again = [value for value in _tensors(towers(each, body.needs)) if value.is_floating_point()]
        pairs = [(value, leaf.grad[rows]) for value, leaf in zip(again, leaves, strict=True) if value.requires_grad and leaf.grad is not None]
        left = torch.stack([(widen(value) * widen(grad)).sum() for value, grad in pairs]).sum()
    return left, total.detach(), {name: value.detach() for name, value in terms.items()}


def refuse_batch_norm(towers: TwoTower) -> None:
    """Raises Incompatible where a tower has batch norm that learns from the batch."""
    found = [name for name, module in towers.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training]
    if found:
        raise Incompatible(
            f"Found fit.micro_batch with batch norm in the tower ({found[0]}), expected towers without it, since its statistics would be those of a part of the batch; "
            "choose a ViT, lock the tower, or set fit.micro_batch=null."
        )


def pairs_of(batch: Batch) -> int:
    """Pairs of this rank in a batch, whether its pictures are pixels or cached features."""
    return len(batch["images"] if "images" in batch else batch["image_features"])


def parts(count: int, size: int) -> Iterator[slice]:
    return (slice(begin, min(begin + size, count)) for begin in range(0, count, size))


def first_part(batch: Batch, size: int | None) -> Batch:
    """As much of a batch as the towers see at a time."""
    cut: Batch = batch if size is None else part(batch, slice(0, size), pairs_of(batch))
    return cut


def part(value: Any, rows: slice, count: int) -> Any:
    """These rows of everything in a batch that has a row per pair; parameters and single values as they are."""
    if isinstance(value, dict):
        return {name: part(inner, rows, count) for name, inner in value.items()}
    if isinstance(value, Tensor):
        return value[rows] if value.ndim and len(value) == count and not isinstance(value, nn.Parameter) else value
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [part(inner, rows, count) for inner in value]
    return value[rows] if isinstance(value, list) and len(value) == count else value


def _joined(made: list[Outputs], leaves: list[Tensor]) -> Outputs:
    """The parts as one; what has a gradient to collect is noted in `leaves`, in the order of `_tensors`."""

    def join(values: list[Any]) -> Any:
        first = values[0]
        if isinstance(first, Tensor):
            whole = torch.cat(values)
            if whole.is_floating_point():
                leaves.append(whole.requires_grad_())
            return whole
        if isinstance(first, tuple):
            inner = [join(list(each)) for each in zip(*values, strict=True)]
            return type(first)(*inner) if hasattr(first, "_fields") else tuple(inner)
        return first

    joined: Outputs = join([out._replace(**SINGLE) for out in made])
    return joined


SINGLE: dict[str, Any] = {"scale": None, "bias": None, "towers": None}  # what has no row per pair


def _tensors(out: Outputs) -> Iterator[Tensor]:
    def walk(value: Any) -> Iterator[Tensor]:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple):
            for inner in value:
                yield from walk(inner)

    return walk(out._replace(**SINGLE))


def _backward(loss: Tensor) -> None:
    with full_precision(loss.device):
        loss.backward()


def _random_state() -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def _set_random_state(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state)
